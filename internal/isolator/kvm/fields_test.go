package kvm

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// fate is what becomes of a field of what a pod asks for.
type fate struct {
	change func(*isolator.App)
	// want is in the plan then, and not without it.
	want string
	// refused is the kind of the error instead.
	refused error
	// left tells why the plan is the same. For a field whose change is nil nothing is tried:
	// other parts of Gantry do what it says, or it only names.
	left string
}

const (
	names   = "it names, or is for status"
	engines = "the engine, or gantry-stdio, does it for all isolators"
)

// fates are those of all fields, by type and name.
func fates() map[string][]fate {
	all := map[string][]fate{}
	for _, part := range []map[string][]fate{podFates(), appFates(), securityFates(), mountFates(), resourceFates()} {
		for name, f := range part {
			all[name] = f
		}
	}
	return all
}

func podFates() map[string][]fate {
	only := func(why string) []fate { return []fate{{left: why}} }
	return map[string][]fate{
		"Pod.Version": only(names), "Pod.ID": only(names), "Pod.Owner": only(names), "Pod.Name": only(names), "Pod.Namespace": only(names),
		"Pod.UID": only(names), "Pod.Attempt": only(names), "Pod.Created": only(names), "Pod.Labels": only(names), "Pod.Annotations": only(names),
		"Pod.Isolator": only(names), "Pod.Handler": only(names), "Pod.IsolatorReason": only(names), "Pod.LogDirectory": only(engines),
		"Pod.Ports":        only("CNI maps them to the pod's address, which the machine has"),
		"Pod.CgroupParent": only("what the app's unit is in; see Slice"),
		"Pod.Slice":        {{change: func(in *isolator.App) { in.Pod.Slice = "other.slice" }, want: "Slice=other.slice"}},
		"Pod.Hostname":     {{change: func(in *isolator.App) { in.Pod.Hostname = "other" }, want: `"hostname": "other"`}},
		"Pod.DNS":          {{change: func(in *isolator.App) { in.Pod.DNS = &pod.DNS{Servers: []string{"192.0.2.7"}} }, want: "nameserver 192.0.2.7"}},
		"Pod.Sysctls": {
			{change: func(in *isolator.App) { in.Pod.Sysctls = map[string]string{"net.core.somaxconn": "7"} }, want: `"net.core.somaxconn": "7"`},
			{change: func(in *isolator.App) { in.Pod.Sysctls = map[string]string{"kernel.pid_max": "7000"} }, want: `"kernel.pid_max": "7000"`},
			{change: func(in *isolator.App) { in.Pod.Sysctls = map[string]string{"kernel/../x": "7"} }, refused: pod.ErrInvalid},
		},
		"Pod.Namespaces":   only("see its fields"),
		"Pod.PodResources": only("see its fields"),
		"Pod.Security": {
			{change: func(in *isolator.App) { in.Pod.Security.Privileged = true }, refused: pod.ErrUnsupported},
			{change: func(in *isolator.App) { in.Pod.Security.SELinux = &pod.SELinux{Type: "x_t"} }, refused: pod.ErrUnsupported},
		},
		"PodResources.Resources": {{change: func(in *isolator.App) { in.Pod.Resources = &pod.Resources{Memory: 700 << 20} }, want: "600M"}},
		"PodResources.Overhead": {{change: func(in *isolator.App) {
			in.Pod.Resources, in.Pod.Overhead = &pod.Resources{Memory: 150 << 20}, &pod.Resources{Memory: 110 << 20}
		}, want: "160M"}},
		"Namespaces.Network": {{change: func(in *isolator.App) { in.Pod.Namespaces.Network = pod.NamespaceNode }, refused: pod.ErrUnsupported}},
		"Namespaces.IPC":     {{change: func(in *isolator.App) { in.Pod.Namespaces.IPC = pod.NamespaceNode }, refused: pod.ErrUnsupported}},
		"Namespaces.User":    {{change: func(in *isolator.App) { in.Pod.Namespaces.User = &pod.UserNS{} }, refused: pod.ErrUnsupported}},
		"Namespaces.PID": {
			{change: func(in *isolator.App) { in.Pod.Namespaces.PID = pod.NamespaceNode }, refused: pod.ErrUnsupported},
			{change: func(in *isolator.App) { in.App.Namespaces.PID = pod.NamespaceNode }, refused: pod.ErrUnsupported},
			{change: func(in *isolator.App) { in.App.Namespaces.PID = pod.NamespacePod }, want: `"pids": "pod"`},
		},
		"Namespaces.Target": {{change: func(in *isolator.App) {
			in.App.Namespaces.PID, in.App.Namespaces.Target = pod.NamespaceTarget, "cccccccccccccccccccccccc"
		}, want: `"pids": "cccccccccccccccccccccccc"`}},
	}
}

