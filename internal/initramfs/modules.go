package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"gantry/internal/pod"
)

// mostModule bounds what a module may be when it is unpacked.
const mostModule = 64 << 20

// resolve finds the files of modules by name, each after those that it needs.
func resolve(dir string, names []string) ([]string, error) {
	index, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	var files, missing []string
	for _, name := range names {
		switch file, ok := index.files[canonical(name)]; {
		case ok:
			if files, err = index.add(files, file, nil); err != nil {
				return nil, err
			}
		case !index.builtin[canonical(name)]:
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("the kernel of %s has no module %s: use another kernel: %w", dir, strings.Join(missing, ", "), pod.ErrUnsupported)
	}
	return files, nil
}

// index is what depmod(8) wrote about a kernel's modules.
type index struct {
	files   map[string]string   // name to file
	needs   map[string][]string // file to files
	builtin map[string]bool
}

func readIndex(dir string) (index, error) {
	x := index{files: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		return x, fmt.Errorf("%w: is the kernel's package installed? %w", err, pod.ErrUnavailable)
	}
	if err != nil {
		return x, err
	}
	for line := range strings.Lines(string(deps)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return x, fmt.Errorf("read %s/modules.dep: line %q", dir, line)
		}
		x.files[canonical(file)], x.needs[file] = file, strings.Fields(needs)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return x, err
	}
	for line := range strings.Lines(string(builtin)) {
		x.builtin[canonical(strings.TrimSpace(line))] = true
	}
	return x, nil
}

// add puts a module behind what it needs. The path to it is above, to see circles.
func (x index) add(files []string, file string, above []string) (_ []string, err error) {
	if slices.Contains(above, file) {
		return nil, fmt.Errorf("module %s needs itself", file)
	}
	if !filepath.IsLocal(file) {
		return nil, fmt.Errorf("module %s is not below its directory", file)
	}
	if slices.Contains(files, file) {
		return files, nil
	}
	for _, need := range x.needs[file] {
		if files, err = x.add(files, need, append(above, file)); err != nil {
			return nil, err
		}
	}
	return append(files, file), nil
}

// canonical is the kernel's name of a module.
func canonical(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// plainName is a module's file name without the ending of its compression.
func plainName(base string) string {
	name, _, _ := strings.Cut(base, ".ko")
	return name + ".ko"
}

// readModule reads a module as the kernel takes it from anybody: without compression.
func readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r, err := unpacked(path.Ext(file), data)
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, mostModule+1))
	if err == nil && len(out) > mostModule {
		err = fmt.Errorf("it is larger than %d bytes", mostModule)
	}
	return out, err
}

func unpacked(ext string, data []byte) (io.Reader, error) {
	switch in := bytes.NewReader(data); ext {
	case ".ko":
		return in, nil
	case ".xz":
		return xz.NewReader(in)
	case ".gz":
		return gzip.NewReader(in)
	case ".zst":
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("its compression %q: %w", ext, pod.ErrUnsupported)
}
