package stdio

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Failpoints names the places at which a test may have the server killed: one
// between every two steps of everything that must survive a kill.
var failpoints = []string{
	// a chunk of output, in this order
	"opened", "spliced", "teed", "half-written", "formatted", "written", "half-drained", "drained",
	// a start
	"start-recorded", "start-stdin", "start-stored",
	// a terminal that arrives
	"console-accepted", "console-stored",
	// log rotation
	"reopen-created", "reopen-switched",
	// the end of an app
	"drain-flushed", "drain-forgotten", "drain-retired",
	// the end of its input
	"stdin-marked",
}

// failpointName is the file in the run directory that arms one failpoint for the
// next start of the server: "NAME" or "NAME COUNT", for the COUNTth time that the
// server gets there. Only root can write there, and root can kill the server as
// it is; so the check is in every build, and what is tested is what is shipped.
const failpointName = "failpoint"

// failpoint kills this process, in the way of kill -9. A nil one does nothing.
type failpoint struct {
	name string
	left atomic.Int64
}

// armFailpoint reads the file and removes it, so that the next start is unharmed.
func armFailpoint(dir string) (*failpoint, error) {
	path := filepath.Join(dir, failpointName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	f := &failpoint{}
	count := int64(1)
	if n, err := fmt.Sscan(string(data), &f.name, &count); n == 0 {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	f.left.Store(count)
	for _, name := range failpoints {
		if name == f.name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("unknown failpoint %q: want one of %s", f.name, strings.Join(failpoints, ", "))
}

// is tells that the process is to die at this place, now. It counts.
func (f *failpoint) is(name string) bool {
	return f != nil && f.name == name && f.left.Add(-1) == 0
}

func (f *failpoint) hit(name string) {
	if f.is(name) {
		f.kill()
	}
}

func (f *failpoint) kill() {
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {}
}
