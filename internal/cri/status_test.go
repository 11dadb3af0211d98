package cri

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri/critest"
	"gantry/internal/pod"
)

func at(nanos int64) time.Time { return time.Unix(1_700_000_000, nanos) }

func somePod() pod.PodStatus {
	return pod.PodStatus{
		Pod: &pod.Pod{
			ID: "p", Name: "web", Namespace: "default", UID: "u", Attempt: 1, Created: at(1), Handler: "oci",
			Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
			Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
		},
		Ready: true, IPs: []string{"10.0.0.1", "fd00::1", "fd00::2"},
	}
}

func someApp() pod.AppStatus {
	return pod.AppStatus{
		App: &pod.App{
			ID: "a", Pod: "p", Name: "nginx", Attempt: 2, Created: at(5),
			Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
			Image:    pod.Image{ID: imageA, Ref: "docker.io/library/nginx@sha256:1", Name: "nginx:1.27"},
			Mounts:   []pod.Mount{{Path: "/dev/termination-log", HostPath: "/var/lib/kubelet/x", Source: "/mnt/kubelet/x", Propagation: pod.PropagationPrivate}},
			LogPath:  "/var/log/pods/p/nginx/2.log",
			Security: pod.Security{UID: 33, GID: 34, Groups: []uint32{35}}, StopSignal: 3,
			Resources: pod.Resources{Memory: 1},
		},
		Current: pod.Resources{Memory: 1 << 20, CPUShares: 1024},
	}
}

func TestPodStatus(t *testing.T) {
	t.Parallel()
	p := somePod()
	meta := &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u", Attempt: 1}
	want := &runtimeapi.PodSandboxStatus{
		Id: "p", Metadata: meta, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 1_700_000_000_000_000_001,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::1"}, {Ip: "fd00::2"}}},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		Labels:  p.Labels, Annotations: p.Annotations, RuntimeHandler: "oci",
	}
	if got := FromPodStatus(p); !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	wantLine := &runtimeapi.PodSandbox{
		Id: "p", Metadata: meta, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 1_700_000_000_000_000_001,
		Labels: p.Labels, Annotations: p.Annotations, RuntimeHandler: "oci",
	}
	if got := FromPod(p); !proto.Equal(got, wantLine) {
		t.Errorf("got %v\nwant %v", got, wantLine)
	}
	p.Ready, p.Namespaces.Network = false, pod.NamespaceNode
	got := FromPodStatus(p)
	if got.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || got.Network == nil || got.Network.Ip != "" {
		t.Errorf("stopped pod of the host's network: %v", got)
	}
}

func TestAppStatus(t *testing.T) {
	t.Parallel()
	base := &runtimeapi.ContainerStatus{
		Id: "a", Metadata: &runtimeapi.ContainerMetadata{Name: "nginx", Attempt: 2}, CreatedAt: 1_700_000_000_000_000_005,
		Image: &runtimeapi.ImageSpec{Image: "nginx:1.27", UserSpecifiedImage: "nginx:1.27"}, ImageId: imageA, ImageRef: "docker.io/library/nginx@sha256:1",
		Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
		Mounts:     []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/x"}},
		LogPath:    "/var/log/pods/p/nginx/2.log",
		Resources:  &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, CpuShares: 1024}},
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 33, Gid: 34, SupplementalGroups: []int64{35}}},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGQUIT,
	}
	const zero = 1_700_000_000_000_000_000
	for name, c := range map[string]struct {
		change func(*pod.AppStatus)
		want   func(*runtimeapi.ContainerStatus)
	}{
		"prepared": {
			func(a *pod.AppStatus) { a.Phase = pod.Prepared },
			func(s *runtimeapi.ContainerStatus) {},
		},
		"running": {
			func(a *pod.AppStatus) { a.Phase, a.Started = pod.Running, at(6) },
			func(s *runtimeapi.ContainerStatus) {
				s.State, s.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, zero+6
			},
		},
		"ended well": {
			func(a *pod.AppStatus) {
				a.Phase, a.Started, a.Finished = pod.Exited, at(6), at(7)
				a.Exit = &pod.Exit{Reason: pod.ReasonCompleted, Finished: at(7)}
			},
			func(s *runtimeapi.ContainerStatus) {
				s.State, s.StartedAt, s.FinishedAt, s.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, zero+6, zero+7, "Completed"
			},
		},
		"out of memory": {
			func(a *pod.AppStatus) {
				a.Phase, a.Started, a.Finished = pod.Exited, at(6), at(7)
				a.Exit = &pod.Exit{Code: 137, Signal: 9, Reason: pod.ReasonOOMKilled, Message: "memory limit", Finished: at(7)}
			},
			func(s *runtimeapi.ContainerStatus) {
				s.State, s.StartedAt, s.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, zero+6, zero+7
				s.ExitCode, s.Reason, s.Message = 137, "OOMKilled", "memory limit"
			},
		},
		"never started, and nobody knows when": {
			func(a *pod.AppStatus) { a.Phase = pod.Exited },
			func(s *runtimeapi.ContainerStatus) {
				s.State, s.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, zero+6
				s.ExitCode, s.Reason = 255, "Unknown"
			},
		},
		"unknown": {
			func(a *pod.AppStatus) { a.Phase = pod.Unknown },
			func(s *runtimeapi.ContainerStatus) { s.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := someApp()
			c.change(&a)
			want := proto.CloneOf(base)
			c.want(want)
			got := FromAppStatus(a)
			if !proto.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
			if line := FromApp(a); line.State != got.State || line.ImageId != got.ImageId || line.PodSandboxId != "p" || line.CreatedAt != got.CreatedAt {
				t.Errorf("the list says %v, the status %v", line, got)
			}
		})
	}
}

