//go:build e2e

package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hungMount is a file system whose server takes requests and does not answer: who asks
// for a file waits in the kernel, and no signal ends that. Its root can be mounted.
type hungMount struct {
	dir     string
	dev     *os.File
	abort   string // the kernel's file
	waiting atomic.Int32
}

// Requests of the kernel's FUSE protocol, 7.31.
const (
	fuseLookup    = 1
	fuseForget    = 2
	fuseGetattr   = 3
	fuseInit      = 26
	fuseInterrupt = 36
	fuseForgets   = 42
)

func mountHung(t *testing.T) *hungMount {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open /dev/fuse: %v", err)
	}
	m := &hungMount{dir: t.TempDir(), dev: os.NewFile(uintptr(fd), "fuse")}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("trial-hung", m.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mount a FUSE file system: %v", err)
	}
	go m.serve()
	var st unix.Stat_t
	if err := unix.Stat(m.dir, &st); err != nil {
		t.Fatal(err)
	}
	m.abort = fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", unix.Minor(st.Dev))
	t.Cleanup(func() {
		m.release()
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return m
}

// release gives up serving: all who wait get an error.
func (m *hungMount) release() {
	_ = os.WriteFile(m.abort, []byte("1"), 0) // at the second time it is not there
}

func (m *hungMount) serve() {
	defer m.dev.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := m.dev.Read(buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		m.handle(buf[:n])
	}
}

func (m *hungMount) handle(request []byte) {
	opcode, unique := binary.LittleEndian.Uint32(request[4:]), binary.LittleEndian.Uint64(request[8:])
	switch opcode {
	case fuseInit:
		out := make([]byte, 64)
		binary.LittleEndian.PutUint32(out, 7)
		binary.LittleEndian.PutUint32(out[4:], 31)
		binary.LittleEndian.PutUint32(out[12:], 1<<18) // lookups side by side
		binary.LittleEndian.PutUint32(out[20:], 1<<16) // max_write
		m.answer(unique, 0, out)
	case fuseGetattr:
		out := make([]byte, 16+88)
		binary.LittleEndian.PutUint64(out, 1)            // valid for a second
		binary.LittleEndian.PutUint64(out[16:], 1)       // inode
		binary.LittleEndian.PutUint32(out[76:], 0o40755) // mode
		binary.LittleEndian.PutUint32(out[80:], 2)       // links
		m.answer(unique, 0, out)
	case fuseLookup:
		m.waiting.Add(1)
	case fuseForget, fuseForgets, fuseInterrupt:
	default:
		m.answer(unique, unix.ENOSYS, nil)
	}
}

func (m *hungMount) answer(unique uint64, errno unix.Errno, data []byte) {
	out := make([]byte, 16, 16+len(data))
	binary.LittleEndian.PutUint32(out, uint32(16+len(data)))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	m.dev.Write(append(out, data...)) // of a request that is gone nobody wants to hear
}

// TestHungFilesystem: processes that wait for a dead file system cannot die. The pod is
// taken down all the same, and what is left of it goes when the file system does.
func TestHungFilesystem(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	for name, change := range map[string]func(*cri.PodSandboxConfig){
		"own-pids": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_CONTAINER
		},
		"pods-pids":   func(*cri.PodSandboxConfig) {},
		"on-the-host": func(c *cri.PodSandboxConfig) { onHost(c) },
		"fly":         func(c *cri.PodSandboxConfig) { asFly(c, "fly") },
	} {
		t.Run(name, func(t *testing.T) {
			config := e.podConfig(t, "hung-"+name)
			change(config)
			hungPod(t, e, config)
		})
	}
}

