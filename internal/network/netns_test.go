package network

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// TestNeverTheMainThread: it could not end, and would keep a pod's namespace.
func TestNeverTheMainThread(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	for range 2000 {
		all.Add(1)
		onThread(func() {
			defer all.Done()
			if unix.Gettid() == unix.Getpid() {
				t.Error("on the main thread")
			}
		})
	}
	all.Wait()
}

func TestNoNamespace(t *testing.T) {
	t.Parallel()
	file := t.TempDir()
	if isNetNS(file) || isNetNS(file+"/none") || !isNetNS("/proc/self/ns/net") {
		t.Error("isNetNS")
	}
	wants(t, loopbackUp(""), pod.ErrInvalid)
	wants(t, loopbackUp(file+"/none"), nil, "bring up loopback interface: open network namespace")
	_, err := LinkStats(file + "/none")
	wants(t, err, nil, "network stats: open network namespace")
	_, err = Dial(t.Context(), "", 0)
	wants(t, err, pod.ErrInvalid)
	if _, err := LinkStats(""); err != nil { // of our own namespace anybody may ask
		t.Error(err)
	}
}