func appFates() map[string][]fate {
	only := func(why string) []fate { return []fate{{left: why}} }
	return map[string][]fate{
		"App.Version": only(names), "App.ID": only(names), "App.Pod": only(names), "App.Name": only(names), "App.Attempt": only(names),
		"App.Created": only(names), "App.Labels": only(names), "App.Annotations": only(names), "App.Image": only("its tree is Rootfs of the input"),
		"App.LogPath": only(engines), "App.StdinOnce": only(engines), "App.CDI": only("what they brought is in other fields"),
		"App.Namespaces": only("see its fields"), "App.Security": only("see its fields"), "App.Mounts": only("see its fields"), "App.Resources": only("see its fields"),
		"App.Argv":       {{change: func(in *isolator.App) { in.App.Argv = []string{"other"} }, want: `"args":["other"]`}},
		"App.WorkingDir": {{change: func(in *isolator.App) { in.App.WorkingDir = "/other" }, want: `"cwd":"/other"`}},
		"App.Devices": {{change: func(in *isolator.App) {
			in.App.Devices = []pod.Device{{Path: "/dev/x", Source: "/dev/kvm", Permissions: "rw", Type: "c", Major: 10, Minor: 232}}
		}, refused: pod.ErrUnsupported}},
		"App.Hooks":       {{change: func(in *isolator.App) { in.App.Hooks = []pod.Hook{{Stage: "poststop", Path: "/x"}} }, refused: pod.ErrUnsupported}},
		"App.Stdin":       {{change: func(in *isolator.App) { in.App.Stdin = true }, want: `"stdin": true`}},
		"App.TTY":         {{change: func(in *isolator.App) { in.App.TTY = true }, want: `"tty":true`}},
		"App.StopSignal":  {{change: func(in *isolator.App) { in.App.StopSignal = 3 }, want: "KillSignal=3"}},
		"App.StopTimeout": {{change: func(in *isolator.App) { in.App.StopTimeout = 77e9 }, want: "TimeoutStopUSec=1m17s"}},
		"App.Rlimits":     {{change: func(in *isolator.App) { in.App.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 78}} }, want: `"soft":77,"hard":78`}},
	}
}

