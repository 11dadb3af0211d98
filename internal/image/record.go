package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

const recordVersion = 1

// The files of an image's directory.
const (
	recordFile = "image.json"
	envFile    = "env.json"
	mergedFile = "merged.erofs"
	flatFile   = "flat.erofs"
)

// maxRecord bounds the records that are read.
const maxRecord = 8 << 20

// record is image.json. It never changes, and has no environment values: those
// are in env.json, which only root can read.
type record struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Digest    string    `json:"digest"`
	Manifests []string  `json:"manifests"` // digests of all manifests in blobs/
	Created   time.Time `json:"created"`
	Pulled    time.Time `json:"pulled"`
	OS        string    `json:"os"`
	Arch      string    `json:"arch"`
	// Size is that of the image's own files, without its layers.
	Size   int64         `json:"size"`
	Config recordConfig  `json:"config"`
	Layers []recordLayer `json:"layers"`
	// Annotations of the manifest; records that were written earlier have none.
	Annotations map[string]string `json:"annotations,omitempty"`
}

type recordConfig struct {
	User         string            `json:"user,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

type recordLayer struct {
	DiffID string `json:"diffID"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// refRecord is a file of refs/: a name and the image it stands for.
type refRecord struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Image   string `json:"image"` // sha256:…
}

// parseRecord reads image.json and checks all that paths are made of.
func parseRecord(data []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("version %d, this program knows %d: %w", r.Version, recordVersion, pod.ErrUnsupported)
	}
	if hexOf(r.ID) == "" {
		return nil, fmt.Errorf("id %s: %w", shown(r.ID), pod.ErrInvalid)
	}
	for _, d := range r.Manifests {
		if hexOf(d) == "" {
			return nil, fmt.Errorf("manifest %s: %w", shown(d), pod.ErrInvalid)
		}
	}
	for _, l := range r.Layers {
		if hexOf(l.DiffID) == "" || l.Size < 0 {
			return nil, fmt.Errorf("layer %s: %w", shown(l.DiffID), pod.ErrInvalid)
		}
	}
	return &r, nil
}

func parseRef(data []byte) (refRecord, error) {
	var r refRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	if r.Version != recordVersion || hexOf(r.Image) == "" || r.Name == "" {
		return r, fmt.Errorf("reference %s: %w", shown(r.Name), pod.ErrInvalid)
	}
	return r, nil
}

// refFile names the file of a reference. Names can be longer than file names.
func refFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:]) + ".json"
}

func (s *Store) writeRef(name, id string) error {
	data, err := json.Marshal(refRecord{Version: recordVersion, Name: name, Image: id})
	if err != nil {
		return err
	}
	return disk.WriteFile(filepath.Join(s.dir(dirRefs), refFile(name)), append(data, '\n'), 0o644)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxRecord {
		return nil, fmt.Errorf("read %s: %d bytes: %w", path, st.Size(), pod.ErrInvalid)
	}
	return os.ReadFile(path)
}

// readImage reads an image's directory.
func (s *Store) readImage(hex string) (*Image, error) {
	dir := s.imageDir(hex)
	data, err := readLimited(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, recordFile), err)
	}
	if hexOf(r.ID) != hex {
		return nil, fmt.Errorf("read %s: it is the record of %s: %w", dir, r.ID, pod.ErrInvalid)
	}
	img := r.image()
	env, err := readLimited(filepath.Join(dir, envFile))
	switch {
	case errors.Is(err, fs.ErrPermission): // readers that are not root do without
		return img, nil
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(env, &img.Config.Env); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, envFile), err)
	}
	return img, nil
}

