//go:build e2e

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// TestEachIsolator: what the CRI can do with a container it can whatever isolates that.
func TestEachIsolator(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	t.Run("oci", func(t *testing.T) { e.throughCRI(t, e.podConfig(t, "each"), "oci", 8096) })
	t.Run("fly", func(t *testing.T) { e.throughCRI(t, e.flyConfig(t, "fly"), "", 8096) })
}

// TestMachineThroughCRI is the same in a virtual machine.
func TestMachineThroughCRI(t *testing.T) {
	guard(t)
	needsGantry(t)
	withMachines(t)
	e := dial(t)
	config := e.podConfig(t, "each")
	// It has a kernel of its own, all of which a pod may change.
	config.Linux.Sysctls = map[string]string{"vm.max_map_count": "262199", "net.ipv4.ip_unprivileged_port_start": "81"}
	e.throughCRI(t, config, "kvm", 8096)
}

// throughCRI tries all that can be done with containers, in one pod.
func (e engine) throughCRI(t *testing.T, config *cri.PodSandboxConfig, handler string, port int32) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := e.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err == nil {
		_, err = events.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	made, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p := pod{e, made.PodSandboxId, config}
	t.Cleanup(func() { p.remove(t) })
	echo := containerConfig("echo", fmt.Sprintf("mkdir /web; echo from the pod >/web/index.html; httpd -h /web -p 127.0.0.1:%d; while read line; do echo got $line; done; exit 42", port))
	echo.Stdin, echo.StdinOnce = true, true
	c := p.create(t, echo).start(t)
	sized := containerConfig("sized", "while read line; do stty size; done")
	sized.Stdin, sized.Tty = true, true
	terminal := p.create(t, sized).start(t)

	for name, want := range config.GetLinux().GetSysctls() {
		if out, _, _ := c.exec(t, "cat", "/proc/sys/"+strings.ReplaceAll(name, ".", "/")); out != want+"\n" {
			t.Errorf("%s is %q, want %s", name, out, want)
		}
	}
	t.Run("exec", func(t *testing.T) { e.execsInEach(t, c) })
	t.Run("terminals", func(t *testing.T) { terminal.resizes(t) })
	t.Run("ports", func(t *testing.T) {
		p.forwards(t, port, port+1, "from the pod")
		p.forwardsByWebSocket(t, port, port+1, "from the pod")
	})
	t.Run("limits", func(t *testing.T) { c.newLimits(t) })
	t.Run("statistics", func(t *testing.T) { p.counted(t, c) })
	t.Run("metrics", func(t *testing.T) { p.measured(t, c) })
	t.Run("logs", func(t *testing.T) { c.rotates(t) })
	t.Run("attach and its end", func(t *testing.T) { c.talks(t, "got one\ngot two\n", 42) })
	seen := map[cri.ContainerEventType]bool{}
	heard := time.AfterFunc(patience(20*time.Second), cancel)
	defer heard.Stop()
	for !seen[cri.ContainerEventType_CONTAINER_STOPPED_EVENT] {
		ev, err := events.Recv()
		if err != nil {
			t.Fatalf("of the container was heard %v: %v", seen, err)
		}
		if ev.ContainerId == c.id {
			seen[ev.ContainerEventType] = true
		}
	}
	if !seen[cri.ContainerEventType_CONTAINER_CREATED_EVENT] || !seen[cri.ContainerEventType_CONTAINER_STARTED_EVENT] {
		t.Errorf("of the container was heard %v", seen)
	}
}

