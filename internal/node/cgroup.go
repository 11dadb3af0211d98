package node

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// delegatedCgroup is the cgroup of this program, "" if systemd has not given it away: then
// nobody but systemd may make others in it.
func delegatedCgroup(own, root string) string {
	data, err := os.ReadFile(own)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		dir := filepath.Join(root, path)
		mark := make([]byte, 8)
		n, err := unix.Getxattr(dir, "user.delegate", mark)
		if err == nil && string(mark[:n]) == "1" {
			return dir
		}
	}
	return ""
}
