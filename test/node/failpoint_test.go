//go:build e2e

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// failpoints are the boundaries of the engine's steps, by operation, as the
// installed program lists them.
func failpoints(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, point := range strings.Split(strings.TrimSpace(sh(t, "gantry internal failpoints")), "\n") {
		if strings.Contains(point, "/late units") {
			continue // of pods that are machines
		}
		op, _, _ := strings.Cut(point, "/")
		out[op] = append(out[op], point)
	}
	if len(out) == 0 {
		t.Fatal("there are no failpoints")
	}
	return out
}

// operation is one of the engine's, as a user asks for it.
type operation struct {
	name string
	do   func() error
	// undo makes way for another try, where a kill before the last step leaves
	// something that is whole.
	undo func() error
	// done looks at the result of the try that is let through.
	done func(t *testing.T)
}

const steady = `trap 'exit 0' TERM; while :; do sleep 0.2; done`

// TestServerKilledAtEveryStep kills gantry-cri at every boundary of every step of
// a pod's life. Each time the lists are right when it is back, nothing else is
// disturbed, and the next try of the same request gets to the next boundary, and
// in the end through.
func TestServerKilledAtEveryStep(t *testing.T) {
	guard(t)
	needsGantry(t)
	points := failpoints(t)
	e := dial(t)
	aim := aimAtServer(t)
	bystander := e.run(t, onHost(e.podConfig(t, "bystander"))).runScript(t, "app", steady)
	pids := e.pids(t, []container{bystander})
	v := &criVictim{engine: e, config: e.podConfig(t, "victim")}
	if err := os.MkdirAll(v.config.LogDirectory+"/app", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, op := range v.life(t) {
		for _, point := range points[op.name] {
			aim(point)
			err := op.do()
			if err == nil && op.undo != nil { // what the last kill left was whole already
				if err := op.undo(); err != nil {
					t.Fatalf("%s: make way for another try: %v", point, err)
				}
				err = op.do()
			}
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: the request was not cut off: %v", point, err)
			}
			e.listsAreRight(t, point, e.pictureAfterKill(t))
			if got := e.pids(t, []container{bystander}); !slices.Equal(got, pids) {
				t.Fatalf("%s: the bystander's process was %v and is %v", point, pids, got)
			}
		}
		aim("")
		if err := op.do(); err != nil {
			t.Fatalf("%s, let through after a kill at every boundary: %v", op.name, err)
		}
		if op.done != nil {
			op.done(t)
		}
		delete(points, op.name)
	}
	for op := range points {
		t.Errorf("no request of this test reaches the operation %q", op)
	}
}

// aimAtServer returns a function that starts gantry-cri anew, to be killed at a
// failpoint, or at none.
func aimAtServer(t *testing.T) func(point string) {
	t.Helper()
	const dropIn, variables = "/run/systemd/system/gantry-cri.service.d/90-failpoints.conf", "/run/e2e-failpoints"
	sh(t, "mkdir -p $(dirname "+dropIn+") && printf '[Service]\\nEnvironmentFile=-"+variables+"\\n' > "+dropIn+" && systemctl daemon-reload")
	t.Cleanup(func() {
		sh(t, "rm -f "+dropIn+" "+variables+" && systemctl daemon-reload && systemctl restart gantry-cri.service")
	})
	return func(point string) {
		t.Helper()
		text := ""
		if point != "" {
			if !strings.Contains(point, "=") {
				point += "=kill"
			}
			text = fmt.Sprintf("GANTRY_FAILPOINTS=%q\n", point)
		}
		if err := os.WriteFile(variables, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		sh(t, "systemctl restart gantry-cri.service")
	}
}

// listsAreRight compares what the lists say of containers with PID 1.
func (e engine) listsAreRight(t *testing.T, point string, picture map[string]string) {
	t.Helper()
	for id, state := range picture {
		if !strings.HasPrefix(state, "CONTAINER_") {
			continue
		}
		unit := sh(t, "systemctl is-active gantry-app-"+id+".service || true")
		if running := state == "CONTAINER_RUNNING"; running != (unit == "active") {
			t.Errorf("%s: container %s is listed as %s, its unit is %s", point, id, state, unit)
		}
	}
}

// criVictim is a pod whose server is killed all the time.
type criVictim struct {
	engine
	config   *cri.PodSandboxConfig
	pod, app string
}

func (v *criVictim) life(t *testing.T) []operation {
	v.pull(t, busybox)
	ctx := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), patience(30*time.Second))
	}
	running := func(t *testing.T) {
		if s := (container{pod{v.engine, v.pod, v.config}, v.app, nil}).status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after the start: %v", s)
		}
	}
	limited := func(t *testing.T) {
		if got := sh(t, "systemctl show --value -p MemoryMax gantry-app-"+v.app+".service"); got != fmt.Sprint(64<<20) {
			t.Errorf("after the update the limit is %s", got)
		}
	}
	gone := func(t *testing.T) {
		if got := v.picture(t); len(got) != 2 { // the bystander and its pod
			t.Errorf("in the end the lists say %v", got)
		}
	}
	request := func(f func(ctx context.Context) error) func() error {
		return func() error { ctx, cancel := ctx(); defer cancel(); return f(ctx) }
	}
	wait := grpc.WaitForReady(true)
	remove := request(func(ctx context.Context) error {
		_, err := v.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: v.pod}, wait)
		return err
	})
	return []operation{
		{"create pod", request(func(ctx context.Context) error {
			r, err := v.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: v.config}, wait)
			v.pod = r.GetPodSandboxId()
			return err
		}), remove, nil},
		{"create app", request(func(ctx context.Context) error {
			r, err := v.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: v.pod, Config: containerConfig("app", steady), SandboxConfig: v.config}, wait)
			v.app = r.GetContainerId()
			return err
		}), nil, nil},
		{"start app", request(func(ctx context.Context) error {
			_, err := v.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: v.app}, wait)
			return err
		}), nil, running},
		{"update app", request(func(ctx context.Context) error {
			_, err := v.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{
				ContainerId: v.app, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			}, wait)
			return err
		}), nil, limited},
		{"update pod", request(func(ctx context.Context) error {
			_, err := v.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{
				PodSandboxId: v.pod, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
			}, wait)
			return err
		}), nil, nil},
		{"remove app", request(func(ctx context.Context) error {
			_, err := v.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: v.app}, wait)
			return err
		}), nil, nil},
		{"stop pod", request(func(ctx context.Context) error {
			_, err := v.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: v.pod}, wait)
			return err
		}), nil, nil},
		{"remove pod", remove, nil, gone},
	}
}