func hungPod(t *testing.T, e engine, podConfig *cri.PodSandboxConfig) {
	m := mountHung(t)
	p := e.run(t, podConfig)
	config := containerConfig("app", "echo begun; cat /hung/one & cat /hung/two")
	config.Mounts = []*cri.Mount{{HostPath: m.dir, ContainerPath: "/hung"}}
	c := p.create(t, config).start(t)
	other := p.runScript(t, "other", "sleep 1000000")
	eventually(t, 20*time.Second, "two processes wait for the file system", func() bool { return m.waiting.Load() >= 2 })
	cgroup := strings.TrimSpace(sh(t, "find /sys/fs/cgroup -type d -name 'gantry-app-"+c.id+".service'"))

	began := time.Now()
	_, err := e.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"cat", "/hung/three"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(began) > patience(10*time.Second) {
		t.Errorf("a probe that hangs: %v, after %s", err, time.Since(began))
	}
	began = time.Now()
	c.stop(t, 1)
	s := c.status(t)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason != "Unkillable" || !strings.Contains(s.Message, "cat") {
		t.Errorf("the container is %s, %d, %s: %q", s.State, s.ExitCode, s.Reason, s.Message)
	}
	t.Logf("stopped in %s: %s", time.Since(began), s.Message)
	if got := texts(c.logFile(t), "stdout"); got != "begun\n" {
		t.Errorf("the log has %q", got)
	}
	if s := other.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %s", s.State)
	}
	sh(t, "systemctl restart gantry-cri.service")
	e = dial(t)
	p.engine, c.engine = e, e
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "Unkillable" {
		t.Errorf("after a restart the container is %s, %s", s.State, s.Reason)
	}
	began = time.Now()
	if _, err := e.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if s := p.status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod is %s", s.State)
	}
	for _, gone := range []container{c, other} { // as kubelet's garbage collection does
		if _, err := e.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: gone.id}); err != nil {
			t.Fatal(err)
		}
	}
	p.remove(t)
	took := time.Since(began)
	t.Logf("the pod was stopped and removed in %s", took)
	if took > patience(6*time.Second) {
		t.Errorf("to stop and remove the pod took %s", took)
	}
	if left, err := filepath.Glob("/sys/class/net/veth*"); err != nil || len(left) > 0 {
		t.Errorf("interfaces are left: %v, %v", left, err)
	}
	if procs, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs")); err != nil || len(procs) == 0 {
		t.Errorf("nothing hangs: %q, %v", procs, err)
	}
	next := e.run(t, e.podConfig(t, "next"))
	next.runScript(t, "app", "exit 3").wait(t, 20*time.Second)

	m.release()
	eventually(t, 3*time.Minute, "all of the container is gone", func() bool {
		_, err := os.Stat(cgroup)
		return errors.Is(err, os.ErrNotExist)
	})
}

// TestHungCommandOfFly: no runtime stands between gantry-cri and a command that hangs.
// Its caller is answered all the same, and what is left of it goes with the hang.
func TestHungCommandOfFly(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	m := mountHung(t)
	p := e.run(t, e.flyConfig(t, "fly"))
	config := containerConfig("app", "sleep 1000000")
	config.Mounts = []*cri.Mount{{HostPath: m.dir, ContainerPath: "/hung"}}
	c := p.create(t, config).start(t)
	groups := func() string {
		return sh(t, "find /sys/fs/cgroup -path '*/gantry-app-"+c.id+".service/exec-*' -type d")
	}
	limit := patience(3 * time.Second) // enough to come as far as the hang
	began := time.Now()
	var probes sync.WaitGroup
	for i := range 3 {
		probes.Go(func() {
			command := []string{"cat", fmt.Sprintf("/hung/%d", i)}
			_, err := e.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: command, Timeout: int64(limit.Seconds())})
			if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took > limit+patience(10*time.Second) {
				t.Errorf("a probe that hangs: %v, after %s", err, took)
			}
		})
	}
	probes.Wait()
	if got := len(strings.Fields(groups())); got != 3 {
		t.Errorf("%d cgroups of commands are there, want those of the 3 that hang", got)
	}
	if out, _, code := c.exec(t, "echo", "well"); out != "well\n" || code != 0 {
		t.Errorf("another command: %q, %d", out, code)
	}
	m.release()
	eventually(t, 20*time.Second, "the commands that hung are gone", func() bool { return groups() == "" })
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s.State)
	}
}

// TestHungDaemonOfThePod: what serves the file system is in the same pod, and dies with
// it: who waits for it is let go.
func TestHungDaemonOfThePod(t *testing.T) {
	guard(t)
	e := dial(t)
	m := mountHung(t)
	p := e.run(t, e.podConfig(t, "daemon"))
	config := containerConfig("app", "cat /hung/file")
	config.Mounts = []*cri.Mount{{HostPath: m.dir, ContainerPath: "/hung"}}
	c := p.create(t, config).start(t)
	eventually(t, 20*time.Second, "a process waits for the file system", func() bool { return m.waiting.Load() >= 1 })
	time.AfterFunc(3*time.Second, m.release)
	began := time.Now()
	if _, err := e.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason == "Unkillable" {
		t.Errorf("after %s the container is %s, %d, %s: %q", time.Since(began), s.State, s.ExitCode, s.Reason, s.Message)
	}
}

// TestHungHostPath: the path of a volume is below a mount that hangs. The create fails,
// a second one does not pile up on the first, and gantry-cri can be started again.
func TestHungHostPath(t *testing.T) {
	guard(t)
	needsGantry(t) // the peers look such a path up themselves
	e := dial(t)
	m := mountHung(t)
	p := e.run(t, e.podConfig(t, "below"))
	config := containerConfig("app", "exit 0")
	config.Mounts = []*cri.Mount{{HostPath: m.dir + "/volume", ContainerPath: "/hung"}}
	for range 2 {
		_, err := e.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "has not answered") {
			t.Errorf("a volume of a dead file system: %v", err)
		}
	}
	if n := m.waiting.Load(); n != 1 {
		t.Errorf("%d lookups wait, want 1", n)
	}
	p.runScript(t, "other", "exit 3").wait(t, 20*time.Second)
	began := time.Now()
	sh(t, "systemctl restart gantry-cri.service")
	if took := time.Since(began); took > patience(10*time.Second) {
		t.Errorf("a restart took %s", took)
	}
}
