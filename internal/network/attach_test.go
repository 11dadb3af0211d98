package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gantry/internal/network/networktest"
	"gantry/internal/pod"
)

// TestIdlePortmap: portmap is not run for a pod without host ports, but whenever
// it may have something to take down.
func TestIdlePortmap(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "net", "plugins": [
		{"type": "a"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`)
	without := b.attachment()
	with := without
	with.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 8080}}
	for _, c := range []struct {
		a    Attachment
		keep bool // the journal
		want string
	}{
		{with, true, "a ADD, portmap ADD, portmap DEL, a DEL"},
		{without, true, "a ADD, a DEL"},
		{without, false, "a ADD, portmap DEL, a DEL"},
	} {
		before := len(b.log())
		if _, err := b.Add(t.Context(), c.a); err != nil {
			t.Fatal(err)
		}
		if !c.keep {
			if err := b.removeRecord(testPod); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Del(t.Context(), c.a, nil); err != nil {
			t.Fatal(err)
		}
		var calls []string
		for _, call := range b.log()[before:] {
			calls = append(calls, call.Plugin+" "+call.Command)
		}
		if got := strings.Join(calls, ", "); got != c.want {
			t.Errorf("ports %v, journal %v: calls %s, want %s", c.a.Ports, c.keep, got, c.want)
		}
	}
}

// TestBlindPlugins: the CHECK of some would find fault with what is right.
func TestBlindPlugins(t *testing.T) {
	portmap := &libcni.PluginConfig{Network: &types.PluginConf{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}}}
	bridge := &libcni.PluginConfig{Network: &types.PluginConf{Type: "bridge"}}
	bandwidth := &libcni.PluginConfig{Network: &types.PluginConf{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}}}
	asked := record{Capabilities: map[string]any{"portMappings": []any{}}}
	one, both := Result{IPs: []string{"10.1.0.2"}}, Result{IPs: []string{"10.1.0.2", "fd00::2"}}
	for _, c := range []struct {
		name string
		p    *libcni.PluginConfig
		rec  record
		res  Result
		want bool
	}{
		{"one family", portmap, asked, one, false},
		{"only IPv6", portmap, asked, Result{IPs: []string{"fd00::2"}}, false},
		{"dual stack", portmap, asked, both, true},
		{"no host port", portmap, record{}, one, true},
		{"no bandwidth limit", bandwidth, asked, both, true},
		{"a bandwidth limit", bandwidth, record{Capabilities: map[string]any{"bandwidth": map[string]any{}}}, both, false},
		{"another plugin", bridge, asked, both, false},
	} {
		if got := blind(c.p, c.rec, c.res); got != c.want {
			t.Errorf("%s: blind is %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAddAndDel(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	r, err := b.Add(t.Context(), b.attachment())
	if err != nil {
		t.Fatal(err)
	}
	want := Result{IPs: []string{"10.88.0.5"}, Interface: "eth0", MAC: "02:00:00:00:00:02", Gateways: []string{"10.88.0.1"}}
	if got := (Result{IPs: r.IPs, Interface: r.Interface, MAC: r.MAC, Gateways: r.Gateways}); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if !b.recorded() {
		t.Error("no journal after Add")
	}
	// The configuration may change under the pod: DEL uses the old one.
	b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "a"}]}`)
	if err := b.Del(t.Context(), b.attachment(), &r); err != nil {
		t.Fatal(err)
	}
	if got, want := b.sequence(), "a ADD, b ADD, b DEL, a DEL"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
	if b.recorded() {
		t.Error("journal is left after Del")
	}
	for _, c := range b.log() {
		var in struct {
			Name, CNIVersion string
			PrevResult       json.RawMessage
		}
		mustJSON(t, string(c.Stdin), &in)
		if in.Name != "net" || in.CNIVersion != "1.0.0" {
			t.Errorf("%s %s was given network %q version %q", c.Plugin, c.Command, in.Name, in.CNIVersion)
		}
		if first := c.Plugin == "a" && c.Command == "ADD"; (in.PrevResult == nil) != first {
			t.Errorf("%s %s: prevResult %s", c.Plugin, c.Command, in.PrevResult)
		}
		if c.ID != string(testPod) || c.IfName != "eth0" || c.NetNS != b.netns || c.Group != c.PID || c.Notify != "" {
			t.Errorf("call %+v", c)
		}
		if want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=" + string(testPod) + ";K8S_POD_UID=u-1"; c.Args != want {
			t.Errorf("CNI_ARGS %s, want %s", c.Args, want)
		}
	}
}