// TestCommandKilledAtEveryStep does the same to the command line, which has no
// server to be started again: gantry gc ends what a killed command left half-way.
func TestCommandKilledAtEveryStep(t *testing.T) {
	guard(t)
	needsGantry(t)
	points := failpoints(t)
	delete(points, "update app") // these are no command's
	delete(points, "update pod")
	sh(t, "gantry run --detach --quiet --name bystander "+busybox+" sh -c \""+steady+"\"")
	t.Cleanup(func() { sh(t, "gantry rm --force bystander") })
	bystander := podOf(t, "bystander").Apps[0]
	prepare := "gantry prepare --quiet --name victim " + busybox + " sh -c \"" + steady + "\""
	for _, c := range []struct {
		ops     []string
		command string
		setup   string // where there is no pod
		again   string // makes way for another try where there is one
		phase   string // of the pod, in the end
	}{
		// A pod that is whole is not made again: it is removed first.
		{[]string{"create pod", "create app"}, prepare, "", "gantry rm victim", "prepared"},
		{[]string{"start app"}, "gantry run-prepared --detach victim", "", "", "running"},
		{[]string{"stop pod"}, "gantry stop --grace 0 victim", "", "", "exited"},
		// A pod without apps that is not up is taken by gc.
		{[]string{"remove app", "remove pod"}, "gantry rm --force victim", prepare, "", ""},
	} {
		for _, op := range c.ops {
			for _, point := range points[op] {
				if c.setup != "" && podOf(t, "victim") == nil {
					sh(t, c.setup)
				}
				killedCommand(t, point, c.command)
				checkAfterKill(t, point, bystander)
				sh(t, "gantry gc")
				if c.again == "" {
					continue
				}
				left := podOf(t, "victim")
				if left != nil && !left.Ready {
					t.Errorf("%s: gc left %+v", point, left)
				}
				if left != nil {
					sh(t, c.again)
				}
			}
			delete(points, op)
		}
		if p := podOf(t, "victim"); p == nil && c.phase != "" || p != nil && p.Phase != c.phase {
			sh(t, c.command)
		}
		if p := podOf(t, "victim"); (p == nil) != (c.phase == "") || p != nil && p.Phase != c.phase {
			t.Errorf("%s, let through after a kill at every boundary: the pod is %+v, want %q", c.command, p, c.phase)
		}
	}
	for op := range points {
		t.Errorf("no command of this test reaches the operation %q", op)
	}
}

// killedCommand runs a command that kills itself at a failpoint.
func killedCommand(t *testing.T, point, command string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "exec "+command)
	cmd.Env = append(os.Environ(), "GANTRY_FAILPOINTS="+point+"=kill")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%s: %s was not killed: %v\n%s", point, command, err, out)
	}
}

// checkAfterKill compares what the command line lists with PID 1.
func checkAfterKill(t *testing.T, point string, bystander listedApp) {
	t.Helper()
	for _, p := range listPods(t) {
		for _, a := range p.Apps {
			unit := sh(t, "systemctl is-active gantry-app-"+a.ID+".service || true")
			if (a.Phase == "running") != (unit == "active") {
				t.Errorf("%s: app %s is listed as %s, its unit is %s", point, a.Name, a.Phase, unit)
			}
			if a.ID == bystander.ID && (a.PID != bystander.PID || a.Phase != "running") {
				t.Fatalf("%s: the bystander was %+v and is %+v", point, bystander, a)
			}
		}
	}
}

type listedPod struct {
	Name, Phase string
	Ready       bool
	Apps        []listedApp
}

type listedApp struct {
	ID, Name, Phase string
	PID             int
}

func listPods(t *testing.T) []listedPod {
	t.Helper()
	var list struct{ Pods []listedPod }
	text := sh(t, "gantry list --owner cli --format json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("gantry list: %v\n%s", err, text)
	}
	return list.Pods
}

func podOf(t *testing.T, name string) *listedPod {
	t.Helper()
	for _, p := range listPods(t) {
		if p.Name == name {
			return &p
		}
	}
	return nil
}
