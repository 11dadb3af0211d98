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
	Path  string        `json:"path,omitempty"`
	Errno syscall.Errno `json:"errno,omitempty"`
}

// hostPath looks a path up in a process that may wait for a dead file system for ever.
func hostPath(path string, out io.Writer) error {
	var found HostPath
	real, err := filepath.EvalSymlinks(path)
	if err != nil && !errors.As(err, &found.Errno) {
		return err // a loop of links, say
	}
	if err == nil {
		found.Path = real
	}
	return json.NewEncoder(out).Encode(found)
}
