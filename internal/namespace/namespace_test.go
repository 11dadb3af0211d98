package namespace

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The directory holds the pod's /dev/shm: users of the host have no way into it,
// and the pod's root has, also where that is another user.
func TestDirectoryIsThePods(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root gives a directory away")
	}
	mapped := []Map{{Container: 0, Host: 700000, Length: 65536}}
	for want, s := range map[uint32]Spec{0: {}, 700000: {Kinds: []Kind{User}, UIDs: mapped, GIDs: mapped}} {
		s.Dir = filepath.Join(t.TempDir(), "pods", "a")
		for range 2 { // a second time, after a start that was killed
			if err := s.makeDir(); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(s.Dir)
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			if info.Mode().Perm() != 0o700 || st.Uid != want || st.Gid != want {
				t.Errorf("mode %o of %d:%d, want 700 of %d", info.Mode().Perm(), st.Uid, st.Gid, want)
			}
		}
	}
}
