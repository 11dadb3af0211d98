package initproc

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry/internal/namespace"
)

// HostPath is what "gantry-init host-path" prints: the path without symbolic links, or
// why there is none.
type HostPath struct {
	Path  []byte        `json:"path,omitempty"` // names of files need not be UTF-8
	Errno syscall.Errno `json:"errno,omitempty"`
	// NoIDMap is why a mount of the path cannot be ID-mapped, if that was asked for.
	NoIDMap syscall.Errno `json:"noIDMap,omitempty"`
}

// hostPath looks a path up in a process that may wait for a dead file system for ever.
// With a user namespace it tries whether a mount of the path can be ID-mapped. If asked to
// it makes a directory where there is nothing.
func hostPath(path, userns string, make bool, out io.Writer) error {
	var found HostPath
	real, err := filepath.EvalSymlinks(path)
	if make && errors.Is(err, fs.ErrNotExist) {
		real, err = makeHostPath(path)
	}
	switch {
	case err == nil:
		found.Path = []byte(real)
		if userns != "" {
			found.NoIDMap = noIDMap(real, userns)
		}
	case !errors.As(err, &found.Errno):
		found.Errno = syscall.ELOOP // too many links are counted, not tried
	}
	return json.NewEncoder(out).Encode(found)
}

func makeHostPath(path string) (string, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return "", unix.ENOENT // what it leads to is somebody else's to make
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func noIDMap(path, userns string) syscall.Errno {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0 // it is gone by now: whoever mounts it finds out
	}
	defer unix.Close(fd)
	return namespace.TryIDMap(fd, userns)
}
