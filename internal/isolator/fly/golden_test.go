package fly

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	podID = "aaaaaaaaaaaaaaaaaaaaaaaa"
	appID = "bbbbbbbbbbbbbbbbbbbbbbbb"
)

// input is what kubelet asks for, for a pod in the host's network.
func input() isolator.App {
	n := pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespacePod}
	created := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	p := &pod.Pod{
		Version: 1, ID: podID, Owner: pod.OwnerCRI, Name: "agent", Namespace: "kube-system", UID: "u-1", Created: created,
		Isolator: "fly", Slice: "kubepods-podu_1.slice", CgroupParent: "/kubepods.slice/kubepods-podu_1.slice",
		DNS: &pod.DNS{Servers: []string{"10.96.0.10"}}, Namespaces: n,
	}
	a := &pod.App{
		Version: 1, ID: appID, Pod: podID, Name: "agent", Created: created, Image: pod.Image{ID: "sha256:cc", Name: "agent"},
		Argv: []string{"agent", "--serve"}, StopTimeout: 30 * time.Second, Namespaces: n,
		Security: pod.Security{Seccomp: pod.Profile{Kind: pod.ProfileUnconfined}},
		Mounts:   []pod.Mount{{Path: "/data", Source: "/srv/data", Propagation: pod.PropagationSlave}},
	}
	return isolator.App{
		Pod: p, App: a, Secret: pod.Secret{Env: []string{"TOKEN=hunter2"}},
		Dir: isolator.Dirs{
			Pod: "/var/lib/gantry/pods/" + podID, App: "/var/lib/gantry/pods/" + podID + "/apps/" + appID, Run: "/run/gantry/pods/" + podID,
		},
		Rootfs: isolator.Tree{Path: "/run/gantry/images/cc", Unit: "run-gantry-images-cc.mount"},
	}
}

func TestPlans(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*isolator.App){
		"plain": func(*isolator.App) {},
		"privileged": func(in *isolator.App) {
			in.Pod.Security.Privileged, in.App.Security.Privileged = true, true
			in.App.Mounts[0].Propagation = pod.PropagationShared
			in.App.Devices = []pod.Device{{Path: "/dev/kvm", Source: "/dev/kvm", Permissions: "rwm", Type: "c", Major: 10, Minor: 232}}
		},
		"confined": func(in *isolator.App) {
			s := &in.App.Security
			s.UID, s.GID, s.Groups, s.NoNewPrivileges, s.ReadOnlyRootfs = 1000, 1000, []uint32{7}, true, true
			s.Seccomp.Kind, s.DropCaps, s.AddCaps = pod.ProfileRuntimeDefault, []string{"ALL"}, []string{"NET_ADMIN"}
			in.App.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
			in.Resources = pod.Resources{Memory: 64 << 20, CPUQuota: 50000, CPUPeriod: 100000}
			in.App.Devices = []pod.Device{{Path: "/dev/fuse", Source: "/dev/fuse", Permissions: "rw", Type: "c", Major: 10, Minor: 229}}
			in.App.TTY = true
		},
		"host_mounts": func(in *isolator.App) { in.Pod.Annotations = map[string]string{annotationMounts: "host"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := input()
			change(&in)
			f := newFly(t)
			sandbox, err := f.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
			if err != nil {
				t.Fatal(err)
			}
			app, err := f.App(in)
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
