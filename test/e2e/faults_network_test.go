//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/network/networktest"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// badNetwork is a node of which one plugin, between real ones, does what a script
// says, and a pod that must not notice.
type badNetwork struct {
	*wire
	node      *node.Node
	limit     time.Duration
	bystander *pod.App
	pid       int
}

func newBadNetwork(t *testing.T) *badNetwork {
	t.Helper()
	b := &badNetwork{wire: newWire(t, dualStack, `{"type": "fake"},`), limit: patience(2 * time.Second)}
	b.set(t, networktest.Script{})
	b.node = b.openNode(t.Context(), t)
	pull(t, b.node, busybox)
	b.bystander = newApp(t, b.node, newPod(t, b.node), command("sleep", "1000000"))
	start(t, b.node, b.bystander)
	b.pid = b.running(t)
	return b
}

func (b *badNetwork) options() node.Options {
	return node.Options{
		NetworkConfDir: b.dir + "/net.d", NetworkBinDirs: []string{b.dir + "/bin", "/opt/cni/bin", "/usr/lib/cni"}, NetworkTimeout: b.limit,
	}
}

func (b *badNetwork) openNode(ctx context.Context, t *testing.T) *node.Node {
	t.Helper()
	o := b.options()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	n, err := node.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func (b *badNetwork) set(t *testing.T, s networktest.Script) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.Log = b.dir + "/calls"
	sh(t, "rm -f "+s.Log)
	if err := networktest.Install(b.dir+"/bin", "fake", exe, s); err != nil {
		t.Fatal(err)
	}
}

func (b *badNetwork) running(t *testing.T) int {
	t.Helper()
	s, err := b.node.App(b.bystander.ID)
	if err != nil || s.Phase != pod.Running {
		t.Errorf("the bystander is %s: %v", s.Phase, err)
	}
	return s.PID
}

func (b *badNetwork) unharmed(t *testing.T) {
	t.Helper()
	if pid := b.running(t); pid != b.pid {
		t.Errorf("the bystander's process was %d and is %d", b.pid, pid)
	}
	if p, err := b.node.Pod(b.bystander.Pod); err != nil || !p.Ready || len(p.IPs) != 2 {
		t.Errorf("the bystander's pod: %+v, %v", p, err)
	}
}

