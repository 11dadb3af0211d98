package kvm

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/isolatortest"
	"gantry/internal/machine"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func newKVM(t testing.TB) *KVM {
	k, err := New(Config{
		Init: "/usr/libexec/gantry/gantry-init", Guest: "/usr/libexec/gantry/gantry-guest", StdioSocket: "/run/gantry/stdio.sock",
		Emulator: "/usr/bin/qemu-system-x86_64", FileServer: "/usr/libexec/virtiofsd", Firmware: "/usr/share/qemu/qboot.rom",
		Boot: machine.Boot{
			Kernel: "/var/lib/gantry/boot/kernel-k", Initramfs: "/var/lib/gantry/boot/initramfs-k", From: "/boot/vmlinuz-6.12",
			Guest: "/usr/libexec/gantry/gantry-guest", Modules: "/lib/modules/6.12", Load: []string{"virtiofs"},
		},
		Memory: 512 << 20, Overhead: 100 << 20, CPUs: 2, HugePages: true, Disk: 8 << 30, BootTime: 30, Arch: "amd64",
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestContract(t *testing.T) {
	t.Parallel()
	isolatortest.Run(t, newKVM(t), nil)
}

const (
	podID = "aaaaaaaaaaaaaaaaaaaaaaaa"
	appID = "bbbbbbbbbbbbbbbbbbbbbbbb"
)

// input is what kubelet asks for.
func input() isolator.App {
	n := pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod}
	created := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	p := &pod.Pod{
		Version: 1, ID: podID, Owner: pod.OwnerCRI, Name: "web", Namespace: "shop", UID: "u-1", Created: created, Hostname: "web",
		Isolator: "kvm", Slice: "kubepods-podu_1.slice", CgroupParent: "/kubepods.slice/kubepods-podu_1.slice",
		DNS: &pod.DNS{Servers: []string{"10.96.0.10"}}, Namespaces: n, Sysctls: map[string]string{"net.ipv4.tcp_syncookies": "1"},
	}
	a := &pod.App{
		Version: 1, ID: appID, Pod: podID, Name: "web", Created: created, Image: pod.Image{ID: "sha256:cc", Name: "web"},
		Argv: []string{"web", "--serve"}, StopTimeout: 30 * time.Second, Namespaces: n,
		Security: pod.Security{Seccomp: pod.Profile{Kind: pod.ProfileUnconfined}},
		Mounts: []pod.Mount{
			{Path: "/data", Source: "/srv/data"},
			{Path: "/etc/web", Source: "/srv/config", ReadOnly: true, RecursiveReadOnly: true},
			{Path: "/model", Image: &pod.Image{ID: "sha256:dd"}, ImageSubPath: "weights", ReadOnly: true},
		},
	}
	return isolator.App{
		Pod: p, App: a, Secret: pod.Secret{Env: []string{"TOKEN=hunter2"}},
		Dir: isolator.Dirs{
			Pod: "/var/lib/gantry/pods/" + podID, App: "/var/lib/gantry/pods/" + podID + "/apps/" + appID, Run: "/run/gantry/pods/" + podID,
		},
		Rootfs:       isolator.Tree{Path: "/run/gantry/images/cc", Unit: "run-gantry-images-cc.mount"},
		ImageVolumes: map[string]isolator.Tree{"sha256:dd": {Path: "/run/gantry/images/dd", Unit: "run-gantry-images-dd.mount"}},
	}
}

func TestPlans(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*isolator.App){
		"plain": func(*isolator.App) {},
		"limits": func(in *isolator.App) {
			in.Pod.Resources = &pod.Resources{Memory: 612 << 20, CPUQuota: 250000, CPUPeriod: 100000}
			in.Resources = pod.Resources{
				Memory: 64 << 20, MemorySwap: 64 << 20, CPUQuota: 50000, CPUPeriod: 100000, CPUShares: 512, Pids: 100, CPUSet: "0-1",
				OOMScoreAdj: 900, Unified: map[string]string{"memory.high": "1000000"},
			}
			in.App.TTY, in.App.Security.UID, in.App.Security.NoNewPrivileges = true, 1000, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := input()
			change(&in)
			k := newKVM(t)
			sandbox, err := k.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
			if err != nil {
				t.Fatal(err)
			}
			app, err := k.App(in)
			if err != nil {
				t.Fatal(err)
			}
			file, got := filepath.Join("testdata", name+".txt"), sandbox.Text()+"\n"+app.Text()
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("plan differs (-want +got; go test -update rewrites):\n%s", diff)
			}
		})
	}
}

