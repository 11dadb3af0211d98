package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
)

// fileSet is a set of layers and blobs, by hex.
type fileSet struct{ layers, blobs map[string]bool }

func (f fileSet) add(img *Image) {
	for _, l := range img.Layers {
		f.layers[hexOf(l.DiffID)] = true
		f.blobs[hexOf(l.Digest)] = true
	}
	for _, d := range append([]string{img.ID}, img.manifests...) {
		f.blobs[hexOf(d)] = true
	}
}

// GC removes what nothing refers to: workspaces of dead processes, half removed
// images, references to nothing, layers and blobs of no image, and, if asked,
// images that nobody keeps. It fails rather than guess: if a record cannot be
// read, no layer is taken.
func (s *Store) GC(ctx context.Context, o GCOptions) ([]GCItem, error) {
	l, err := s.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("collect images: %w", err)
	}
	defer l.Unlock()
	items, err := s.sweepDirs(o.DryRun)
	if err != nil {
		return items, fmt.Errorf("collect images: %w", err)
	}
	x, err := s.read()
	if err == nil {
		err = x.damaged
	}
	if err != nil {
		return items, fmt.Errorf("collect images: nothing is removed while a record cannot be read (gantry image rm with the whole ID removes such an image): %w", err)
	}
	for _, sweep := range []func(*index, GCOptions) ([]GCItem, error){s.sweepImages, s.sweepRefs, s.sweepAll} {
		more, err := sweep(x, o)
		items = append(items, more...)
		if err != nil {
			return items, fmt.Errorf("collect images: %w", err)
		}
	}
	return items, nil
}

// sweepDirs removes our workspaces that nobody has locked, and our garbage.
func (s *Store) sweepDirs(dry bool) ([]GCItem, error) {
	var items []GCItem
	entries, err := os.ReadDir(s.dir(dirPrepare))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !isOurs(e.Name()) {
			continue
		}
		item, err := s.sweepDir(filepath.Join(s.dir(dirPrepare), e.Name()), "half made: its pull was interrupted", dry)
		if err != nil {
			return items, err
		}
		items = append(items, item...)
	}
	if entries, err = os.ReadDir(s.dir(dirGarbage)); err != nil {
		return items, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), imagePrefix) {
			continue
		}
		item, err := s.sweepDir(filepath.Join(s.dir(dirGarbage), e.Name()), "half deleted: its removal was interrupted", dry)
		if err != nil {
			return items, err
		}
		items = append(items, item...)
	}
	return items, nil
}

func isOurs(name string) bool {
	return strings.HasPrefix(name, pullPrefix) || strings.HasPrefix(name, layerPrefix) || strings.HasPrefix(name, imagePrefix)
}

func (s *Store) sweepDir(path, why string, dry bool) ([]GCItem, error) {
	l, err := disk.TryLock(path)
	if errors.Is(err, disk.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	item := GCItem{Kind: "directory", Name: path, Why: why, Bytes: usedBelow(path)}
	if !dry {
		err = os.RemoveAll(path)
	}
	return []GCItem{item}, errors.Join(err, l.Unlock())
}

func usedBelow(dir string) (bytes int64) {
	// What cannot be read counts nothing: it is a figure for people.
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		bytes += usedBy(path)
		return nil
	})
	return bytes
}

func usedBy(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}

// sweepImages removes images that nobody keeps.
func (s *Store) sweepImages(x *index, o GCOptions) ([]GCItem, error) {
	var items []GCItem
	if !o.Images || o.Keep == nil {
		return nil, nil
	}
	for hex, img := range x.images {
		if o.Keep(img.ID) || s.cfg.InUse != nil && s.cfg.InUse(img.ID) {
			continue
		}
		name := img.ID
		if len(img.Tags) > 0 {
			name = img.Tags[0]
		}
		items = append(items, GCItem{Kind: "image", Name: name, Why: "nothing uses it", Bytes: usedBelow(s.imageDir(hex))})
		if o.DryRun {
			delete(x.images, hex)
			continue
		}
		if err := s.remove(x, hex); err != nil {
			return items, err
		}
	}
	return items, nil
}

