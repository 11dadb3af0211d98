package initproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// thaw lets the processes of a cgroup go on, whoever stopped them. It has perhaps gone.
func thaw(cgroup string) error {
	if !filepath.IsAbs(cgroup) || filepath.Clean(cgroup) != cgroup {
		return fmt.Errorf("thaw %q: want a cgroup's path, from its root on", cgroup)
	}
	err := os.WriteFile(filepath.Join(cgroupRoot, cgroup, "cgroup.freeze"), []byte("0"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