func (r *record) image() *Image {
	img := &Image{
		ID: r.ID, Digest: r.Digest, Created: r.Created, Pulled: r.Pulled, OS: r.OS, Arch: r.Arch, Size: r.Size,
		Config: ImageConfig{
			User: r.Config.User, Entrypoint: r.Config.Entrypoint, Cmd: r.Config.Cmd, WorkingDir: r.Config.WorkingDir,
			StopSignal: r.Config.StopSignal, Volumes: r.Config.Volumes, ExposedPorts: r.Config.ExposedPorts, Labels: r.Config.Labels,
		},
		Annotations: r.Annotations, manifests: r.Manifests,
	}
	counted := map[string]bool{}
	for _, l := range r.Layers {
		img.Layers = append(img.Layers, Layer(l))
		if !counted[l.DiffID] {
			img.Size += l.Size
			counted[l.DiffID] = true
		}
	}
	return img
}

// index is all images and references, as they were on disk at one time.
type index struct {
	images map[string]*Image // by hex
	refs   map[string]string // name -> hex
	stamp  stamp
	// damaged is why something was left out; nothing may be swept then.
	damaged error
}

// stamp tells whether directories have changed. A change in the same tick of the
// clock as the look at it could go unseen, so a young stamp is worth nothing.
type stamp struct{ images, refs, at time.Time }

const tick = 100 * time.Millisecond

func (s *Store) stamp() (stamp, error) {
	st := stamp{at: time.Now()}
	for dir, t := range map[string]*time.Time{dirImages: &st.images, dirRefs: &st.refs} {
		info, err := os.Stat(s.dir(dir))
		if err != nil {
			return st, err
		}
		*t = info.ModTime()
	}
	return st, nil
}

func (a stamp) same(b stamp) bool {
	return a.images.Equal(b.images) && a.refs.Equal(b.refs) &&
		a.at.Sub(a.images) > tick && a.at.Sub(a.refs) > tick
}

// load returns the index, from memory if nothing has changed on disk.
func (s *Store) load() (*index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.stamp()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	if s.cached != nil && s.cached.stamp.same(now) {
		return s.cached, nil
	}
	x, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	x.stamp = now
	s.cached = x
	return x, nil
}

// read reads everything. What goes away meanwhile is left out; what cannot be
// read is left out too, with a line in the log: one damaged record must not hide
// the other images.
func (s *Store) read() (*index, error) {
	x := &index{images: map[string]*Image{}, refs: map[string]string{}}
	entries, err := os.ReadDir(s.dir(dirImages))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if len(e.Name()) != 64 || !isHex(e.Name()) {
			continue
		}
		img, err := s.readImage(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			s.log.Error("image left out", "image", e.Name(), "error", err)
			x.damaged = errors.Join(x.damaged, fmt.Errorf("image %s%s: %w", idPrefix, e.Name(), err))
		default:
			x.images[e.Name()] = img
		}
	}
	refs, damaged, err := s.readRefs()
	if err != nil {
		return nil, err
	}
	x.damaged = errors.Join(x.damaged, damaged)
	for _, r := range refs {
		hex := hexOf(r.Image)
		img := x.images[hex]
		if img == nil {
			continue
		}
		x.refs[r.Name] = hex
		if strings.Contains(r.Name, "@") {
			img.Digests = append(img.Digests, r.Name)
		} else {
			img.Tags = append(img.Tags, r.Name)
		}
	}
	for _, img := range x.images {
		slices.Sort(img.Tags)
		slices.Sort(img.Digests)
	}
	return x, nil
}

// readRefs reads all references, those to images that are gone included.
func (s *Store) readRefs() (out []refRecord, damaged, err error) {
	entries, err := os.ReadDir(s.dir(dirRefs))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		data, err := readLimited(filepath.Join(s.dir(dirRefs), e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		r, err := parseRef(data)
		if err == nil && refFile(r.Name) != e.Name() {
			err = fmt.Errorf("it is the record of %s: %w", r.Name, pod.ErrInvalid)
		}
		if err != nil {
			s.log.Error("reference left out", "file", e.Name(), "error", err)
			damaged = errors.Join(damaged, err)
			continue
		}
		out = append(out, r)
	}
	return out, damaged, nil
}

// clone gives a caller an image of its own.
func (img *Image) clone() *Image {
	c := *img
	c.Tags, c.Digests = slices.Clone(img.Tags), slices.Clone(img.Digests)
	return &c
}
