package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// mountTable has mounts that others hide: /data/deep is below a mount on /data that
// another covers.
const mountTable = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /run rw shared:5 - tmpfs tmpfs rw
31 30 0:40 / /run/private rw - tmpfs tmpfs rw
32 30 0:41 / /run/slave rw master:9 - tmpfs tmpfs rw
33 30 0:42 / /run/both rw shared:12 master:9 - tmpfs tmpfs rw
40 22 0:50 / /data rw shared:20 - tmpfs one rw
41 40 0:51 / /data/deep rw - fuse.sshfs two rw
42 40 0:52 / /data rw shared:21 - tmpfs three rw
50 22 0:60 / /a\040space rw - 9p four rw
`

func TestCheckPropagation(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(mountTable), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &Engine{cfg: Config{Proc: proc}}
	for source, want := range map[string]struct{ slave, shared bool }{
		"/":                {true, true},
		"/srv":             {true, true},
		"/run/privately":   {true, true},
		"/run/private":     {false, false},
		"/run/private/dir": {false, false},
		"/run/slave/dir":   {true, false},
		"/run/both":        {true, true},
		"/data/deep/dir":   {true, true},
		"/a space/dir":     {false, false},
	} {
		for p, ok := range map[pod.Propagation]bool{pod.PropagationSlave: want.slave, pod.PropagationShared: want.shared, pod.PropagationPrivate: true, "": true} {
			err := e.checkPropagation(pod.Mount{Source: source, Propagation: p})
			if (err == nil) != ok || err != nil && !errors.Is(err, pod.ErrInvalid) {
				t.Errorf("%s with %q: %v", source, p, err)
			}
		}
	}
	if err := e.idMapRefused("/a space/dir", unix.EINVAL); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "/a space, of type 9p,") {
		t.Error(err)
	}
	if err := e.idMapRefused("/", unix.EMFILE); errors.Is(err, pod.ErrInvalid) {
		t.Error(err)
	}
	for _, bad := range []string{"", "1 2\n", "30 22 0:26 / /run rw - tmpfs tmpfs rw\n"} {
		if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.checkPropagation(pod.Mount{Source: "/", Propagation: pod.PropagationShared}); err == nil || errors.Is(err, pod.ErrInvalid) {
			t.Errorf("table %q: %v", bad, err)
		}
	}
}