// TestDelTwiceAtATime: the end of a pod's unit and who stops the pod both give its network
// back. One does, and the other waits for that.
func TestDelTwiceAtATime(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	r, err := b.Add(t.Context(), b.attachment())
	if err != nil {
		t.Fatal(err)
	}
	b.on("b", "DEL", networktest.Step{Slow: 1000})
	ended := make(chan error)
	for range 5 {
		go func() { ended <- b.Del(t.Context(), b.attachment(), &r) }()
	}
	for range 5 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got, want := b.sequence(), "a ADD, b ADD, b DEL, a DEL"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
}

func TestDelWithoutAnything(t *testing.T) {
	for name, c := range map[string]struct {
		journal, netns bool
		want           string
	}{
		"from the journal":     {true, true, "b DEL, a DEL"},
		"namespace is gone":    {true, false, "b DEL, a DEL"},
		"from the conf of now": {false, false, "a DEL"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, time.Minute)
			b.confFile("10-net.conflist", twoPlugins)
			if _, err := b.Add(t.Context(), b.attachment()); err != nil {
				t.Fatal(err)
			}
			os.Remove(b.calls)
			b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "a"}]}`)
			if !c.journal {
				os.RemoveAll(b.cache)
			}
			if !c.netns {
				os.Remove(b.netns)
			}
			for range 2 { // idempotent
				if err := b.open(time.Minute).Del(t.Context(), b.attachment(), nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := b.sequence(); !strings.HasPrefix(got, c.want) {
				t.Errorf("calls: %s, want %s", got, c.want)
			}
			for _, call := range b.log() {
				if (call.NetNS != "") != c.netns {
					t.Errorf("CNI_NETNS %q", call.NetNS)
				}
			}
		})
	}
	t.Run("no network at all", func(t *testing.T) {
		b := newBed(t, time.Minute)
		if err := b.Del(t.Context(), b.attachment(), nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("a network that is broken now", func(t *testing.T) {
		b := newBed(t, time.Minute)
		b.confFile("10-net.conflist", `{`)
		wants(t, b.Del(t.Context(), b.attachment(), nil), pod.ErrUnavailable, "network del: ", "10-net.conflist")
		b.DelUnrecorded(t.Context(), b.attachment()) // says so in the log, and no more
	})
	for _, there := range []bool{true, false} {
		t.Run(fmt.Sprintf("no record, namespace %v", there), func(t *testing.T) {
			b := newBed(t, time.Minute)
			b.confFile("10-net.conflist", twoPlugins)
			if !there {
				os.Remove(b.netns)
			}
			b.DelUnrecorded(t.Context(), b.attachment())
			if got := b.sequence(); strings.Contains(got, "DEL") != there {
				t.Errorf("calls: %s", got)
			}
		})
	}
}

// TestStandIn: plugins that masquerade are shown the addresses that were lost.
func TestStandIn(t *testing.T) {
	masq := strings.Replace(twoPlugins, `{"type": "a"}`, `{"type": "a", "ipMasq": true}`, 1)
	for name, c := range map[string]struct {
		netns, link, result bool
		want                []string
		rebooted            bool
	}{
		"whole":          {true, true, true, []string{"real"}, false},
		"namespace gone": {false, false, true, []string{"", "stand-in 10.88.0.5"}, false},
		"address gone":   {true, false, true, []string{"real", "stand-in 10.88.0.5"}, false},
		"after a reboot": {false, false, true, []string{""}, true},
		"only leases":    {false, false, false, []string{"", "stand-in 10.88.0.7", "stand-in fd00::7"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, time.Minute)
			b.confFile("10-net.conflist", masq)
			r, err := b.Add(t.Context(), b.attachment())
			if err != nil {
				t.Fatal(err)
			}
			b.lease("net", "10.88.0.7", testPod)
			b.lease("net", "fd00::7", testPod)
			saved := &r
			if !c.result {
				saved = nil
				os.RemoveAll(b.cache)
			}
			if !c.netns {
				os.Remove(b.netns)
			}
			if c.rebooted {
				b.boot = "another"
			}
			b.sys.checkLink = func(string, Result) error {
				if c.link {
					return nil
				}
				return pod.ErrState
			}
			if err := b.Del(t.Context(), b.attachment(), saved); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, call := range b.log() {
				if call.Command == "DEL" && call.Plugin == "a" {
					got = append(got, strings.Replace(call.NetNS, b.netns, "real", 1))
				}
			}
			if !cmp.Equal(got, c.want) {
				t.Error(cmp.Diff(c.want, got))
			}
		})
	}
}

func TestAddFails(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	garbage := "hello\nworld"
	for name, c := range map[string]struct {
		step  networktest.Step
		kind  error
		texts []string
	}{
		"CNI error":       {networktest.Step{Code: 7, Msg: "no bridge\nhere"}, nil, []string{"network add: plugin b: no bridge here (after "}},
		"try again later": {networktest.Step{Code: 11, Msg: "busy"}, pod.ErrUnavailable, []string{"plugin b: busy (after "}},
		"exit status":     {networktest.Step{Code: 3, Stderr: "\x1b[31mboom"}, nil, []string{"plugin b: exit status 3: stderr: ?[31mboom (after "}},
		"long stderr":     {networktest.Step{Code: 3, Stderr: long + "reason"}, nil, []string{"xreason (after "}},
		"garbage and bad": {networktest.Step{Code: 3, Print: &garbage}, nil, []string{`no CNI error but "hello world": exit status 3`}},
		"garbage":         {networktest.Step{Print: &garbage}, nil, []string{"plugin b: "}},
		"nothing":         {networktest.Step{Print: new(string)}, nil, []string{"plugin b: "}},
		"signal":          {networktest.Step{Die: 9}, nil, []string{"plugin b: killed by signal 9 (killed) (after "}},
		"flood":           {networktest.Step{Flood: maxStdout + 1}, nil, []string{"wrote more than"}},
		"no address":      {networktest.Step{Result: json.RawMessage(`{"cniVersion":"1.0.0"}`)}, nil, []string{"network add: result: no address"}},
		"fork and fail":   {networktest.Step{Fork: 30, Code: 3}, nil, []string{"exit status 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, time.Minute)
			b.confFile("10-net.conflist", twoPlugins)
			b.on("b", "ADD", c.step)
			start := time.Now()
			_, err := b.Add(t.Context(), b.attachment())
			wants(t, err, c.kind, c.texts...)
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %s", d)
			}
			if len(err.Error()) > 4096 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if got, want := b.sequence(), "a ADD, b ADD, b DEL, a DEL"; got != want {
				t.Errorf("calls: %s, want %s", got, want)
			}
			if b.recorded() {
				t.Error("journal is left")
			}
		})
	}
}

// TestUndoFails: what could not be undone is not forgotten.
func TestUndoFails(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	b.script("b", networktest.Script{On: map[string]networktest.Step{
		"ADD": {Times: 1, Code: 7, Msg: "no"}, "DEL": {Times: 2, Code: 7, Msg: "stuck"},
	}})
	_, err := b.Add(t.Context(), b.attachment())
	wants(t, err, nil, "plugin b: no (after", "and undo: plugin b: stuck (after")
	if !b.recorded() || !b.Attached(b.attachment().Pod) {
		t.Fatal("the journal is gone")
	}
	if rec := b.readRecord(b.attachment().Pod); rec == nil || !strings.Contains(string(rec.Raw), "10.88.0.5") {
		t.Errorf("the journal does not know the address that plugin a gave: %+v", rec)
	}
	_, err = b.Add(t.Context(), b.attachment())
	wants(t, err, nil, "network add: undo an earlier attempt: plugin b: stuck")
	if _, err = b.Add(t.Context(), b.attachment()); err != nil {
		t.Error(err)
	}
	if b.Attached("other") {
		t.Error("a pod that was never attached is")
	}
	if got, want := b.sequence(), "a ADD, b ADD, b DEL, b DEL, b DEL, a DEL, a ADD, b ADD"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
}

// TestHang: the time is bounded, everything that the plugin started is killed, and
// its last words are in the error.
func TestHang(t *testing.T) {
	b := newBed(t, 3*time.Second)
	b.confFile("10-net.conflist", twoPlugins)
	b.Info(t.Context()) // ask for the versions, which takes a while on a busy machine
	b.on("b", "ADD", networktest.Step{Stderr: "waiting for the moon", Fork: 1000, Hang: true})
	start := time.Now()
	_, err := b.Add(t.Context(), b.attachment())
	wants(t, err, context.DeadlineExceeded, "network add: plugin b: killed: took longer than 3s", "stderr: waiting for the moon", "(after ")
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("took %s", d)
	}
	if n := marked(); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

func TestCallerGivesUp(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	b.on("b", "ADD", networktest.Step{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for !strings.Contains(b.sequence(), "b ADD") && t.Context().Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	_, err := b.Add(ctx, b.attachment())
	wants(t, err, context.Canceled, "plugin b: killed: context canceled")
	if got, want := b.sequence(), "a ADD, b ADD, b DEL, a DEL"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
}

// marked counts living processes that some plugin of this test's pods started.
func marked() int {
	n := 0
	dirs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, d := range dirs {
		env, _ := os.ReadFile(d)
		if strings.Contains(string(env), callEnv+"="+string(testPod)+".") && strings.Contains(string(env), "TestHang") {
			n++
		}
	}
	return n
}

// TestDaemonIsNotWaitedFor: a plugin that leaves a daemon behind with its stderr
// open has ended when it ends.
func TestDaemonIsNotWaitedFor(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	b.on("b", "ADD", networktest.Step{Fork: 30})
	start := time.Now()
	if _, err := b.Add(t.Context(), b.attachment()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("took %s", d)
	}
}

// TestKillStale: a plugin holds the lock of its killed caller until its time is
// over, and is then ended.
func TestKillStale(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	b.on("b", "ADD", networktest.Step{Hang: true})
	lock, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	a := b.attachment()
	a.Pod, a.Lock = "stalestalestalestalestal", lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { _, err := b.Add(t.Context(), a); gone <- err }()
	for !strings.Contains(b.sequence(), "b ADD") {
		time.Sleep(10 * time.Millisecond)
	}
	lock.Close() // as a killed caller does

	again, err := os.Open(lock.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Fatal("the lock is free while the plugin runs")
	}
	if err := b.KillStale(t.Context(), a.Pod); err != nil { // not old enough
		t.Fatal(err)
	}
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Fatal("the plugin was killed within its time")
	}
	impatient := b.open(time.Millisecond)
	if err := impatient.KillStale(t.Context(), a.Pod); err != nil {
		t.Fatal(err)
	}
	wants(t, <-gone, nil, "killed by signal 9")
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Error("the lock is not free:", err)
	}
}

func TestNotReady(t *testing.T) {
	b := newBed(t, time.Minute)
	_, err := b.Add(t.Context(), b.attachment())
	wants(t, err, pod.ErrUnavailable, "network add: no network configuration in "+b.conf)
	a := b.attachment()
	a.Pod = "../../etc"
	_, err = b.Add(t.Context(), a)
	wants(t, err, pod.ErrInvalid)
}

func TestCheck(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	wants(t, b.Check(t.Context(), b.attachment(), nil), pod.ErrState, "not attached")
	r, err := b.Add(t.Context(), b.attachment())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context(), b.attachment(), &r); err != nil {
		t.Fatal(err)
	}
	if got, want := b.sequence(), "a ADD, b ADD, a CHECK, b CHECK"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
	b.on("b", "CHECK", networktest.Step{Code: 7, Msg: "rule is missing"})
	err = b.Check(t.Context(), b.attachment(), &r)
	wants(t, err, nil, "network check: plugin b: rule is missing")
	if errors.Is(err, pod.ErrState) {
		t.Errorf("what a plugin complains about reads as a pod without a network: %v", err)
	}
	os.Remove(b.netns)
	wants(t, b.Check(t.Context(), b.attachment(), &r), pod.ErrState, "is gone")
}

func TestCapabilitiesReachThePlugin(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	b.SetPodCIDRs([]string{"10.1.2.3/24,fd00:1::/64"})
	a := b.attachment()
	a.Ports = []pod.Port{{Protocol: "TCP", PodPort: 80, HostPort: 8080, HostIP: "127.0.0.1"}, {Protocol: pod.UDP, PodPort: 53}}
	a.DNS = &pod.DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	a.Annotations = map[string]string{ingressAnnotation: "10M", egressAnnotation: "1G"}
	r, err := b.Add(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	// CIDRs change while the pod runs, and the engine is another process.
	other := b.open(time.Minute)
	other.SetPodCIDRs([]string{"10.9.0.0/24"})
	if err := other.Del(t.Context(), a, &r); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{}
	mustJSON(t, `{
		"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
		"bandwidth": {"ingressRate": 10000000, "ingressBurst": 2097152, "egressRate": 1000000000, "egressBurst": 100000000},
		"ipRanges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
		"dns": {"servers": ["10.0.0.10"], "searches": ["svc"], "options": ["ndots:5"]}
	}`, &want)
	for _, c := range b.log() {
		var in struct{ RuntimeConfig map[string]any }
		mustJSON(t, string(c.Stdin), &in)
		switch {
		case c.Plugin == "a" && in.RuntimeConfig != nil:
			t.Errorf("a %s was given %v", c.Command, in.RuntimeConfig)
		case c.Plugin == "b" && !cmp.Equal(in.RuntimeConfig, want):
			t.Errorf("b %s: %s", c.Command, cmp.Diff(want, in.RuntimeConfig))
		}
	}
}
