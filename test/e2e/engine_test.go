//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/config"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// busybox is the image that most tests run.
const busybox = "localhost:5000/library/busybox:latest"

// openNode gives an engine on the machine's own state, as the CLI has it.
func openNode(t *testing.T, change ...func(*node.Options)) *node.Node {
	t.Helper()
	o := node.Options{
		IsolatorDirs: []string{isolatorDir}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		// Beside crun, as an operator configures it.
		Runtimes: []config.Runtime{{Name: "runc", Command: []string{"/usr/sbin/runc"}}},
	}
	for _, c := range change {
		c(&o)
	}
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// watched is an engine that keeps its view by events, as the CRI server has it.
func watched(t *testing.T) *node.Node {
	t.Helper()
	n := openNode(t)
	// The test's own context ends before its pods are removed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	if err := n.Watch(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}

func pull(t *testing.T, n *node.Node, ref string) *image.Image {
	t.Helper()
	img, err := n.Images().Pull(t.Context(), ref, image.PullOptions{Policy: image.IfMissing})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// podOption changes a pod before it is made.
type podOption func(*pod.Pod)

func hostNetwork(p *pod.Pod) { p.Namespaces.Network = pod.NamespaceNode }

// newPod makes a pod of the CLI and removes it when the test ends.
func newPod(t *testing.T, n *node.Node, options ...podOption) *pod.Pod {
	t.Helper()
	p := pod.Pod{
		Owner: pod.OwnerCLI, Name: strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + "-" + string(pod.NewID()[:6]),
		Hostname:   "gantry-test",
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	for _, o := range options {
		o(&p)
	}
	made, err := n.CreatePod(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience(20*time.Second))
		defer cancel()
		if err := n.RemovePod(ctx, made.ID); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	})
	return made
}

// appOption changes an app before it is made.
type appOption func(*engine.AppSpec)

func command(argv ...string) appOption { return func(s *engine.AppSpec) { s.Command = argv } }

func shell(script string) appOption { return command("/bin/sh", "-c", script) }

func limits(r pod.Resources) appOption { return func(s *engine.AppSpec) { s.Resources = r } }

func appSpec(name string) engine.AppSpec {
	return engine.AppSpec{
		Name: name, Image: busybox,
		Security: pod.Security{Seccomp: pod.Profile{Kind: pod.ProfileRuntimeDefault}, AppArmor: pod.Profile{Kind: pod.ProfileUnconfined}},
	}
}

func newApp(t *testing.T, n *node.Node, p *pod.Pod, options ...appOption) *pod.App {
	t.Helper()
	spec := appSpec("app-" + string(pod.NewID()[:8]))
	spec.LogPath = filepath.Join(t.TempDir(), spec.Name+".log")
	for _, o := range options {
		o(&spec)
	}
	a, err := n.CreateApp(t.Context(), p.ID, spec)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func start(t *testing.T, n *node.Node, a *pod.App) {
	t.Helper()
	if err := n.StartApp(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the end of an app.
func wait(t *testing.T, n *node.Node, a *pod.App) pod.AppStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	s, err := n.WaitApp(ctx, a.ID)
	if err != nil {
		t.Fatalf("wait for app: %v\n%s", err, sh(t, "systemctl status --no-pager -n 30 gantry-app-"+string(a.ID)+" || true"))
	}
	return s
}

// output is what an app wrote, without the framing of its log.
func output(t *testing.T, a *pod.App) string {
	t.Helper()
	data, err := os.ReadFile(a.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 {
			t.Fatalf("log line %q", line)
		}
		b.WriteString(fields[3])
		if fields[2] == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// says waits until all that an app wrote is this line. An app counts as started
// before its first instruction: who sends it a signal waits until it says that it is
// ready for one.
func says(t *testing.T, a *pod.App, line string) {
	t.Helper()
	eventually(t, 10*time.Second, "the app says "+line, func() bool { return output(t, a) == line+"\n" })
}

func TestAppRunsAndExits(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
	for _, want := range []int{0, 42} {
		t.Run(fmt.Sprintf("exit %d", want), func(t *testing.T) {
			a := newApp(t, n, p, shell(fmt.Sprintf("echo out; echo err >&2; hostname; exit %d", want)))
			start(t, n, a)
			s := wait(t, n, a)
			if s.Exit.Code != want {
				t.Errorf("exit code %d (%s: %s), want %d", s.Exit.Code, s.Exit.Reason, s.Exit.Message, want)
			}
			if got := output(t, a); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") || !strings.Contains(got, "gantry-test\n") {
				t.Errorf("output %q", got)
			}
		})
	}
}
