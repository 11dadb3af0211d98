package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

// The directories of a store.
const (
	dirBlobs   = "blobs/sha256"
	dirLayers  = "layers/sha256"
	dirImages  = "images"
	dirRefs    = "refs"
	dirPrepare = "prepare" // shared with the pods
	dirGarbage = "garbage"
)

// storeDirs are made by Open. What images contain is for root only: their files
// have owners and set-user-ID bits of their own.
var storeDirs = map[string]fs.FileMode{
	dirBlobs: 0o700, dirLayers: 0o700, dirImages: 0o755, dirRefs: 0o755, dirPrepare: 0o700, dirGarbage: 0o700,
}

const (
	layerSuffix     = ".erofs"
	defaultParallel = 4
	defaultPatience = 2 * time.Minute
)

// Store is an image store. Several processes may have it open at once.
type Store struct {
	cfg    Config
	log    *slog.Logger
	mode   MountMode
	ledger *ledger

	mu      sync.Mutex // guards what follows
	cached  *index
	flights map[string]*flight
}

// Open opens the store, and makes it if it is not there.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.Run) || strings.ContainsAny(cfg.Root+cfg.Run, ",:\n") {
		return nil, fmt.Errorf("open image store: root %q and run %q: want absolute paths without comma and colon: %w", cfg.Root, cfg.Run, pod.ErrInvalid)
	}
	s := &Store{cfg: cfg, log: cfg.Log, ledger: newLedger(), flights: map[string]*flight{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Parallel <= 0 {
		s.cfg.Parallel = defaultParallel
	}
	if s.cfg.Patience <= 0 {
		s.cfg.Patience = defaultPatience
	}
	for dir, mode := range storeDirs {
		if err := makeDir(s.dir(dir), mode); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	if s.mode = cfg.Mount; s.mode == "" {
		s.mode = s.probeMount(ctx)
	}
	return s, nil
}

// makeDir makes a directory, and its parents for everyone to pass. A reader that
// may not write takes what is there.
func makeDir(path string, mode fs.FileMode) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (s *Store) dir(name string) string      { return filepath.Join(s.cfg.Root, name) }
func (s *Store) imageDir(hex string) string  { return filepath.Join(s.dir(dirImages), hex) }
func (s *Store) blobPath(hex string) string  { return filepath.Join(s.dir(dirBlobs), hex) }
func (s *Store) layerPath(hex string) string { return filepath.Join(s.dir(dirLayers), hex+layerSuffix) }

// lock takes the lock of the whole store. It is held while images come, go or are
// counted, never while something is downloaded.
func (s *Store) lock(ctx context.Context) (*disk.Lock, error) {
	return disk.AcquireLock(ctx, s.dir(dirImages))
}

// Image finds an image by its name, its ID, or at least 12 characters of that.
func (s *Store) Image(name string) (*Image, error) {
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	hex, err := x.find(name)
	if err != nil {
		return nil, err
	}
	return x.images[hex].clone(), nil
}

// Has tells whether an image of that ID is there. A removal that is under way is
// waited for: it may have asked InUse before the caller needed the image.
func (s *Store) Has(ctx context.Context, id string) (bool, error) {
	l, err := s.lock(ctx)
	if err != nil {
		return false, fmt.Errorf("look for image %s: %w", id, err)
	}
	return disk.Exists(s.imageDir(hexOf(id))), l.Unlock()
}

// find resolves a name. A tag that looks like an ID is a tag.
func (x *index) find(name string) (string, error) {
	prefix, isID := parseID(name)
	if isID && strings.HasPrefix(name, idPrefix) {
		return x.findID(name, prefix)
	}
	named, err := parseName(name)
	if err != nil && !isID {
		return "", err
	}
	if err == nil {
		if hex, ok := x.refs[named.String()]; ok {
			return hex, nil
		}
	}
	if isID {
		return x.findID(name, prefix)
	}
	return "", fmt.Errorf("image %s: %w", named.String(), pod.ErrNotFound)
}

func (x *index) findID(name, prefix string) (string, error) {
	found := ""
	for hex := range x.images {
		if !strings.HasPrefix(hex, prefix) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("image %s: more than one ID begins like this: %w", name, pod.ErrInvalid)
		}
		found = hex
	}
	if found == "" {
		return "", fmt.Errorf("image %s: %w", name, pod.ErrNotFound)
	}
	return found, nil
}

// Images returns all images, those with a tag first, by name.
func (s *Store) Images() ([]*Image, error) {
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	out := make([]*Image, 0, len(x.images))
	for _, img := range x.images {
		out = append(out, img.clone())
	}
	slices.SortFunc(out, func(a, b *Image) int {
		if c := strings.Compare(sortName(a), sortName(b)); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

func sortName(img *Image) string {
	if len(img.Tags) > 0 {
		return "0" + img.Tags[0]
	}
	return "1"
}

// Remove removes an image with all its names. An image that is not there is no
// error; one that InUse knows is.
func (s *Store) Remove(ctx context.Context, name string) error {
	l, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	defer l.Unlock()
	x, err := s.read()
	if err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	hex, err := x.find(name)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = s.remove(x, hex)
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// RemoveDamaged takes an image away whose record cannot be read, by its whole ID:
// it is in no list, and nothing else is collected as long as it is there. Its layers
// are the next collection's.
func (s *Store) RemoveDamaged(ctx context.Context, id string) error {
	l, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	defer l.Unlock()
	if err := s.removeDamaged(id); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

func (s *Store) removeDamaged(id string) error {
	hex := hexOf(id)
	if hex == "" || !disk.Exists(s.imageDir(hex)) {
		return pod.ErrNotFound
	}
	if _, err := s.readImage(hex); err == nil {
		return fmt.Errorf("its record can be read: %w", pod.ErrState)
	}
	if s.cfg.InUse != nil && s.cfg.InUse(id) {
		return fmt.Errorf("in use: %w", pod.ErrState)
	}
	return s.discard(s.imageDir(hex))
}

// remove takes an image away, and the layers that were only its own. The store
// is locked.
func (s *Store) remove(x *index, hex string) error {
	img := x.images[hex]
	if s.cfg.InUse != nil && s.cfg.InUse(img.ID) {
		return fmt.Errorf("in use: %w", pod.ErrState)
	}
	for name, id := range x.refs {
		if id != hex {
			continue
		}
		if err := removeFile(filepath.Join(s.dir(dirRefs), refFile(name))); err != nil {
			return err
		}
	}
	if err := disk.SyncDir(s.dir(dirRefs)); err != nil {
		return err
	}
	if err := s.discard(s.imageDir(hex)); err != nil {
		return err
	}
	delete(x.images, hex)
	_, err := s.sweepFiles(x, img.files(), false)
	return err
}

// files are the layers and blobs an image has.
func (img *Image) files() fileSet {
	f := fileSet{layers: map[string]bool{}, blobs: map[string]bool{}}
	f.add(img)
	return f
}

// discard moves something out of sight and then deletes it, so that a crash in
// between leaves nothing half deleted where it stood.
func (s *Store) discard(path string) error {
	to := filepath.Join(s.dir(dirGarbage), imagePrefix+filepath.Base(path)+"."+rand.Text())
	if err := disk.Move(path, to); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(to)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Untag takes one name from an image. The image goes with its last tag, or with
// its last name if it has no tag. A name that is not there is no error.
func (s *Store) Untag(ctx context.Context, name string) error {
	named, err := parseName(name)
	if err != nil {
		return fmt.Errorf("untag image: %w", err)
	}
	l, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("untag image %s: %w", name, err)
	}
	defer l.Unlock()
	if err := s.untag(named); err != nil {
		return fmt.Errorf("untag image %s: %w", name, err)
	}
	return nil
}

func (s *Store) untag(named reference.Named) error {
	x, err := s.read()
	if err != nil {
		return err
	}
	hex, ok := x.refs[named.String()]
	if !ok {
		return nil
	}
	tags := slices.DeleteFunc(x.images[hex].Tags, func(t string) bool { return t == named.String() })
	_, digested := named.(reference.Digested)
	if len(tags) == 0 && (!digested || len(x.images[hex].Digests) == 1) {
		return s.remove(x, hex)
	}
	if err := removeFile(filepath.Join(s.dir(dirRefs), refFile(named.String()))); err != nil {
		return err
	}
	return disk.SyncDir(s.dir(dirRefs))
}

// Mountpoint is a directory of the file system that holds the store.
func (s *Store) Mountpoint() string { return s.cfg.Root }

// Info tells what the store takes of its file system.
func (s *Store) Info() (FsInfo, error) {
	info := FsInfo{Mountpoint: s.Mountpoint()}
	for _, dir := range []string{dirBlobs, dirLayers, dirImages, dirRefs, dirPrepare, dirGarbage} {
		err := filepath.WalkDir(s.dir(dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return nil // gone meanwhile
			}
			info.UsedBytes += uint64(st.Blocks) * 512
			info.Inodes++
			return nil
		})
		if err != nil {
			return info, fmt.Errorf("measure image store: %w", err)
		}
	}
	return info, nil
}