// TestSizeOfAPodThatIsNotLimited: kubelet adds up the limits that some containers have.
func TestSizeOfAPodThatIsNotLimited(t *testing.T) {
	t.Parallel()
	k := newKVM(t)
	usual, err := k.size(isolator.Sandbox{Pod: &pod.Pod{}})
	if err != nil {
		t.Fatal(err)
	}
	both := isolator.Unlimited{Memory: true, CPU: true}
	for _, c := range []struct {
		limit     int64 // MiB
		cpus      int64
		unlimited isolator.Unlimited
		want      size
	}{
		{32, 1, both, usual},
		{8 << 10, 7, both, size{8<<10 - k.cfg.Overhead/mebi, 7}},
		{8 << 10, 7, isolator.Unlimited{}, size{8<<10 - k.cfg.Overhead/mebi, 7}},
		{300, 1, isolator.Unlimited{CPU: true}, size{300 - k.cfg.Overhead/mebi, usual.cpus}},
	} {
		p := &pod.Pod{PodResources: pod.PodResources{Resources: &pod.Resources{Memory: c.limit << 20, CPUQuota: c.cpus * 100000, CPUPeriod: 100000}}}
		if got, err := k.size(isolator.Sandbox{Pod: p, Unlimited: c.unlimited}); err != nil || got != c.want {
			t.Errorf("%+v: got %+v, %v", c, got, err)
		}
	}
}

// TestOOMScore: the host would rather lose what kubelet promised least.
func TestOOMScore(t *testing.T) {
	t.Parallel()
	for slice, want := range map[string]int{
		"kubepods-besteffort-podu_1.slice": 1000, "kubepods-burstable-podu_1.slice": 900, "kubepods-podu_1.slice": -998, "gantry-x.slice": -998,
	} {
		if got := oomScore(slice); got != want {
			t.Errorf("%s: %d, want %d", slice, got, want)
		}
	}
}