func TestImageWithoutAName(t *testing.T) {
	t.Parallel()
	a := someApp()
	a.Image = pod.Image{ID: imageA}
	if s := FromAppStatus(a); s.Image.Image != imageA || s.ImageRef != imageA {
		t.Errorf("got %v, %v", s.Image, s.ImageRef)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	one, two := somePod(), somePod()
	two.Pod = &pod.Pod{ID: "q1"}
	two.Ready = false
	running, ended := someApp(), someApp()
	running.Phase, ended.Phase = pod.Running, pod.Exited
	ended.App = &pod.App{ID: "b", Pod: "q1"}
	one.Apps, two.Apps = []pod.AppStatus{running}, []pod.AppStatus{ended}
	all := []pod.PodStatus{one, two}
	state := func(s runtimeapi.PodSandboxState) *runtimeapi.PodSandboxStateValue {
		return &runtimeapi.PodSandboxStateValue{State: s}
	}
	for _, c := range []struct {
		f    *runtimeapi.PodSandboxFilter
		want string
	}{
		{nil, "p q1"},
		{&runtimeapi.PodSandboxFilter{}, "p q1"},
		{&runtimeapi.PodSandboxFilter{Id: "q"}, "q1"},
		{&runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_READY)}, "p"},
		{&runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)}, "q1"},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"a": "b"}}, "p"},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"a": "b", "x": ""}}, ""},
	} {
		var got []string
		for _, p := range Pods(all, c.f) {
			got = append(got, string(p.ID))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v: got %q, want %q", c.f, s, c.want)
		}
	}
	for _, c := range []struct {
		f    *runtimeapi.ContainerFilter
		want string
	}{
		{nil, "a b"},
		{&runtimeapi.ContainerFilter{Id: "b"}, "b"},
		{&runtimeapi.ContainerFilter{PodSandboxId: "q"}, "b"},
		{&runtimeapi.ContainerFilter{PodSandboxId: "p", Id: "b"}, ""},
		{&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, "a"},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"a": "b"}}, "a"},
	} {
		var got []string
		for _, a := range Apps(all, c.f) {
			got = append(got, string(a.ID))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v: got %q, want %q", c.f, s, c.want)
		}
	}
}

func TestInfoIsJSON(t *testing.T) {
	t.Parallel()
	a := someApp()
	a.Phase, a.PID = pod.Running, 77
	info, err := AppInfo(a)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		PID   int
		Phase string
		Name  string
	}
	if err := json.Unmarshal([]byte(info["info"]), &got); err != nil || got.PID != 77 || got.Phase != "running" || got.Name != "nginx" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := PodInfo(somePod()); err != nil {
		t.Error(err)
	}
}

// Whatever bytes come, a translation answers or refuses.
func FuzzTranslation(f *testing.F) {
	for _, m := range []proto.Message{critest.Sandbox(), critest.Container(), &runtimeapi.ContainerConfig{}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	checker := NewChecker()
	f.Fuzz(func(t *testing.T, b []byte) {
		var sandbox runtimeapi.PodSandboxConfig
		if proto.Unmarshal(b, &sandbox) == nil {
			Unknown("config", &sandbox)
			if checker.Check("config", &sandbox) == nil {
				if p, err := Pod(&sandbox, ""); err == nil {
					FromPodStatus(pod.PodStatus{Pod: &p})
				}
			}
		}
		var c runtimeapi.ContainerConfig
		if proto.Unmarshal(b, &c) != nil {
			return
		}
		Unknown("config", &c)
		if checker.Check("config", &c) != nil {
			return
		}
		mounts, err := Mounts("m", c.Mounts)
		if err == nil {
			FromMounts(mounts)
		}
		r, err := Resources("r", c.GetLinux().GetResources())
		if err == nil {
			FromResources(r)
		}
		Devices("d", c.Devices)
		Env("e", c.Envs)
		LogPath("l", "/var/log", c.LogPath)
		Security("s", c.GetLinux().GetSecurityContext())
		RunAs("s", c.GetLinux().GetSecurityContext())
		Namespaces("n", c.GetLinux().GetSecurityContext().GetNamespaceOptions(), pod.Namespaces{})
		if n, err := StopSignal("f", c.StopSignal); err == nil {
			FromStopSignal(n)
		}
	})
}
