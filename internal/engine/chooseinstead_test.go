package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// apart is an isolator that shares nothing of the host.
type apart struct{ likeness }

func (a apart) Features() isolator.Features {
	f := a.likeness.Features()
	f.HostNetwork, f.HostPID, f.HostIPC, f.UserNamespaces, f.Privileged = false, false, false, false, false
	return f
}

// choosingApart is an engine whose default isolator cannot run what needs the host.
func choosingApart(t *testing.T, usual string, weaker Weaker) *Engine {
	t.Helper()
	cfg := newBench(t, false, nil).cfg
	oci := cfg.Isolators[0]
	cfg.Isolators = []isolator.Isolator{oci, likeness{oci, "fly", isolator.IsolationNone}, apart{likeness{oci, "kvm", isolator.IsolationMachine}}}
	cfg.Isolator, cfg.Weaker, cfg.Handlers = usual, weaker, map[string]string{"thin": "fly", "plain": "oci"}
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// needing are pods that need the host, by the field that says so.
func needing() map[string]func(*pod.Pod) {
	return map[string]func(*pod.Pod){
		"namespaces.network=node": func(p *pod.Pod) { p.Namespaces.Network = pod.NamespaceNode },
		"namespaces.pid=node":     func(p *pod.Pod) { p.Namespaces.PID = pod.NamespaceNode },
		"namespaces.ipc=node":     func(p *pod.Pod) { p.Namespaces.IPC = pod.NamespaceNode },
		"namespaces.user":         func(p *pod.Pod) { p.Namespaces.User = &pod.UserNS{} },
		"security.privileged":     func(p *pod.Pod) { p.Security.Privileged = true },
	}
}

// TestInstead goes through all ways in which a pod that needs the host, or does not, can
// ask, may be allowed a weaker isolator, and the operator may have named one.
func TestInstead(t *testing.T) {
	t.Parallel()
	pods := needing()
	pods[""] = func(*pod.Pod) {}
	asks := map[string]func(*pod.Pod){
		"":      func(*pod.Pod) {},
		"kvm":   func(p *pod.Pod) { p.Handler = "kvm" },
		"oci":   func(p *pod.Pod) { p.Annotations = map[string]string{annotationIsolator: "oci"} },
		"plain": func(p *pod.Pod) { p.Handler = "plain" },
		"fly":   func(p *pod.Pod) { p.Annotations = map[string]string{annotationStage1: "coreos.com/rkt/stage1-fly"} },
	}
	permits := map[string]struct {
		change func(*pod.Pod)
		ok     bool
	}{
		"nobody":            {func(*pod.Pod) {}, false},
		"its namespace":     {func(p *pod.Pod) { p.Namespace = "system" }, true},
		"another namespace": {func(p *pod.Pod) { p.Namespace = "shop" }, false},
		"its label":         {func(p *pod.Pod) { p.Labels = map[string]string{"host": "yes"} }, true},
		"another label":     {func(p *pod.Pod) { p.Labels = map[string]string{"host": "no"} }, false},
		"the command line":  {func(p *pod.Pod) { p.Owner = pod.OwnerCLI }, true},
	}
	for _, usual := range []string{"kvm", "oci", "fly"} {
		for _, instead := range []string{"", "oci", "fly", "thin", "kvm"} {
			e := choosingApart(t, usual, Weaker{Namespaces: []string{"system"}, Labels: []string{"host=yes"}, Default: instead})
			for need, change := range pods {
				for ask, asking := range asks {
					for by, permit := range permits {
						p := pod.Pod{Owner: pod.OwnerCRI, Name: "p", Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod}}
						change(&p)
						asking(&p)
						permit.change(&p)
						name := fmt.Sprintf("default %s, instead %q, needs %q, asks for %q, allowed by %s", usual, instead, need, ask, by)
						wantChoice(t, e, name, p, expected(usual, instead, need, ask, permit.ok))
					}
				}
			}
		}
	}
}

// choice is what a pod gets: an isolator, with a reason or not, or an error.
type choice struct {
	isolator string
	reason   bool
	err      error
}

