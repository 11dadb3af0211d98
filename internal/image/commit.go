package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

// The names of workspaces begin like this.
const (
	pullPrefix  = "pull-"
	layerPrefix = "layer-"
	imagePrefix = "image-"
	wantedFile  = "layers"
)

// complete tells whether an image and all its layers are there. The store is
// locked.
func (s *Store) complete(hex string) bool {
	img, err := s.readImage(hex)
	if err != nil {
		return false
	}
	return s.missing(img) == ""
}

// missing is a file of the two kinds that an image's tree is made of, and that is not there.
func (s *Store) missing(img *Image) string {
	files := []string{filepath.Join(s.imageDir(hexOf(img.ID)), mergedFile)}
	for _, l := range img.Layers {
		files = append(files, s.layerPath(hexOf(l.DiffID)))
	}
	for _, path := range files {
		if _, err := os.Stat(path); err != nil {
			return path
		}
	}
	return ""
}

// Whole is an error for an image of which something is missing on the disk. Another pull
// brings it.
func (s *Store) Whole(img *Image) error {
	path := s.missing(img)
	if path == "" {
		return nil
	}
	name := img.ID
	if len(img.Tags) > 0 {
		name = img.Tags[0]
	}
	return fmt.Errorf("image %s is damaged: %s is not there: pull it again (gantry pull %s): %w", name, path, name, pod.ErrState)
}

// storeImage builds the image's directory and puts it in place. It asks for
// another round if a layer was taken away meanwhile.
func (p *pull) storeImage(ctx context.Context) (again bool, err error) {
	s := p.store
	hex := hexOf(p.remote.configID.String())
	w, err := s.work(ctx, imagePrefix+hex)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	dir := w.file("new")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return false, err
	}
	if err := p.build(dir); err != nil {
		return errors.Is(err, fs.ErrNotExist), notExist(err)
	}
	l, err := s.lock(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.Unlock()) }()
	for _, id := range p.diffIDs() {
		if !disk.Exists(s.layerPath(id)) {
			return true, nil
		}
	}
	if err := s.storeBlobs(p.remote, w); err != nil {
		return false, err
	}
	if disk.Exists(s.imageDir(hex)) && !s.complete(hex) { // damaged: this one replaces it
		if err := s.discard(s.imageDir(hex)); err != nil {
			return false, err
		}
	}
	if err := disk.Move(dir, s.imageDir(hex)); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	return false, p.name()
}

// notExist takes the error away that a layer which is gone gives.
func notExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// build makes the content of an image's directory, synced.
func (p *pull) build(dir string) error {
	s := p.store
	size, err := s.mergeLayers(p.hexes(), p.remote.configID.String(), dir)
	if err != nil {
		return err
	}
	r := p.record()
	r.Size = size
	for i := range r.Layers {
		var st unix.Stat_t
		path := s.layerPath(hexOf(r.Layers[i].DiffID))
		if err := unix.Stat(path, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		r.Layers[i].Size = st.Blocks * 512
	}
	if err := writeJSON(filepath.Join(dir, recordFile), r, 0o644); err != nil {
		return err
	}
	env := p.remote.config.Config.Env
	if env == nil {
		env = []string{}
	}
	if err := writeJSON(filepath.Join(dir, envFile), env, 0o600); err != nil {
		return err
	}
	return disk.SyncDir(dir)
}

// writeJSON writes a record. One that is too large to be read back is refused: GC
// removes nothing as long as there is a record that it cannot read.
func writeJSON(path string, v any, mode fs.FileMode) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := enc.Encode(v); err != nil {
		return err
	}
	if b.Len() > maxRecord {
		return fmt.Errorf("%s would have %d bytes, at most %d are read: %w", filepath.Base(path), b.Len(), maxRecord, errRefused)
	}
	return disk.WriteNew(path, b.Bytes(), mode)
}

