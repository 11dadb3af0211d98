//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

const (
	isolatorDir = "/etc/gantry/isolators"
	// exampleFile is the isolator of the documentation, as it is installed.
	exampleFile = "/usr/share/doc/gantry/examples/isolators/unshare"
)

// drop puts an isolator where the node finds it, until the test ends.
func drop(t *testing.T, name string, data []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(isolatorDir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(isolatorDir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
		_ = os.Remove(isolatorDir) // if it was the last
	})
	return path
}

func dropExample(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	drop(t, "unshare", data, 0o755)
}

func inUnshare(p *pod.Pod) { p.Handler = "unshare" }

// TestExampleIsolator: the isolator of the documentation is there as soon as its file is.
func TestExampleIsolator(t *testing.T) {
	guard(t)
	dropExample(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inUnshare)
	if s := listed(t, n, "unshare"); s.Broken != nil || s.Source != isolatorDir+"/unshare" {
		t.Errorf("listed as %+v", s)
	}
	t.Run("runs and exits", func(t *testing.T) {
		a := newApp(t, n, p, shell("echo out $$; echo err >&2; hostname; exit 42"))
		start(t, n, a)
		s := wait(t, n, a)
		if s.Exit.Code != 42 || s.Exit.Reason != pod.ReasonError {
			t.Errorf("exit %+v", s.Exit)
		}
		if got := output(t, a); !strings.Contains(got, "out 1\n") || !strings.Contains(got, "err\n") || !strings.Contains(got, "gantry-test\n") {
			t.Errorf("output %q", got)
		}
	})
	t.Run("stop", func(t *testing.T) {
		a := newApp(t, n, p, shell("trap 'echo stopped; exit 7' TERM; echo ready; while :; do sleep 1; done"))
		start(t, n, a)
		says(t, a, "ready")
		if err := n.StopApp(t.Context(), a.ID, patience(20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if s := wait(t, n, a); s.Exit.Code != 7 || output(t, a) != "ready\nstopped\n" {
			t.Errorf("exit %+v, output %q", s.Exit, output(t, a))
		}
	})
	t.Run("kill", func(t *testing.T) {
		a := newApp(t, n, p, shell("trap '' TERM; echo ready; while :; do sleep 1; done"))
		start(t, n, a)
		says(t, a, "ready")
		if err := n.StopApp(t.Context(), a.ID, 0); err != nil {
			t.Fatal(err)
		}
		if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Signal != int(unix.SIGKILL) {
			t.Errorf("exit %+v", s.Exit)
		}
	})
	t.Run("systemctl stop", func(t *testing.T) {
		a := newApp(t, n, p, shell("trap 'exit 9' TERM; echo ready; while :; do sleep 1; done"))
		start(t, n, a)
		says(t, a, "ready")
		sh(t, "systemctl stop "+unit.App(string(a.ID)))
		if s := wait(t, n, a); s.Exit.Code != 9 {
			t.Errorf("exit %+v", s.Exit)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		a := newApp(t, n, p, shell("x=a; while :; do x=$x$x; done"), limits(pod.Resources{Memory: 16 << 20}))
		start(t, n, a)
		if s := wait(t, n, a); s.Exit.Reason != pod.ReasonOOMKilled {
			t.Errorf("exit %+v", s.Exit)
		}
	})
	t.Run("killed by a signal", func(t *testing.T) {
		a := newApp(t, n, p, shell("echo ready; sleep 1000"))
		start(t, n, a)
		says(t, a, "ready")
		s, err := n.App(a.ID)
		if err != nil {
			t.Fatal(err)
		}
		sh(t, fmt.Sprintf("kill -KILL %d", s.PID))
		if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Signal != int(unix.SIGKILL) {
			t.Errorf("exit %+v", s.Exit)
		}
	})
	t.Run("sees its own processes", func(t *testing.T) {
		a := newApp(t, n, p, command("sleep", "1000"))
		start(t, n, a)
		out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "ps -o pid,args | grep -c .; cat /proc/1/comm; hostname; exit 3"}}, "")
		if lines := strings.Fields(out); code != 3 || len(lines) != 3 || len(lines[0]) > 1 || lines[1] != "sleep" || lines[2] != "gantry-test" {
			t.Errorf("exec: %d, %q", code, out)
		}
	})
	t.Run("cannot be started", func(t *testing.T) {
		a := newApp(t, n, p, command("/no/such/program"))
		err := n.StartApp(t.Context(), a.ID)
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("start: %v", err)
		}
		if s := wait(t, n, a); s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError {
			t.Errorf("exit %+v", s.Exit)
		}
	})
	t.Run("lacks", func(t *testing.T) {
		_, err := n.CreatePod(t.Context(), pod.Pod{
			Owner: pod.OwnerCLI, Name: "lacks", Handler: "unshare",
			Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespacePod, IPC: pod.NamespacePod},
		})
		if !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), "namespaces.pid=pod") {
			t.Errorf("a shared PID namespace: %v", err)
		}
	})
}

