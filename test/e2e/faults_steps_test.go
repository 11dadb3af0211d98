//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/test/machine"
)

// TestErrorAtEveryStep lets every operation fail at every boundary of its steps, on
// a pod with everything: the error names the step, what was made is undone, and the
// next try gets to the next boundary, and in the end through. Package engine does
// the same without namespaces and network; test/node kills the programs instead.
func TestErrorAtEveryStep(t *testing.T) {
	guard(t)
	by := openNode(t)
	pull(t, by, busybox)
	bystander := newApp(t, by, newPod(t, by), command("sleep", "1000000"))
	start(t, by, bystander)
	before, err := by.App(bystander.ID)
	if err != nil {
		t.Fatal(err)
	}
	clean := machine.Observe()
	v := &stepVictim{}
	points := engine.FailpointNames()
	for _, op := range v.life(t) {
		for _, point := range points {
			if !strings.HasPrefix(point, op.name+"/") || strings.Contains(point, "/late units") {
				continue // those are of pods that are machines: TestKVMSteps
			}
			n := nodeFailingAt(t, point)
			err := op.do(n)
			var stage *engine.StageError
			if !errors.As(err, &stage) || !strings.HasPrefix(point, stage.Op+"/"+stage.Stage+"/") || !strings.Contains(err.Error(), "(after ") {
				t.Errorf("%s: the error does not name the step and its duration: %v", point, err)
			}
			if op.name == "create pod" {
				for kind, items := range machine.Settle(clean, 3*time.Second) {
					t.Errorf("%s: left behind: %s: %v", point, kind, items)
				}
			}
			if op.after != nil {
				op.after(n, point)
			}
		}
		if err := op.do(nodeFailingAt(t, "")); err != nil {
			t.Fatalf("%s, let through after an error at every boundary: %v", op.name, err)
		}
	}
	if s, err := by.App(bystander.ID); err != nil || s.Phase != pod.Running || s.PID != before.PID {
		t.Errorf("the bystander was %+v and is %+v, %v", before, s, err)
	}
}

func nodeFailingAt(t *testing.T, point string) *node.Node {
	t.Helper()
	o := node.Options{}
	if point != "" {
		o.Failpoints = point + "=error"
	}
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// stepVictim is a pod with one app of which every step fails once.
type stepVictim struct {
	pod *pod.Pod
	app *pod.App
}

// stepOperation is an operation of the engine; after looks at what a failure left.
type stepOperation struct {
	name  string
	do    func(n *node.Node) error
	after func(n *node.Node, point string)
}

func (v *stepVictim) life(t *testing.T) []stepOperation {
	ctx := t.Context()
	attempt := uint32(0)
	newApp := func(n *node.Node) (err error) {
		spec := appSpec("app")
		spec.Command, spec.Attempt = []string{"sleep", "1000000"}, attempt
		v.app, err = n.CreateApp(ctx, v.pod.ID, spec)
		return err
	}
	apps := func(n *node.Node) []pod.AppStatus {
		s, err := n.Pod(v.pod.ID)
		if err != nil {
			t.Error(err)
		}
		return s.Apps
	}
	return []stepOperation{
		{"create pod", func(n *node.Node) (err error) {
			v.pod, err = n.CreatePod(ctx, networkPod("steps"))
			return err
		}, nil},
		{"create app", newApp, func(n *node.Node, point string) {
			if got := apps(n); len(got) != 0 {
				t.Errorf("%s: left behind: %+v", point, got)
			}
		}},
		{"start app", func(n *node.Node) error { return n.StartApp(ctx, v.app.ID) }, func(n *node.Node, point string) {
			got := apps(n)
			if phase := got[len(got)-1].Phase; phase == pod.Exited {
				attempt++ // its process was there already: it is not started again
				if err := newApp(n); err != nil {
					t.Errorf("%s: %v", point, err)
				}
			} else if phase != pod.Prepared {
				t.Errorf("%s: the app is %s", point, phase)
			}
		}},
		{"update app", func(n *node.Node) error { return n.UpdateApp(ctx, v.app.ID, pod.Resources{Memory: 64 << 20}) }, nil},
		{"update pod", func(n *node.Node) error {
			return n.UpdatePod(ctx, v.pod.ID, pod.PodResources{Resources: &pod.Resources{CPUShares: 512}})
		}, nil},
		{"remove app", func(n *node.Node) error { return n.RemoveApp(ctx, v.app.ID) }, func(n *node.Node, point string) {
			if strings.HasSuffix(point, "record/after") && len(apps(n)) > 0 && apps(n)[len(apps(n))-1].ID == v.app.ID {
				t.Errorf("%s: the app is still there", point)
			}
		}},
		{"stop pod", func(n *node.Node) error { return n.StopPod(ctx, v.pod.ID) }, nil},
		{"remove pod", func(n *node.Node) error { return n.RemovePod(ctx, v.pod.ID) }, nil},
	}
}