func expected(usual, instead, need, ask string, allowed bool) choice {
	strength := map[string]int{"fly": 0, "oci": 1, "kvm": 2}
	real := map[string]string{"thin": "fly", "plain": "oci"}
	of := func(name string) string {
		if to := real[name]; to != "" {
			return to
		}
		return name
	}
	switch {
	case ask != "" && strength[of(ask)] < strength[usual] && !allowed:
		return choice{err: pod.ErrForbidden}
	case ask != "": // what it asks for, or nothing
		return choice{isolator: of(ask)}
	case need == "" || usual != "kvm" || instead == "":
		return choice{isolator: usual}
	case !allowed:
		return choice{err: pod.ErrForbidden}
	}
	return choice{isolator: of(instead), reason: true}
}

func wantChoice(t *testing.T, e *Engine, name string, p pod.Pod, want choice) {
	t.Helper()
	got, err := e.choose(&p)
	switch {
	case want.err != nil && !errors.Is(err, want.err), want.err == nil && err != nil:
		t.Errorf("%s: %v, want %v", name, err, want.err)
	case err == nil && got.Name() != want.isolator:
		t.Errorf("%s: got %s, want %s", name, got.Name(), want.isolator)
	case (p.IsolatorReason != "") != want.reason:
		t.Errorf("%s: the reason is %q", name, p.IsolatorReason)
	}
}

// TestInsteadIsTold: the record, and the error of who may not, name what the default lacks.
func TestInsteadIsTold(t *testing.T) {
	t.Parallel()
	e := choosingApart(t, "kvm", Weaker{Namespaces: []string{"system"}, Default: "oci"})
	for need, change := range needing() {
		p := pod.Pod{Owner: pod.OwnerCRI, Name: "p", Namespace: "system", IsolatorReason: "a caller's word", Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod}}
		fits := p
		change(&p)
		if _, err := e.choose(&p); err != nil || !strings.Contains(p.IsolatorReason, "isolator.weaker-default: the node's default kvm cannot run it: "+need) {
			t.Errorf("%s: %q, %v", need, p.IsolatorReason, err)
		}
		if _, err := e.choose(&fits); err != nil || fits.IsolatorReason != "" {
			t.Errorf("one that fits: %q, %v", fits.IsolatorReason, err)
		}
		p.Namespace = "shop"
		if _, err := e.choose(&p); err == nil || !strings.Contains(err.Error(), need) || !strings.Contains(err.Error(), "isolator.weaker-namespaces") {
			t.Errorf("%s: %v", need, err)
		}
	}
}

// TestInsteadOfOneThatLacks: what needs the host runs while the default can run nothing.
func TestInsteadOfOneThatLacks(t *testing.T) {
	t.Parallel()
	e := choosingApart(t, "kvm", Weaker{Namespaces: []string{"system"}, Default: "oci"})
	e.iso["kvm"] = lackingApart{apart{likeness{e.iso["oci"], "kvm", isolator.IsolationMachine}}}
	host := pod.Pod{Namespace: "system", Namespaces: pod.Namespaces{Network: pod.NamespaceNode}}
	if got, err := e.choose(&host); err != nil || got.Name() != "oci" {
		t.Errorf("%v, %v", got, err)
	}
	// But it is no way around the default for what that could run.
	if _, err := e.choose(&pod.Pod{Namespace: "system"}); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("one that fits: %v", err)
	}
}

type lackingApart struct{ apart }

func (lackingApart) Off() bool      { return false }
func (lackingApart) Missing() error { return fmt.Errorf("no /dev/kvm: %w", pod.ErrUnavailable) }

// TestInsteadIsKnown: a name that is wrong is found out at the start, or by the first pod
// after a reload.
func TestInsteadIsKnown(t *testing.T) {
	t.Parallel()
	cfg := newBench(t, false, nil).cfg
	cfg.Weaker.Default = "no-such"
	if _, err := New(t.Context(), cfg); !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), `isolator.weaker-default: isolator "no-such"`) {
		t.Error(err)
	}
	e := choosingApart(t, "kvm", Weaker{})
	e.SetWeaker(Weaker{Namespaces: []string{"*"}, Default: "no-such"})
	if _, err := e.choose(&pod.Pod{Namespaces: pod.Namespaces{Network: pod.NamespaceNode}}); !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), "isolator.weaker-default") {
		t.Error(err)
	}
}
