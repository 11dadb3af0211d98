// Package initramfs composes what a virtual machine boots into: one program as PID 1 and
// the modules that the distribution's kernel needs to find its disks, its network and
// its host. There is no shell and no other program in it. The kernel is the distribution's.
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/cavaliergopher/cpio"

	"gantry/internal/pod"
)

// ModuleList names, in an initramfs, the modules to load, one path a line, in order.
const ModuleList = "modules"

// Spec says what goes into an initramfs.
type Spec struct {
	Init    string   // the program on the host
	Modules string   // the kernel's modules: /lib/modules/RELEASE
	Load    []string // names of the modules to load; what is built into the kernel is left out
}

// Write composes an initramfs: the same bytes for the same input. It is not compressed:
// the kernel unpacks nothing faster than that.
func Write(w io.Writer, s Spec) error {
	wanted, err := resolve(s.Modules, s.Load)
	if err != nil {
		return fmt.Errorf("compose initramfs: %w", err)
	}
	a := archive{w: cpio.NewWriter(w), made: map[string]bool{}}
	err = a.fill(s, wanted)
	if err == nil {
		err = a.w.Close()
	}
	if err != nil {
		return fmt.Errorf("compose initramfs: %w", err)
	}
	return nil
}

type archive struct {
	w    *cpio.Writer
	made map[string]bool
}

func (a *archive) fill(s Spec, modules []string) error {
	// Mount points; /dev is made by the kernel where devtmpfs mounts itself.
	for _, dir := range []string{"dev", "proc", "sys", "run"} {
		if err := a.directory(dir); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, m := range modules {
		data, err := readModule(path.Join(s.Modules, m))
		if err != nil {
			return fmt.Errorf("module %s: %w", m, err)
		}
		name := path.Join("lib/modules", plainName(path.Base(m)))
		if err := a.file(name, 0o644, data); err != nil {
			return err
		}
		list.WriteString("/" + name + "\n")
	}
	if err := a.file(ModuleList, 0o644, []byte(list.String())); err != nil {
		return err
	}
	program, err := os.ReadFile(s.Init)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: is Gantry installed whole? %w", err, pod.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	return a.file("init", 0o755, program)
}

func (a *archive) directory(name string) error {
	if name == "." || a.made[name] {
		return nil
	}
	if err := a.directory(path.Dir(name)); err != nil {
		return err
	}
	a.made[name] = true
	return a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, Links: 2})
}

func (a *archive) file(name string, mode cpio.FileMode, data []byte) error {
	if err := a.directory(path.Dir(name)); err != nil {
		return err
	}
	if a.made[name] {
		return fmt.Errorf("two files are called %s", name)
	}
	a.made[name] = true
	if err := a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Links: 1, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := a.w.Write(data)
	return err
}