func securityFates() map[string][]fate {
	of := func(change func(*pod.Security)) func(*isolator.App) {
		return func(in *isolator.App) { change(&in.App.Security) }
	}
	return map[string][]fate{
		"Security.UID":             {{change: of(func(s *pod.Security) { s.UID = 1234 }), want: `"uid":1234`}},
		"Security.GID":             {{change: of(func(s *pod.Security) { s.GID = 1234 }), want: `"gid":1234`}},
		"Security.Groups":          {{change: of(func(s *pod.Security) { s.Groups = []uint32{7, 8} }), want: `"groups":[0,7,8]`}},
		"Security.User":            {{left: names}},
		"Security.Privileged":      {{change: of(func(s *pod.Security) { s.Privileged = true }), refused: pod.ErrUnsupported}},
		"Security.ReadOnlyRootfs":  {{change: of(func(s *pod.Security) { s.ReadOnlyRootfs = true }), want: `"readOnlyRootfs": true`}},
		"Security.NoNewPrivileges": {{change: of(func(s *pod.Security) { s.NoNewPrivileges = true }), want: `"noNewPrivileges":true`}},
		"Security.AddCaps":         {{change: of(func(s *pod.Security) { s.AddCaps = []string{"SYS_TIME"} }), want: ",25,"}},
		"Security.DropCaps":        {{change: of(func(s *pod.Security) { s.DropCaps, s.AddCaps = []string{"ALL"}, []string{"CHOWN"} }), want: `"bounding":[0],`}},
		"Security.AmbientCaps":     {{change: of(func(s *pod.Security) { s.AmbientCaps = []string{"NET_BIND_SERVICE"} }), want: `"ambient":[10]`}},
		"Security.Seccomp": {
			{change: of(func(s *pod.Security) { s.Seccomp.Kind = pod.ProfileRuntimeDefault }), want: `"seccomp":{"filter":`},
			{change: func(in *isolator.App) {
				in.App.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/x.json"}
				in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`)
			}, want: `"seccomp":{"filter":`},
		},
		"Security.AppArmor": {
			{change: of(func(s *pod.Security) { s.AppArmor.Kind = pod.ProfileRuntimeDefault }), left: "the machine keeps the app from the host"},
			{change: of(func(s *pod.Security) { s.AppArmor = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "mine"} }), refused: pod.ErrUnsupported},
			{change: of(func(s *pod.Security) { s.AppArmor.Kind = "fancy" }), refused: pod.ErrInvalid},
		},
		"Security.SELinux":       {{change: of(func(s *pod.Security) { s.SELinux = &pod.SELinux{Type: "x_t"} }), refused: pod.ErrUnsupported}},
		"Security.MaskedPaths":   {{change: of(func(s *pod.Security) { s.MaskedPaths = []string{"/proc/mine"} }), want: `"/proc/mine"`}},
		"Security.ReadOnlyPaths": {{change: of(func(s *pod.Security) { s.ReadOnlyPaths = []string{"/proc/mine"} }), want: `"/proc/mine"`}},
	}
}

func mountFates() map[string][]fate {
	of := func(change func(*pod.Mount)) func(*isolator.App) {
		return func(in *isolator.App) { change(&in.App.Mounts[0]) }
	}
	const label = "files of a volume keep their labels: nothing in the machine looks at them"
	ids := []pod.IDMap{{Length: 1}}
	return map[string][]fate{
		"Mount.Path":     {{change: of(func(m *pod.Mount) { m.Path = "/other" }), want: `"target": "/other"`}},
		"Mount.Source":   {{change: of(func(m *pod.Mount) { m.Source = "/srv/other" }), want: `"source": "/srv/other"`}},
		"Mount.HostPath": {{left: names}},
		"Mount.Image":    {{change: of(func(m *pod.Mount) { *m = pod.Mount{Path: "/other", Image: &pod.Image{ID: "sha256:dd"}, ReadOnly: true} }), want: `"target": "/other"`}},
		"Mount.ImageSubPath": {{change: of(func(m *pod.Mount) {
			*m = pod.Mount{Path: "/other", Image: &pod.Image{ID: "sha256:dd"}, ImageSubPath: "part", ReadOnly: true}
		}), want: `"sub": "part"`}},
		"Mount.ReadOnly":          {{change: of(func(m *pod.Mount) { m.ReadOnly = true }), want: `"source": "/srv/data", "target": "/run/gantry/pods/aaaaaaaaaaaaaaaaaaaaaaaa/share/bbbbbbbbbbbbbbbbbbbbbbbb/0", "readOnly": true`}},
		"Mount.RecursiveReadOnly": {{change: of(func(m *pod.Mount) { m.ReadOnly, m.RecursiveReadOnly, m.Path = true, true, "/zz" }), want: `"target": "/zz", "source": "/run/share/bbbbbbbbbbbbbbbbbbbbbbbb/0", "recursive": true, "readOnly": true, "allReadOnly": true`}},
		"Mount.Propagation": {
			{change: of(func(m *pod.Mount) { m.Propagation = pod.PropagationShared }), refused: pod.ErrUnsupported},
			{change: of(func(m *pod.Mount) { m.Propagation = pod.PropagationSlave }), want: `"source": "/srv/data", "target": "/run/gantry/pods/aaaaaaaaaaaaaaaaaaaaaaaa/share/bbbbbbbbbbbbbbbbbbbbbbbb/0", "recursive": true }`},
		},
		"Mount.Relabel":       {{change: of(func(m *pod.Mount) { m.Relabel = true }), left: label}},
		"Mount.RelabelShared": {{change: of(func(m *pod.Mount) { m.RelabelShared = true }), left: label}},
		"Mount.UIDs":          {{change: of(func(m *pod.Mount) { m.UIDs = ids }), refused: pod.ErrUnsupported}},
		"Mount.GIDs":          {{change: of(func(m *pod.Mount) { m.GIDs = ids }), refused: pod.ErrUnsupported}},
		"Mount.Options":       {{change: of(func(m *pod.Mount) { m.Options = []string{"noexec"} }), want: `"options": [ "noexec" ]`}},
	}
}

func resourceFates() map[string][]fate {
	of := func(change func(*pod.Resources)) func(*isolator.App) {
		return func(in *isolator.App) { change(&in.Resources) }
	}
	file := func(name, value string) string {
		return fmt.Sprintf("\"name\": %q, \"value\": %q", name, value)
	}
	const host = "processors and memory of the host have other numbers than those of the machine"
	return map[string][]fate{
		"Resources.CPUPeriod":   {{change: of(func(r *pod.Resources) { r.CPUPeriod, r.CPUQuota = 50000, 20000 }), want: file("cpu.max", "20000 50000")}},
		"Resources.CPUQuota":    {{change: of(func(r *pod.Resources) { r.CPUQuota = 20000 }), want: file("cpu.max", "20000 100000")}},
		"Resources.CPUShares":   {{change: of(func(r *pod.Resources) { r.CPUShares = 2 }), want: file("cpu.weight", "1")}},
		"Resources.CPUSet":      {{change: of(func(r *pod.Resources) { r.CPUSet = "1-2" }), left: host}},
		"Resources.MemorySet":   {{change: of(func(r *pod.Resources) { r.MemorySet = "0" }), left: host}},
		"Resources.Memory":      {{change: of(func(r *pod.Resources) { r.Memory = 7 << 20 }), want: file("memory.max", "7340032")}},
		"Resources.MemorySwap":  {{change: of(func(r *pod.Resources) { r.Memory, r.MemorySwap = 7<<20, 8<<20 }), want: file("memory.swap.max", "1048576")}},
		"Resources.Pids":        {{change: of(func(r *pod.Resources) { r.Pids = 7 }), want: file("pids.max", "7")}},
		"Resources.OOMScoreAdj": {{change: of(func(r *pod.Resources) { r.OOMScoreAdj = 900 }), want: `"oomScoreAdj": 900`}},
		"Resources.Unified":     {{change: of(func(r *pod.Resources) { r.Unified = map[string]string{"memory.high": "7340032"} }), want: file("memory.high", "7340032")}},
		"Resources.Hugepages": {
			{change: of(func(r *pod.Resources) { r.Hugepages = []pod.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}} }), refused: pod.ErrUnsupported},
			{change: of(func(r *pod.Resources) { r.Hugepages = []pod.HugepageLimit{{PageSize: "2MB"}} }), left: "a machine has none"},
		},
	}
}

// TestEveryField: what a pod can ask for is done or refused, and what is left out is so for a
// reason. A field that is new has to be decided about.
func TestEveryField(t *testing.T) {
	t.Parallel()
	all := fates()
	known := map[string]bool{}
	for _, kind := range []reflect.Type{
		reflect.TypeFor[pod.Pod](), reflect.TypeFor[pod.PodResources](), reflect.TypeFor[pod.Namespaces](), reflect.TypeFor[pod.App](),
		reflect.TypeFor[pod.Security](), reflect.TypeFor[pod.Mount](), reflect.TypeFor[pod.Resources](),
	} {
		for i := range kind.NumField() {
			name := kind.Name() + "." + kind.Field(i).Name
			known[name] = true
			if len(all[name]) == 0 {
				t.Errorf("%s: nobody has decided what becomes of it in a machine", name)
			}
		}
	}
	plain := planned(t, func(*isolator.App) {})
	for name, list := range all {
		if !known[name] {
			t.Errorf("%s: there is no such field", name)
		}
		for _, f := range list {
			if f.change == nil {
				continue
			}
			got, err := tryPlan(t, f.change)
			switch {
			case f.refused != nil:
				if !errors.Is(err, f.refused) {
					t.Errorf("%s: got %v, want it to be %v", name, err, f.refused)
				}
			case err != nil:
				t.Errorf("%s: %v", name, err)
			case f.left != "" && got != plain:
				t.Errorf("%s: the plan is another, though %s", name, f.left)
			case f.want != "" && (!strings.Contains(got, f.want) || strings.Contains(plain, f.want)):
				t.Errorf("%s: want %s in the plan (%v), and not without it", name, f.want, strings.Contains(got, f.want))
			}
		}
	}
}

func planned(t *testing.T, change func(*isolator.App)) string {
	t.Helper()
	text, err := tryPlan(t, change)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// tryPlan gives all that a pod and an app are made of, on a host with SELinux.
func tryPlan(t *testing.T, change func(*isolator.App)) (string, error) {
	t.Helper()
	cfg := newKVM(t).cfg
	cfg.SELinux = true
	k, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	in := input()
	change(&in)
	sandbox, err := k.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
	if err != nil {
		return "", err
	}
	app, err := k.App(in)
	if err != nil {
		return "", err
	}
	text := sandbox.Text() + app.Text()
	for _, f := range slices.Concat(sandbox.Files, app.Files) {
		text += string(f.Data)
	}
	return strings.Join(strings.Fields(text), " "), nil
}

// TestSELinuxOff: Kubernetes gives labels to nodes of both kinds, and without SELinux they
// mean nothing.
func TestSELinuxOff(t *testing.T) {
	t.Parallel()
	in := input()
	in.Pod.Security.SELinux, in.App.Security.SELinux = &pod.SELinux{Type: "x_t"}, &pod.SELinux{Type: "x_t"}
	k := newKVM(t)
	_, podErr := k.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
	_, appErr := k.App(in)
	if err := errors.Join(podErr, appErr); err != nil {
		t.Error(err)
	}
}

// TestLimitsAreStated: in the machine nothing gives an app any but its plan, and an exec has
// the same.
func TestLimitsAreStated(t *testing.T) {
	t.Parallel()
	in := input()
	in.App.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 7, Hard: 7}}
	k := newKVM(t)
	app, err := k.App(in)
	if err != nil {
		t.Fatal(err)
	}
	exec, err := k.Exec(in, pod.Process{Argv: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `"rlimits":[{"resource":7,"soft":7,"hard":7},{"resource":4,"soft":18446744073709551615,"hard":18446744073709551615},{"resource":8,"soft":8388608,"hard":8388608},{"resource":6,"soft":18446744073709551615,"hard":18446744073709551615}]`
	if !strings.Contains(string(app.Files[0].Data), want) {
		t.Errorf("app: %s", app.Files[0].Data)
	}
	if !strings.Contains(string(exec.Process), want) {
		t.Errorf("exec: %s", exec.Process)
	}
}
