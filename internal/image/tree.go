package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/image/erofs"
	"gantry/internal/unit"
)

const (
	runImages = "images"      // below Run: where trees are mounted
	probeFile = "image-mount" // below Run: what the probe found, until the next boot
)

// Tree tells where an image's tree is mounted, and by which unit. It is a pure
// function of the image and of the store's configuration: nothing is mounted yet.
//
// The mount is the host's one and only of this image. The unit goes by itself
// when nothing needs it any more, so systemd counts who uses the image.
func (s *Store) Tree(img *Image) Tree {
	hex := hexOf(img.ID)
	path := filepath.Join(s.cfg.Run, runImages, hex)
	what, options := s.source(img)
	if s.cfg.Label != "" {
		options += `,context="` + s.cfg.Label + `"`
	}
	name := img.ID
	if len(img.Tags) > 0 {
		name = img.Tags[0]
	}
	return Tree{Path: path, Mount: unit.Unit{
		Name: unit.Mount(path),
		Properties: []unit.Property{
			{Name: "Description", Value: unit.String("Gantry image " + name)},
			{Name: "What", Value: unit.String(what)},
			{Name: "Where", Value: unit.String(path)},
			{Name: "Type", Value: unit.String("erofs")},
			{Name: "Options", Value: unit.String(options)},
			// The directories above are for root only: in them are programs with
			// set-user-ID bits that no user of the host may run.
			{Name: "DirectoryMode", Value: unit.Uint32(0o700)},
			{Name: "StopWhenUnneeded", Value: unit.Bool(true)},
			{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		},
	}}
}

// source is what is mounted, and how. nosuid and nodev are for the mount that
// everyone shares; the overlay of a container has flags of its own.
func (s *Store) source(img *Image) (what, options string) {
	dir := s.imageDir(hexOf(img.ID))
	if s.mode == MountLoop {
		return filepath.Join(dir, flatFile), "ro,nosuid,nodev,loop"
	}
	o := []string{"ro", "nosuid", "nodev", "directio"}
	seen := map[string]bool{}
	for _, l := range img.Layers {
		if !seen[l.DiffID] {
			seen[l.DiffID] = true
			o = append(o, "device="+s.layerPath(hexOf(l.DiffID)))
		}
	}
	return filepath.Join(dir, mergedFile), strings.Join(o, ",")
}

// probeMount finds out whether this kernel mounts EROFS from files, and remembers
// the answer until the next boot.
func (s *Store) probeMount(ctx context.Context) MountMode {
	if mode := s.knownMount(); mode != "" {
		return mode
	}
	mode, err := s.tryMount(ctx)
	if err != nil && mode == MountFile {
		return mode // not root, or no memory: the next one asks again
	}
	if err != nil {
		s.log.Info("images are mounted through loop devices", "reason", err)
	}
	return mode
}

// knownMount is what a probe since the last boot found; "" if there was none.
func (s *Store) knownMount() MountMode {
	data, err := os.ReadFile(filepath.Join(s.cfg.Run, probeFile))
	if m := MountMode(strings.TrimSpace(string(data))); err == nil && (m == MountFile || m == MountLoop) {
		return m
	}
	return ""
}

// saysNever tells whether an error means that this kernel cannot mount a file, and
// not that it could not this time.
func saysNever(err error) bool {
	return errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)
}

// probePatience is how long another program's probe is waited for.
const probePatience = 10 * time.Second

// tryMount mounts a small image over another, as images are, but nowhere. It answers
// MountLoop only where the kernel says that it never will: what fails for another
// reason may work the next time, and images are pulled for what this answers. If
// another program is asking the kernel, its answer is waited for.
func (s *Store) tryMount(ctx context.Context) (MountMode, error) {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	w, err := s.work(ctx, imagePrefix+"probe")
	if err != nil {
		return MountFile, err // a reader: it mounts nothing
	}
	mode := s.knownMount()
	if mode == "" {
		mode, err = s.askKernel(w)
	}
	return mode, errors.Join(err, w.close())
}

func (s *Store) askKernel(w *workspace) (mode MountMode, err error) {
	mode = MountFile
	if err = probe(w); err != nil && saysNever(err) {
		mode = MountLoop
	} else if err != nil {
		return mode, err
	}
	if err := disk.WriteFile(filepath.Join(s.cfg.Run, probeFile), []byte(mode+"\n"), 0o644); err != nil {
		s.log.Debug("answer of the mount probe not kept", "error", err)
	}
	return mode, err
}

func probe(w *workspace) error {
	layer, merged := w.file("layer"), w.file("merged")
	if err := writeProbe(layer, nil); err != nil {
		return err
	}
	if err := writeProbe(merged, []erofs.Device{{Blocks: 2}}); err != nil {
		return err
	}
	return mountDetached(merged, layer)
}

func writeProbe(path string, devices []erofs.Device) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w, err := erofs.NewWriter(f, erofs.Options{Devices: devices})
	if err == nil {
		_, err = w.Finish(erofs.NewDir(0o755))
	}
	return errors.Join(err, f.Close())
}

// mountDetached mounts an image without a place in any namespace; it goes with
// its descriptor.
func mountDetached(what, device string) error {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open erofs: %w", err)
	}
	defer unix.Close(fs)
	for _, set := range []func() error{
		func() error { return unix.FsconfigSetFlag(fs, "ro") },
		func() error { return unix.FsconfigSetFlag(fs, "directio") },
		func() error { return unix.FsconfigSetString(fs, "source", what) },
		func() error { return unix.FsconfigSetString(fs, "device", device) },
		func() error { return unix.FsconfigCreate(fs) },
	} {
		if err := set(); err != nil {
			return fmt.Errorf("mount a file as erofs: %w", err)
		}
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fmt.Errorf("mount a file as erofs: %w", err)
	}
	return unix.Close(mnt)
}