// others says which pods there are beside the bystander's.
func (b *badNetwork) others(t *testing.T) (ids []pod.ID) {
	t.Helper()
	pods, err := b.node.Pods(engine.Filter{Owner: pod.OwnerCLI})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if p.ID != b.bystander.Pod {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// traces is what the plugins have of a pod: its leases and rules.
func (b *badNetwork) traces(t *testing.T, id pod.ID) string {
	t.Helper()
	return b.rules(id) + sh(t, "grep -rls "+string(id)+" "+b.leases()+" || true")
}

func networkPod(name string) pod.Pod {
	return pod.Pod{
		Owner: pod.OwnerCLI, Name: name, Ports: []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18090}},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
}

// TestPodWhosePluginFails: a pod whose network cannot be made is not there
// afterwards, and the next one is made well.
func TestPodWhosePluginFails(t *testing.T) {
	guard(t)
	b := newBadNetwork(t)
	garbage := "not json"
	for name, c := range map[string]struct {
		step networktest.Step
		want string
	}{
		"fails":          {networktest.Step{Code: 7, Msg: "out of luck"}, "plugin fake: out of luck (after "},
		"dies":           {networktest.Step{Die: 9}, "plugin fake: killed by signal 9"},
		"hangs":          {networktest.Step{Hang: true, Fork: lasts}, "plugin fake: killed: took longer than " + b.limit.String()},
		"prints garbage": {networktest.Step{Print: &garbage}, "plugin fake: "},
	} {
		t.Run(name, func(t *testing.T) {
			guard(t)
			b.set(t, networktest.Script{On: map[string]networktest.Step{"ADD": c.step}})
			began := time.Now()
			_, err := b.node.CreatePod(t.Context(), networkPod("bad"))
			t.Log(err)
			if err == nil || !strings.Contains(err.Error(), "create pod: network: network add: "+c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			// ADD and the DEL that follows are bounded each.
			if took := time.Since(began); took > 2*b.limit+patience(time.Second) {
				t.Errorf("took %s", took)
			}
			if left := b.others(t); len(left) > 0 {
				t.Errorf("pods are left: %v", left)
			}
			if left := strays(t); left != "" {
				t.Errorf("what the plugin started is left: %s", left)
			}
			b.set(t, networktest.Script{})
			p, err := b.node.CreatePod(t.Context(), networkPod("bad"))
			if err != nil {
				t.Fatalf("once the fault is gone: %v", err)
			}
			if err := b.node.RemovePod(t.Context(), p.ID); err != nil {
				t.Error(err)
			}
			if left := b.traces(t, p.ID); left != "" {
				t.Errorf("left: %s", left)
			}
			b.unharmed(t)
		})
	}
}

// TestPluginLeavesDaemon: a daemon that a plugin leaves behind, with all it
// inherited, neither delays a pod nor keeps its lock.
func TestPluginLeavesDaemon(t *testing.T) {
	guard(t)
	b := newBadNetwork(t)
	t.Cleanup(func() { sh(t, fmt.Sprintf("pkill -f 'slee[p] %d' || true", lasts)) })
	b.set(t, networktest.Script{On: map[string]networktest.Step{"ADD": {Fork: lasts}}})
	began := time.Now()
	p, err := b.node.CreatePod(t.Context(), networkPod("daemon"))
	if err == nil {
		err = b.node.RemovePod(t.Context(), p.ID)
	}
	if err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > b.limit {
		t.Errorf("took %s: somebody waited for the daemon", took)
	}
	if strays(t) == "" {
		t.Error("there was no daemon")
	}
	b.unharmed(t)
}

// TestStopWhosePluginFails: a pod whose network cannot be taken down is still
// there and says so; the next try ends it.
func TestStopWhosePluginFails(t *testing.T) {
	guard(t)
	b := newBadNetwork(t)
	for name, c := range map[string]struct {
		step networktest.Step
		want string
	}{
		"fails": {networktest.Step{Code: 7, Msg: "not now"}, "plugin fake: not now (after "},
		"dies":  {networktest.Step{Die: 9}, "plugin fake: killed by signal 9"},
		"hangs": {networktest.Step{Hang: true, Fork: lasts}, "plugin fake: killed: took longer than " + b.limit.String()},
	} {
		t.Run(name, func(t *testing.T) {
			guard(t)
			p, err := b.node.CreatePod(t.Context(), networkPod("bad"))
			if err != nil {
				t.Fatal(err)
			}
			b.set(t, networktest.Script{On: map[string]networktest.Step{"DEL": c.step}})
			began := time.Now()
			err = b.node.RemovePod(t.Context(), p.ID)
			t.Log(err)
			if err == nil || !strings.Contains(err.Error(), "stop pod: network: network del: "+c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(began); took > b.limit+patience(time.Second) {
				t.Errorf("took %s", took)
			}
			if _, err := b.node.Pod(p.ID); err != nil {
				t.Errorf("a pod that was not ended: %v", err)
			}
			b.set(t, networktest.Script{})
			if err := b.node.RemovePod(t.Context(), p.ID); err != nil {
				t.Errorf("once the fault is gone: %v", err)
			}
			if left := b.traces(t, p.ID) + strays(t); left != "" {
				t.Errorf("left: %s", left)
			}
			b.unharmed(t)
		})
	}
}

// TestUnitStopWhosePluginHangs: "systemctl stop" of a pod's unit ends although a
// plugin does not, and what could not be given back is given back later.
func TestUnitStopWhosePluginHangs(t *testing.T) {
	guard(t)
	b := newBadNetwork(t)
	// gantry-init runs "gantry", which knows the node's own configuration only.
	conf := "/etc/gantry/config.d/90-e2e-faults.toml"
	o := b.options()
	sh(t, fmt.Sprintf("mkdir -p /etc/gantry/config.d && printf '[network]\\ntimeout = \"%s\"\\nconf-dir = \"%s\"\\nbin-dirs = [\"%s\", \"%s\", \"%s\"]\\n' > %s",
		o.NetworkTimeout, o.NetworkConfDir, o.NetworkBinDirs[0], o.NetworkBinDirs[1], o.NetworkBinDirs[2], conf))
	t.Cleanup(func() { sh(t, "rm "+conf) })
	p, err := b.node.CreatePod(t.Context(), networkPod("bad"))
	if err != nil {
		t.Fatal(err)
	}
	b.set(t, networktest.Script{On: map[string]networktest.Step{"DEL": {Hang: true}}})
	began := time.Now()
	sh(t, "systemctl stop gantry-pod-"+string(p.ID)+".service || true")
	if took := time.Since(began); took > b.limit+patience(3*time.Second) {
		t.Errorf("took %s", took)
	}
	if s, err := b.node.Pod(p.ID); err != nil || s.Ready {
		t.Errorf("the pod is ready: %v", err)
	}
	b.set(t, networktest.Script{})
	if err := b.node.RemovePod(t.Context(), p.ID); err != nil {
		t.Errorf("once the fault is gone: %v", err)
	}
	if left := b.traces(t, p.ID); left != "" {
		t.Errorf("left: %s", left)
	}
	b.unharmed(t)
}

// hungEnv makes TestCallerOfHungPluginKilled the program that it kills.
const hungEnv = "GANTRY_E2E_HUNG_VICTIM"

// TestCallerOfHungPluginKilled kills a program while a plugin of its hangs and has
// the pod's lock. Whoever wants the pod next gets it when the plugin's time is
// over.
func TestCallerOfHungPluginKilled(t *testing.T) {
	if dir := os.Getenv(hungEnv); dir == "" {
		guard(t)
	} else {
		beHung(t, dir)
		return
	}
	b := newBadNetwork(t)
	b.set(t, networktest.Script{On: map[string]networktest.Step{"ADD": {Hang: true, Fork: lasts}}})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^TestCallerOfHungPluginKilled$")
	cmd.Env = append(os.Environ(), hungEnv+"="+b.dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the plugin runs", func() bool {
		calls, err := networktest.Calls(b.dir + "/calls")
		return err == nil && len(calls) > 0 && calls[len(calls)-1].Command == "ADD"
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	left := b.others(t)
	if len(left) != 1 {
		t.Fatalf("the killed program left %v, want one pod", left)
	}
	b.set(t, networktest.Script{})
	began := time.Now()
	if err := b.node.RemovePod(t.Context(), left[0]); err != nil {
		t.Error(err)
	}
	took := time.Since(began)
	t.Logf("waited %s for a plugin that may take %s", took.Round(time.Millisecond), b.limit)
	if took > b.limit+patience(2*time.Second) {
		t.Errorf("took %s", took)
	}
	if left := b.traces(t, left[0]) + strays(t); left != "" {
		t.Errorf("left: %s", left)
	}
	b.unharmed(t)
}

func beHung(t *testing.T, dir string) {
	b := &badNetwork{wire: &wire{t: t, dir: dir}, limit: patience(time.Minute)}
	if _, err := b.openNode(context.Background(), t).CreatePod(context.Background(), networkPod("hung")); err == nil {
		t.Error("the plugin does not hang")
	}
}

// TestPodWithBadConfiguration: the error names the file and what is wrong with it.
func TestPodWithBadConfiguration(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	b := &badNetwork{wire: w, limit: patience(2 * time.Second)}
	n := b.openNode(t.Context(), t)
	for name, c := range map[string]struct{ conf, want string }{
		"no json":       {"{", "10-e2e.conflist: "},
		"no plugins":    {`{"cniVersion": "1.0.0", "name": "x", "plugins": []}`, "10-e2e.conflist: "},
		"no name":       {`{"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}`, "10-e2e.conflist: "},
		"no program":    {`{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "no-such-plugin"}]}`, "no-such-plugin is not in"},
		"a path":        {`{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "../../bin/true"}]}`, "is not a file name"},
		"no version":    {`{"cniVersion": "9.9.9", "name": "x", "plugins": [{"type": "bridge"}]}`, "9.9.9"},
		"nothing there": {"", "no network configuration in"},
	} {
		t.Run(name, func(t *testing.T) {
			guard(t)
			w.conf(c.conf)
			if c.conf == "" {
				sh(t, "rm "+filepath.Join(w.dir, "net.d", "*"))
			}
			_, err := n.CreatePod(t.Context(), networkPod("bad"))
			t.Log(err)
			if err == nil || !strings.Contains(err.Error(), "create pod: network: network add: ") || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "(after ") || strings.Contains(err.Error(), "undo") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
