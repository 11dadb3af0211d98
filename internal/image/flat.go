package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gantry/internal/disk"
	"gantry/internal/image/erofs"
)

// writeFlat writes an image that needs no devices: the layers one behind the
// other, and the tree over them. Kernels that cannot mount an image over several
// files get it through one loop device. It takes the disk space of the layers
// again, unless the file system can share blocks.
func (s *Store) writeFlat(path, id string, m *merged) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := erofs.NewWriter(f, erofs.Options{UUID: uuid("flat", id)})
	if err != nil {
		return 0, err
	}
	at := make([]uint32, len(m.layers))
	for i, hex := range m.layers {
		if at[i], err = s.appendLayer(w, hex, m.devices[i].Blocks); err != nil {
			return 0, fmt.Errorf("layer %s: %w", hex, err)
		}
	}
	flatten(m.root, at, map[*erofs.Node]bool{})
	return finish(f, w, m.root)
}

func (s *Store) appendLayer(w *erofs.Writer, hex string, blocks uint32) (uint32, error) {
	f, err := os.Open(s.layerPath(hex))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return w.Append(f, blocks)
}

// flatten moves data from devices into the image itself.
func flatten(n *erofs.Node, at []uint32, seen map[*erofs.Node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	if n.IsRegular() && n.Device > 0 {
		n.Block += at[n.Device-1]
		n.Device = 0
	}
	for _, child := range n.Children {
		flatten(child, at, seen)
	}
}

// EnsureTree makes sure that what Tree says can be mounted: files may be gone, and a
// machine that was booted with another kernel can need some that the pull had no reason
// to make.
func (s *Store) EnsureTree(ctx context.Context, id string) (err error) {
	hex := hexOf(id)
	path := filepath.Join(s.imageDir(hex), flatFile)
	img, err := s.Image(id)
	if err == nil {
		err = s.Whole(img)
	}
	if err != nil || s.mode != MountLoop || disk.Exists(path) {
		return err
	}
	w, err := s.work(ctx, imagePrefix+hex)
	if err != nil {
		return fmt.Errorf("prepare image %s for a loop device: %w", img.ID, err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if disk.Exists(path) {
		return nil
	}
	var hexes []string
	for _, l := range img.Layers {
		hexes = append(hexes, hexOf(l.DiffID))
	}
	m, err := s.loadMerged(hexes)
	if err == nil {
		defer m.budget.close()
		_, err = s.writeFlat(w.file(flatFile), img.ID, m)
	}
	if err == nil {
		err = disk.Move(w.file(flatFile), path)
	}
	if err != nil {
		return fmt.Errorf("prepare image %s for a loop device: %w", img.ID, explain(err))
	}
	return nil
}