// hexes are the layers of the image, lowest first.
func (p *pull) hexes() []string {
	out := make([]string, len(p.remote.layers))
	for i, b := range p.remote.layers {
		out[i] = hexOf(b.diffID.String())
	}
	return out
}

func (p *pull) record() *record {
	c := p.remote.config
	r := &record{
		Version: recordVersion, ID: p.remote.configID.String(), Digest: p.remote.top.String(),
		Manifests: slices.Sorted(maps.Keys(p.remote.manifests)), Pulled: time.Now().UTC(), OS: c.OS, Arch: c.Architecture,
		Config: recordConfig{
			User: c.Config.User, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, WorkingDir: c.Config.WorkingDir,
			StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
			Volumes: slices.Sorted(maps.Keys(c.Config.Volumes)), ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
		},
	}
	r.Annotations = p.remote.annotations
	if c.Created != nil {
		r.Created = *c.Created
	}
	for _, b := range p.remote.layers {
		r.Layers = append(r.Layers, recordLayer{DiffID: b.diffID.String(), Digest: b.digest.String()})
	}
	return r
}

// storeBlobs keeps manifests and config as they came. The store is locked.
func (s *Store) storeBlobs(r *remote, w *workspace) error {
	blobs := maps.Clone(r.manifests)
	blobs[r.configID.String()] = r.rawConfig
	for digest, data := range blobs {
		hex := hexOf(digest)
		if hex == "" || disk.Exists(s.blobPath(hex)) {
			continue
		}
		if err := disk.WriteNew(w.file(hex), data, 0o600); err != nil {
			return err
		}
		if err := disk.Move(w.file(hex), s.blobPath(hex)); err != nil {
			return err
		}
	}
	return nil
}

// mergeLayers writes the image's tree into dir and returns its size on disk.
func (s *Store) mergeLayers(hexes []string, id, dir string) (int64, error) {
	m, err := s.loadMerged(hexes)
	if err != nil {
		return 0, err
	}
	defer m.budget.close()
	size, err := writeMerged(filepath.Join(dir, mergedFile), id, m)
	if err != nil || s.mode != MountLoop {
		return size, err
	}
	more, err := s.writeFlat(filepath.Join(dir, flatFile), id, m)
	return size + more, err
}

// merged is the tree of an image, and the layers that its files' data is in.
type merged struct {
	root    *erofs.Node
	layers  []string // hex, each once, in the order of devices
	devices []erofs.Device
	budget  *budget // what the tree takes
}

// loadMerged merges layers in memory. Who is done with the tree closes its budget.
func (s *Store) loadMerged(hexes []string) (_ *merged, err error) {
	m := &merged{root: newRoot(), budget: newBudget(s.ledger)}
	defer func() {
		if err != nil {
			m.budget.close()
		}
	}()
	entries := 0
	for i, hex := range hexes {
		f, err := os.Open(s.layerPath(hex))
		if err != nil {
			return nil, err
		}
		layer, super, err := erofs.Load(f, m.budget.take)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", i+1, hex, err)
		}
		if entries += super.Inodes; entries > s.ledger.maxEntries {
			return nil, fmt.Errorf("the image's layers have more than %d entries: %w", s.ledger.maxEntries, errRefused)
		}
		device := slices.Index(m.layers, hex)
		if device < 0 {
			device = len(m.layers)
			m.layers = append(m.layers, hex)
			m.devices = append(m.devices, erofs.Device{Tag: hex, Blocks: super.Blocks})
		}
		if err := addLayer(m.root, layer, uint16(device+1)); err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", i+1, hex, err)
		}
	}
	return m, nil
}

// writeMerged writes an image of metadata over the layers.
func writeMerged(path, id string, m *merged) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := erofs.NewWriter(f, erofs.Options{UUID: uuid("image", id), Devices: m.devices})
	if err != nil {
		return 0, err
	}
	return finish(f, w, m.root)
}

func finish(f *os.File, w *erofs.Writer, root *erofs.Node) (int64, error) {
	if _, err := w.Finish(root); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}