func listed(t *testing.T, n *node.Node, name string) engine.IsolatorFeatures {
	t.Helper()
	for _, f := range n.Features() {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("isolator %s is not listed", name)
	return engine.IsolatorFeatures{}
}

// chrootIsolator is all of the app: nothing of it is Gantry's but the file system, and
// the unit.
const chrootIsolator = `#!/bin/sh
set -eu
jq -c --arg verb "$1" '
def env: [.env[] | @sh] | join(" ");
if .version != 1 then {version: 1, error: {kind: "unsupported", message: "version"}}
elif $verb == "features" then {version: 1, features: {isolation: "none", hostNetwork: true, hostPID: true, hostIPC: true, sharedPID: true, tty: true}}
elif $verb == "app" then {version: 1, plan: {
	run: {argv: (["/usr/sbin/chroot", .app.rootfs] + .app.process.argv), env: .app.process.env},
	files: [{path: "note", text: "mine", public: true}]}}
elif $verb == "exec" then {version: 1, exec: {
	argv: (["/usr/bin/nsenter", "--target", "\(.exec.pid)", "--mount", "--", "/bin/sh", "-c", ". $0; exec chroot \(.app.rootfs) \"$@\"", "{process}"] + .exec.process.argv),
	input: "export \(.exec.process | env)"}}
elif $verb == "sandbox" or $verb == "cleanup" then {version: 1}
else {version: 1, error: {kind: "unsupported", message: "verb"}} end'
`

// TestIsolatorThatIsAll: a third party's program may be all of the app.
func TestIsolatorThatIsAll(t *testing.T) {
	guard(t)
	drop(t, "all", []byte(chrootIsolator), 0o755)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork, func(p *pod.Pod) { p.Handler = "all" })
	a := newApp(t, n, p, shell("echo $A; ls /bin/busybox; trap 'exit 5' TERM; echo ready; while :; do sleep 1; done"),
		with(func(s *engine.AppSpec) { s.Env = []string{"A=of mine"} }))
	start(t, n, a)
	eventually(t, 10*time.Second, "the app is ready", func() bool { return output(t, a) == "of mine\n/bin/busybox\nready\n" })
	out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "echo $A $B; exit 4"}, Env: []string{"B=2"}}, "")
	if out != "of mine 2\n" || code != 4 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if err := n.StopApp(t.Context(), a.ID, patience(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 5 {
		t.Errorf("exit %+v", s.Exit)
	}
	tty := printed(t, n, p, "test -t 0 && test -t 1 && echo tty", with(func(s *engine.AppSpec) { s.TTY = true }))
	if strings.TrimSpace(tty) != "tty" {
		t.Errorf("with a terminal: %q", tty)
	}
}

// TestBrokenIsolators: what cannot be trusted, or does not work, is listed with the reason
// and runs nothing.
func TestBrokenIsolators(t *testing.T) {
	guard(t)
	drop(t, "writable", []byte("#!/bin/sh\ntouch /run/gantry-was-run\n"), 0o777)
	drop(t, "garbage", []byte("#!/bin/sh\necho what\n"), 0o755)
	drop(t, "oci", []byte("#!/bin/sh\ntouch /run/gantry-was-run\n"), 0o755)
	n := openNode(t)
	for name, want := range map[string]string{"writable": "can be written to by others", "garbage": "not one of the contract"} {
		_, err := n.CreatePod(t.Context(), pod.Pod{
			Owner: pod.OwnerCLI, Name: name, Handler: name,
			Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list := sh(t, "gantry isolator list")
	for _, want := range []string{"others (mode 0777)", isolatorDir + "/garbage", "the name is that of one of Gantry's own"} {
		if !strings.Contains(list, want) {
			t.Errorf("the list lacks %q:\n%s", want, list)
		}
	}
	if _, err := os.Stat("/run/gantry-was-run"); err == nil {
		t.Error("a file that is not to be trusted was executed")
	}
}

// TestIsolatorByTheCommandLine: an operator who drops the file needs nothing else.
func TestIsolatorByTheCommandLine(t *testing.T) {
	guard(t)
	if out := sh(t, "gantry isolator check "+exampleFile); strings.Contains(out, "FAIL") || !strings.Contains(out, "ok    secrets stay secret") {
		t.Errorf("check:\n%s", out)
	}
	dropExample(t)
	sameText(t, sh(t, "gantry isolator list --no-legend | grep '^unshare' | tr -s ' ' | cut -d' ' -f1-5"), "unshare unshare namespaces - "+isolatorDir+"/unshare")
	sameText(t, sh(t, "gantry run --rm --quiet --isolator unshare "+busybox+" -- sh -c 'echo I am $$; exit 42' || echo code $?"), "I am 1\ncode 42")
	if out := sh(t, "gantry run --rm --quiet --isolator nowhere "+busybox+" true 2>&1 || true"); !strings.Contains(out, "unshare") {
		t.Errorf("an isolator that is not there: %s", out)
	}
}