// TestRefused: what a machine cannot have is refused when it is asked for.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*isolator.App)
		kind   error
		want   string
	}{
		"little memory":      {func(in *isolator.App) { in.Pod.Resources = &pod.Resources{Memory: 200 << 20} }, pod.ErrInvalid, "needs at least 228"},
		"host network":       {func(in *isolator.App) { in.Pod.Namespaces.Network = pod.NamespaceNode }, pod.ErrUnsupported, "network=node"},
		"host PIDs":          {func(in *isolator.App) { in.Pod.Namespaces.PID = pod.NamespaceNode }, pod.ErrUnsupported, "pid=node"},
		"privileged":         {func(in *isolator.App) { in.Pod.Security.Privileged = true }, pod.ErrUnsupported, "privileged"},
		"to the host":        {func(in *isolator.App) { in.App.Mounts[0].Propagation = pod.PropagationShared }, pod.ErrUnsupported, "rshared"},
		"a device":           {func(in *isolator.App) { in.App.Devices = []pod.Device{{Path: "/dev/x", Source: "/dev/kvm"}} }, pod.ErrUnsupported, "devices"},
		"the host's sysfs":   {func(in *isolator.App) { in.App.Mounts[0].Source = "/sys/kernel" }, pod.ErrUnsupported, "/sys/kernel of the host"},
		"the host's devices": {func(in *isolator.App) { in.App.Mounts[0].Source = "/dev" }, pod.ErrUnsupported, "/dev of the host"},
		"huge pages": {func(in *isolator.App) {
			in.Resources.Hugepages = []pod.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}
		}, pod.ErrUnsupported, "huge pages"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := input()
			c.change(&in)
			k := newKVM(t)
			_, err := k.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
			if err == nil {
				_, err = k.App(in)
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// made writes down what a pod's machine is booted with.
func made(t *testing.T, k *KVM, r *pod.Resources) isolator.Sandbox {
	t.Helper()
	in := isolator.Sandbox{Pod: input().Pod, Dir: isolator.Dirs{Pod: t.TempDir(), Run: "/run/gantry/pods/" + podID}}
	in.Pod.Resources = r
	plan, err := k.Sandbox(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range plan.Files {
		if f.Path == machine.PlanFile {
			if err := os.WriteFile(filepath.Join(in.Dir.Pod, f.Path), f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return in
}

// TestResize: what a machine that runs cannot have is refused before anything is changed.
func TestResize(t *testing.T) {
	t.Parallel()
	k, own := newKVM(t), &pod.Resources{Memory: 612 << 20, CPUQuota: 150000, CPUPeriod: 100000}
	for name, c := range map[string]struct {
		pod  *pod.Resources // of which it was made; nil has 512 MiB and 2 processors, own the same
		want pod.Resources
		kind error
		text string
	}{
		"the same":               {own, pod.Resources{Memory: 612 << 20, CPUQuota: 150000, CPUPeriod: 100000}, nil, ""},
		"fewer processors":       {own, pod.Resources{Memory: 612 << 20, CPUQuota: 20000, CPUPeriod: 100000, CPUShares: 50}, nil, ""},
		"as many processors":     {own, pod.Resources{CPUQuota: 200000, CPUPeriod: 100000}, nil, ""},
		"more processors":        {own, pod.Resources{CPUQuota: 200001, CPUPeriod: 100000}, pod.ErrInvalid, "limit of 3 processors: the pod's machine has 2"},
		"more memory":            {own, pod.Resources{Memory: 700 << 20}, pod.ErrInvalid, "memory limit of 700 MiB: the pod's machine has 512 and was made for a limit of 612, which"},
		"less memory":            {own, pod.Resources{Memory: 512 << 20}, pod.ErrInvalid, "cannot change while it runs"},
		"no limit any more":      {own, pod.Resources{Memory: -1}, nil, ""},
		"a first limit":          {nil, pod.Resources{Memory: 300 << 20}, pod.ErrInvalid, "cannot change while it runs"},
		"shares where no limits": {nil, pod.Resources{CPUShares: 512}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := made(t, k, c.pod)
			// What the pod's limits are now, and what the operator says now, does not matter.
			in.Pod.Resources = &pod.Resources{Memory: -1, CPUQuota: 1000, CPUPeriod: 100000}
			other := *k
			other.cfg.Overhead, other.cfg.Memory, other.cfg.CPUs = 1<<20, 1<<30, 64
			_, _, err := other.PodResources(in.Pod, in.Dir, c.want)
			if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
		})
	}
	in := made(t, k, own)
	err := k.Update(t.Context(), in.Dir, appID, pod.Resources{Memory: 100 << 20}, pod.Resources{Memory: 513 << 20})
	if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "the pod's machine has 512") {
		t.Errorf("an app with more than its machine: %v", err)
	}
	err = k.Update(t.Context(), in.Dir, appID, pod.Resources{}, pod.Resources{CPUQuota: 300000, CPUPeriod: 100000})
	if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "limit of 3 processors: the pod's machine has 2") {
		t.Errorf("an app with more processors than its machine: %v", err)
	}
	if _, _, err := k.Resources(pod.Resources{Hugepages: []pod.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}}); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("huge pages: %v", err)
	}
}

// TestPIDs: whose PID namespace an app is in says the plan, in words of the machine. No
// process of the host holds one.
func TestPIDs(t *testing.T) {
	t.Parallel()
	const target = "cccccccccccccccccccccccc"
	for mode, want := range map[pod.NamespaceMode]string{pod.NamespaceApp: "", pod.NamespacePod: initproc.PodPIDs, pod.NamespaceTarget: target} {
		in := input()
		in.Pod.Namespaces.PID, in.App.Namespaces.PID, in.App.Namespaces.Target = pod.NamespacePod, mode, target
		k := newKVM(t)
		sandbox, err := k.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
		if err != nil {
			t.Fatal(err)
		}
		if text := sandbox.Text(); strings.Contains(text, unit.Holder(podID)) {
			t.Errorf("%s: a process of the host holds it:\n%s", mode, text)
		}
		in.HolderPID, in.TargetPID = 4711, 4712 // which would mean nothing there
		plan, err := k.App(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := started(t, plan).Start.PIDs; got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
		if text := plan.Text(); strings.Contains(text, "4711") || strings.Contains(text, "4712") {
			t.Errorf("%s: numbers of the host are in the plan:\n%s", mode, text)
		}
	}
}

// started is what the machine is told of an app.
func started(t *testing.T, plan isolator.Plan) (a machine.App) {
	t.Helper()
	for _, f := range plan.Files {
		if f.Path == machine.AppFile {
			if err := json.Unmarshal(f.Data, &a); err != nil {
				t.Fatal(err)
			}
		}
	}
	return a
}
