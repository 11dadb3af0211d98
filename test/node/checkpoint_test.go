//go:build e2e

package node

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCheckpoint writes down a container that counts, keeps a file and holds a lock. It
// goes on as if nothing had been, also when who writes it is killed half way.
func TestCheckpoint(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "checkpoint"))
	config := containerConfig("app", "echo kept >/kept; rm /bin/vi; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
	config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	config.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	c := p.create(t, config).start(t)
	eventually(t, 10*time.Second, "it counts", func() bool { return len(c.logFile(t)) > 3 })
	dir, err := os.MkdirTemp("/var/tmp", "trial-checkpoint-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	to := filepath.Join(dir, "checkpoint.tar")
	request := &cri.CheckpointContainerRequest{ContainerId: c.id, Location: to}
	if _, err := e.CheckpointContainer(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	checkArchive(t, to)
	if _, err := e.CheckpointContainer(t.Context(), request); err == nil {
		t.Error("an archive was overwritten")
	}
	goesOn(t, c)
	if os.Getenv("GANTRY_E2E_CRI") == "" {
		killedCheckpoint(t, c, dir)
		sh(t, "gantry gc") // what gantry-cri was killed over
	}
	c.stop(t, 1)
	for _, bad := range []*cri.CheckpointContainerRequest{{ContainerId: c.id, Location: to + "2"}, {ContainerId: "none", Location: to + "2"}} {
		if _, err := e.CheckpointContainer(t.Context(), bad); err == nil {
			t.Errorf("a checkpoint of %s, which does not run", bad.ContainerId)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("beside the archive there are %v, %v", left, err)
	}
}

func checkArchive(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the archive is %v, %v", st.Mode(), err)
	}
	found := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = true
		if h.Name == "deleted.files" {
			if list, err := io.ReadAll(r); err != nil || strings.TrimSpace(string(list)) != `["bin/vi"]` {
				t.Errorf("deleted are %s, %v", list, err)
			}
		}
		if h.Name == "rootfs-diff.tar" {
			inner := tar.NewReader(r)
			var names []string
			for h, err := inner.Next(); err == nil; h, err = inner.Next() {
				names = append(names, h.Name)
			}
			if !slices.Contains(names, "kept") {
				t.Errorf("of the file system there are %q", names)
			}
		}
	}
	for _, name := range []string{"spec.dump", "config.dump", "checkpoint/inventory.img", "rootfs-diff.tar", "deleted.files"} {
		if !found[name] {
			t.Errorf("the archive lacks %s", name)
		}
	}
}

// goesOn waits for more of what a container counts.
func goesOn(t *testing.T, c container) {
	t.Helper()
	n := len(c.logFile(t))
	defer func() {
		if t.Failed() {
			t.Log(c.condition(t))
		}
	}()
	eventually(t, 10*time.Second, "it counts on", func() bool { return len(c.logFile(t)) > n+3 })
	inOrder(t, c.logFile(t))
}

// condition is what the container's processes do.
func (c container) condition(t *testing.T) string {
	t.Helper()
	return sh(t, fmt.Sprintf(`unit=gantry-app-%s.service; systemctl status --no-pager -n 20 $unit
		cd /sys/fs/cgroup$(systemctl show -P ControlGroup $unit) && head cgroup.freeze cgroup.events
		for p in $(cat cgroup.procs); do head -20 /proc/$p/status; cat /proc/$p/wchan /proc/$p/syscall; echo; done 2>&1 || true`, c.id))
}

// killedCheckpoint kills what makes a checkpoint, at several moments. Without gantry-cri the
// app goes on. So it does without criu, unless that is killed while its code is in the app's
// processes: then they end, and that is told.
func killedCheckpoint(t *testing.T, c container, dir string) {
	t.Helper()
	unit := "gantry-checkpoint-" + c.id + ".service"
	const server, writer = "systemctl kill -s KILL --kill-whom=main gantry-cri.service", "systemctl kill -s KILL "
	for _, round := range []struct {
		after time.Duration
		kill  string
	}{
		{100 * time.Millisecond, server},
		{time.Second, server},
		{0, writer + unit},
		{400 * time.Millisecond, server + "; " + writer + unit},
		{100 * time.Millisecond, writer + unit},
		{time.Second, writer + unit},
	} {
		done := make(chan error, 1)
		go func() {
			_, err := c.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{ContainerId: c.id, Location: filepath.Join(dir, "killed")})
			done <- err
		}()
		eventually(t, 10*time.Second, "the checkpoint has begun", func() bool {
			return exec.Command("systemctl", "is-active", "-q", unit).Run() == nil || strings.Contains(sh(t, "systemctl show -P ActiveState "+unit), "activating") || len(done) > 0
		})
		pause(round.after)
		_ = exec.Command("sh", "-c", round.kill).Run() // it may have ended
		if err := <-done; err == nil {
			if err := os.Remove(filepath.Join(dir, "killed")); err != nil {
				t.Error(err)
			}
		}
		eventually(t, 30*time.Second, "the unit is gone", func() bool { return sh(t, "systemctl show -P ActiveState "+unit) == "inactive" })
		n := len(c.logFile(t))
		ended := func() *cri.ContainerStatus {
			resp, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.id})
			if err != nil || resp.Status.State != cri.ContainerState_CONTAINER_EXITED {
				return nil
			}
			return resp.Status
		}
		eventually(t, 30*time.Second, "it counts on, or has ended", func() bool { return len(c.logFile(t)) > n+3 || ended() != nil })
		if s := ended(); s != nil && strings.Contains(round.kill, unit) {
			t.Logf("criu was killed in the app, which ended with it: %d, %s: %s", s.ExitCode, s.Reason, s.Message)
			if s.ExitCode <= 128 || s.Reason != "Error" {
				t.Errorf("its end is %v", s)
			}
			return
		}
		goesOn(t, c)
	}
}
