package initproc

import (
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"syscall"
)

// HostPath is what "gantry-init host-path" prints: the path without symbolic links, or
// why there is none.
type HostPath struct {
	Path  []byte        `json:"path,omitempty"` // names of files need not be UTF-8
	Errno syscall.Errno `json:"errno,omitempty"`
}

// hostPath looks a path up in a process that may wait for a dead file system for ever.
func hostPath(path string, out io.Writer) error {
	var found HostPath
	real, err := filepath.EvalSymlinks(path)
	switch {
	case err == nil:
		found.Path = []byte(real)
	case !errors.As(err, &found.Errno):
		found.Errno = syscall.ELOOP // too many links are counted, not tried
	}
	return json.NewEncoder(out).Encode(found)
}
