//go:build e2e

package e2e

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// TestFullDisk makes pods and apps on a disk that is full: the error says so, with
// the stage and its duration, nothing half-made is left, and they are made well
// once there is room.
func TestFullDisk(t *testing.T) {
	guard(t)
	dir, err := os.MkdirTemp("/var/tmp", "e2e-full-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sh(t, "rm -r "+dir) })
	sh(t, "mount -t tmpfs -o size=32m small "+dir)
	t.Cleanup(func() { sh(t, "umount "+dir) })
	n, err := node.Open(t.Context(), node.Options{Root: dir + "/root", Run: dir + "/run", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	spec := appSpec("app")
	spec.Command = []string{"true"}

	sh(t, "dd if=/dev/zero of="+dir+"/ballast bs=64k 2>/dev/null || true; dd if=/dev/zero of="+dir+"/crumbs bs=1 count=4096 2>/dev/null || true")
	other := pod.Pod{Owner: pod.OwnerCLI, Name: "other", Namespaces: p.Namespaces}
	_, podErr := n.CreatePod(t.Context(), other)
	_, appErr := n.CreateApp(t.Context(), p.ID, spec)
	for stage, err := range map[string]error{"create pod: record: ": podErr, "create app: record: ": appErr} {
		t.Log(err)
		if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), stage) || !strings.Contains(err.Error(), "(after ") {
			t.Errorf("%v, want %q and that the disk is full", err, stage)
		}
	}
	if left := sh(t, "ls -A "+dir+"/root/prepare "+dir+"/root/garbage | grep -v : || true"); left != "" {
		t.Errorf("half made: %s", left)
	}
	if pods, err := n.Pods(engine.Filter{}); err != nil || len(pods) != 1 || len(pods[0].Apps) != 0 {
		t.Errorf("there are %+v, %v", pods, err)
	}

	sh(t, "rm "+dir+"/ballast "+dir+"/crumbs")
	made, err := n.CreatePod(t.Context(), other)
	if err == nil {
		_, err = n.CreateApp(t.Context(), made.ID, spec)
	}
	if err == nil {
		err = n.RemovePod(t.Context(), made.ID)
	}
	if err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// TestExitOnAFullDisk: an app ends while there is no room on the disk. How it ended
// is recorded all the same.
func TestExitOnAFullDisk(t *testing.T) {
	guard(t)
	n := watched(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	a := newApp(t, n, p, shell(`trap "exit 7" TERM; echo up; while :; do sleep 0.1; done`))
	start(t, n, a)
	says(t, a, "up")
	s, err := n.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	empty := noRoom(t)
	probe := os.WriteFile("/var/lib/gantry/e2e-probe", make([]byte, 1<<16), 0o600)
	os.Remove("/var/lib/gantry/e2e-probe")
	if !errors.Is(probe, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", probe)
	}
	if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 7 || s.Exit.Reason != pod.ReasonError {
		t.Errorf("the app ended with %+v", s.Exit)
	}
	if err := empty(); err != nil {
		t.Fatal(err)
	}
	if err := n.RemovePod(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
}

// noRoom fills the disk of Gantry's state, until the test ends or asks for room.
func noRoom(t *testing.T) (room func() error) {
	t.Helper()
	ballast, err := os.CreateTemp("/var/lib/gantry", "e2e-ballast-")
	if err != nil {
		t.Fatal(err)
	}
	room = func() error { return errors.Join(ignoreGone(os.Remove(ballast.Name())), ballast.Truncate(0)) }
	t.Cleanup(func() { room(); ballast.Close() })
	fillDisk(t, ballast)
	return room
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// fillDisk gives all room of a disk to a file.
func fillDisk(t *testing.T, f *os.File) {
	t.Helper()
	var size int64
	for step := int64(1 << 30); step >= 4096; {
		switch err := syscall.Fallocate(int(f.Fd()), 0, size, step); {
		case err == nil:
			size += step
		case errors.Is(err, syscall.ENOSPC):
			step /= 2
		case !errors.Is(err, syscall.EINTR):
			t.Fatal(err)
		}
	}
}

// TestPodWithClashingPorts: two mappings of one port of the host are refused before
// anything is made. Other protocols and other addresses are no clash.
func TestPodWithClashingPorts(t *testing.T) {
	guard(t)
	n := openNode(t)
	bad := networkPod("ports")
	bad.Ports = append(bad.Ports, pod.Port{Protocol: pod.TCP, PodPort: 81, HostPort: 18090, HostIP: "127.0.0.1"})
	_, err := n.CreatePod(t.Context(), bad)
	if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "create pod ports: port 18090/tcp at 127.0.0.1 of the host is mapped twice, to ports 80 and 81 of the pod") ||
		!strings.Contains(err.Error(), "(after ") {
		t.Error(err)
	}
	newPod(t, n, func(p *pod.Pod) {
		p.Ports = []pod.Port{
			{Protocol: pod.TCP, PodPort: 80, HostPort: 18090, HostIP: "127.0.0.1"},
			{Protocol: pod.TCP, PodPort: 81, HostPort: 18090, HostIP: "127.0.0.2"},
			{Protocol: pod.UDP, PodPort: 82, HostPort: 18090},
		}
	})
}