// sweepRefs removes names of images that are gone, and names half written: those
// that are being written now are behind the lock.
func (s *Store) sweepRefs(x *index, o GCOptions) ([]GCItem, error) {
	refs, _, err := s.readRefs()
	if err != nil {
		return nil, err
	}
	var items []GCItem
	entries, err := os.ReadDir(s.dir(dirRefs))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			continue
		}
		items = append(items, GCItem{Kind: "ref", Name: e.Name(), Why: "half written"})
		if o.DryRun {
			continue
		}
		if err := removeFile(filepath.Join(s.dir(dirRefs), e.Name())); err != nil {
			return items, err
		}
	}
	for _, r := range refs {
		if x.images[hexOf(r.Image)] != nil {
			continue
		}
		items = append(items, GCItem{Kind: "ref", Name: r.Name, Why: "its image is gone"})
		if o.DryRun {
			continue
		}
		if err := removeFile(filepath.Join(s.dir(dirRefs), refFile(r.Name))); err != nil {
			return items, err
		}
	}
	return items, nil
}

// sweepAll removes layers and blobs that no image has.
func (s *Store) sweepAll(x *index, o GCOptions) ([]GCItem, error) {
	files := fileSet{layers: map[string]bool{}, blobs: map[string]bool{}}
	layers, err := os.ReadDir(s.dir(dirLayers))
	if err != nil {
		return nil, err
	}
	for _, e := range layers {
		if hex, ok := strings.CutSuffix(e.Name(), layerSuffix); ok {
			files.layers[hex] = true
		}
	}
	blobs, err := os.ReadDir(s.dir(dirBlobs))
	if err != nil {
		return nil, err
	}
	for _, e := range blobs {
		files.blobs[e.Name()] = true
	}
	return s.sweepFiles(x, files, o.DryRun)
}

// sweepFiles removes those of the given files that no image has and no pull under
// way wants. The store is locked, so no image can come meanwhile; a pull that
// began after we looked finds out when it stores its image.
func (s *Store) sweepFiles(x *index, files fileSet, dry bool) ([]GCItem, error) {
	if x.damaged != nil {
		return nil, nil // an image that cannot be read may have them
	}
	keep := fileSet{layers: map[string]bool{}, blobs: map[string]bool{}}
	for _, img := range x.images {
		keep.add(img)
	}
	busy, err := s.wanted(keep)
	if err != nil {
		return nil, err
	}
	var items []GCItem
	for hex := range files.layers {
		if keep.layers[hex] {
			continue
		}
		items = append(items, GCItem{Kind: "layer", Name: hex, Bytes: usedBy(s.layerPath(hex)), Why: "no image has it"})
		if dry {
			continue
		}
		if err := removeFile(s.layerPath(hex)); err != nil {
			return items, err
		}
	}
	for hex := range files.blobs {
		if keep.blobs[hex] || busy {
			continue
		}
		items = append(items, GCItem{Kind: "blob", Name: hex, Bytes: usedBy(s.blobPath(hex)), Why: "no image has it"})
		if dry {
			continue
		}
		if err := removeFile(s.blobPath(hex)); err != nil {
			return items, err
		}
	}
	return items, nil
}

// wanted adds the layers that pulls under way need, and tells whether there are
// any: their blobs are too small to be worth a list.
func (s *Store) wanted(keep fileSet) (busy bool, err error) {
	entries, err := os.ReadDir(s.dir(dirPrepare))
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), pullPrefix) {
			continue
		}
		path := filepath.Join(s.dir(dirPrepare), e.Name())
		l, err := disk.TryLock(path)
		if err == nil { // its process is gone
			if err := l.Unlock(); err != nil {
				return busy, err
			}
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		busy = true
		data, err := readLimited(filepath.Join(path, wantedFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has not looked at any layer yet
		}
		if err != nil {
			return busy, err
		}
		for hex := range strings.SplitSeq(string(data), "\n") {
			keep.layers[hex] = true
		}
	}
	return busy, nil
}