func (e engine) execsInEach(t *testing.T, c container) {
	if out, errOut, code := c.exec(t, "sh", "-c", "echo out; echo err >&2; exit 7"); out != "out\n" || errOut != "err\n" || code != 7 {
		t.Errorf("exec: %q, %q, %d", out, errOut, code)
	}
	conn := c.session(t, &cri.ExecRequest{Cmd: []string{"sh", "-c", "cat; echo end >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
	s := openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr)
	text := strings.Repeat("0123456789abcdef\n", 2000)
	go func() {
		io.WriteString(s[1], text)
		s[1].Close()
	}()
	if got := readStream(t, s[2]); got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
	if got := readStream(t, s[3]) + readStream(t, s[0]); !strings.HasPrefix(got, "end\n") || !strings.Contains(got, `"message":"5"`) {
		t.Errorf("stderr and result: %s", got)
	}
	conn = c.session(t, &cri.ExecRequest{Cmd: []string{"sh", "-c", "while read line; do stty size; done"}, Stdin: true, Stdout: true, Tty: true})
	sizes(t, openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeResize))
}

// resizes attaches to the terminal of a container that tells its size.
func (c container) resizes(t *testing.T) {
	t.Helper()
	resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	sizes(t, openStreams(t, openSession(t, resp.Url, remotecommand.StreamProtocolV4Name),
		remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeResize))
}

// sizes changes the size of a terminal, on which a script tells it for each line.
func sizes(t *testing.T, s []httpstream.Stream) {
	t.Helper()
	said := make(chan byte, 1<<16)
	go func() {
		b := make([]byte, 1)
		for n, err := s[2].Read(b); err == nil; n, err = s[2].Read(b) {
			if n == 1 {
				said <- b[0]
			}
		}
	}()
	for _, size := range []remotecommand.TerminalSize{{Width: 132, Height: 43}, {Width: 71, Height: 17}} {
		if err := json.NewEncoder(s[3]).Encode(size); err != nil {
			t.Fatal(err)
		}
		want, got := fmt.Sprintf("%d %d\r\n", size.Height, size.Width), ""
		eventually(t, 20*time.Second, "the terminal says "+want, func() bool {
			io.WriteString(s[1], "\n") // again: the size is on its way beside it
			for len(said) > 0 {
				got += string(<-said)
			}
			return strings.Contains(got, want)
		})
	}
}

func (c container) newLimits(t *testing.T) {
	if _, err := c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 55500, CpuPeriod: 100000},
	}); err != nil {
		t.Fatal(err)
	}
	if got := c.status(t).Resources.GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuQuota() != 55500 {
		t.Errorf("read back: %v", got)
	}
	out, _, _ := c.exec(t, "sh", "-c", "cd /sys/fs/cgroup/$(sed 's/^0:://; s/exec-.*//' /proc/self/cgroup); cat memory.max cpu.max")
	if out != "100663296\n55500 100000\n" {
		t.Errorf("in force: %q", out)
	}
}

func (p pod) counted(t *testing.T, c container) {
	stats, err := c.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: c.id})
	if err != nil || stats.Stats.Memory.GetWorkingSetBytes().GetValue() == 0 || stats.Stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || stats.Stats.WritableLayer.GetUsedBytes() == nil {
		t.Errorf("statistics: %v, %v", stats, err)
	}
	list, err := c.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.id}})
	if err != nil || len(list.GetStats()) != 1 || len(list.Stats[0].Linux.GetContainers()) != 2 || list.Stats[0].Linux.Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("of the pod: %v, %v", list, err)
	}
}

// measured wants the families that every isolator can have; what others it has is logged.
func (p pod) measured(t *testing.T, c container) {
	list, err := c.ListPodSandboxMetrics(t.Context(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list.PodMetrics {
		for _, of := range m.ContainerMetrics {
			if of.ContainerId != c.id {
				continue
			}
			for _, s := range of.Metrics {
				names = append(names, s.Name)
			}
		}
	}
	slices.Sort(names)
	t.Logf("%d families: %q", len(slices.Compact(slices.Clone(names))), slices.Compact(slices.Clone(names)))
	for _, want := range []string{
		"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_usage_bytes", "container_processes", "container_threads",
		"container_spec_memory_limit_bytes", "container_spec_cpu_quota", "container_fs_usage_bytes", "container_start_time_seconds", "container_oom_events_total",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %s", want)
		}
	}
}

func (c container) rotates(t *testing.T) {
	path := c.status(t).LogPath
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	if !exists(path) {
		t.Error("the log was not opened again")
	}
}
