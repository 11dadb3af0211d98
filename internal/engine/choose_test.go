package engine

import (
	"errors"
	"strings"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// likeness is an isolator by another name and of another strength.
type likeness struct {
	isolator.Isolator
	name      string
	isolation isolator.Isolation
}

func (l likeness) Name() string { return l.name }

func (l likeness) Features() isolator.Features {
	f := l.Isolator.Features()
	f.Isolation = l.isolation
	return f
}

// choosing is an engine with isolators of three strengths.
func choosing(t *testing.T, usual string, weaker Weaker) *Engine {
	t.Helper()
	cfg := newBench(t, false, nil).cfg
	oci := cfg.Isolators[0]
	cfg.Isolators = []isolator.Isolator{oci, likeness{oci, "fly", isolator.IsolationNone}, likeness{oci, "kvm", isolator.IsolationMachine}}
	cfg.Isolator, cfg.Weaker, cfg.Handlers = usual, weaker, map[string]string{"thin": "fly"}
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestChoosePrecedence(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{Namespaces: []string{"*"}})
	both := map[string]string{annotationIsolator: "kvm", annotationStage1: "coreos.com/rkt/stage1-fly"}
	for name, c := range map[string]struct {
		handler     string
		annotations map[string]string
		want        string
	}{
		"nothing":              {"", nil, "oci"},
		"empty annotations":    {"", map[string]string{annotationIsolator: "", annotationStage1: ""}, "oci"},
		"annotation":           {"", both, "kvm"},
		"rkt's":                {"", map[string]string{annotationStage1: "coreos.com/rkt/stage1-fly:1.30.0"}, "fly"},
		"rkt's usual one":      {"", map[string]string{annotationStage1: "coreos.com/rkt/stage1-coreos"}, "oci"},
		"rkt's, short":         {"", map[string]string{annotationStage1: "kvm"}, "kvm"},
		"handler first":        {"fly", both, "fly"},
		"configured name":      {"thin", nil, "fly"},
		"annotated configured": {"", map[string]string{annotationIsolator: "thin"}, "fly"},
	} {
		got, err := e.choose(&pod.Pod{Handler: c.handler, Annotations: c.annotations})
		if err != nil || got.Name() != c.want {
			t.Errorf("%s: got %v, %v, want %s", name, got, err, c.want)
		}
	}
	for _, c := range []struct {
		p    pod.Pod
		kind error
	}{
		{pod.Pod{Handler: "none"}, pod.ErrNotFound},
		{pod.Pod{Annotations: map[string]string{annotationIsolator: "none"}}, pod.ErrInvalid},
		{pod.Pod{Annotations: map[string]string{annotationStage1: "stage1-"}}, pod.ErrInvalid},
	} {
		p := c.p
		if _, err := e.choose(&p); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), "fly, kvm, oci, thin") {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestChooseWeaker: less isolation than the node's needs the operator's word, whichever
// way it is asked for; more needs none.
func TestChooseWeaker(t *testing.T) {
	t.Parallel()
	rules := Weaker{Namespaces: []string{"system"}, Labels: []string{"thin=yes", "bare="}}
	for name, c := range map[string]struct {
		usual string
		pod   pod.Pod
		ok    bool
	}{
		"same":                {"oci", pod.Pod{Handler: "oci"}, true},
		"stronger":            {"oci", pod.Pod{Handler: "kvm"}, true},
		"weaker":              {"oci", pod.Pod{Handler: "fly"}, false},
		"weaker, annotated":   {"oci", pod.Pod{Annotations: map[string]string{annotationIsolator: "fly"}}, false},
		"weaker, configured":  {"oci", pod.Pod{Handler: "thin"}, false},
		"weaker than kvm":     {"kvm", pod.Pod{Handler: "oci"}, false},
		"not asked":           {"kvm", pod.Pod{}, true},
		"namespace":           {"kvm", pod.Pod{Handler: "fly", Namespace: "system"}, true},
		"another namespace":   {"kvm", pod.Pod{Handler: "fly", Namespace: "systems"}, false},
		"label":               {"kvm", pod.Pod{Handler: "oci", Labels: map[string]string{"thin": "yes"}}, true},
		"another value":       {"kvm", pod.Pod{Handler: "oci", Labels: map[string]string{"thin": "no"}}, false},
		"empty value":         {"kvm", pod.Pod{Handler: "oci", Labels: map[string]string{"bare": ""}}, true},
		"empty value, absent": {"kvm", pod.Pod{Handler: "oci", Labels: map[string]string{"other": ""}}, false},
		"command line":        {"kvm", pod.Pod{Handler: "fly", Owner: pod.OwnerCLI}, true},
	} {
		_, err := choosing(t, c.usual, rules).choose(&c.pod)
		if c.ok && err != nil || !c.ok && !errors.Is(err, pod.ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWeakerChanges: the operator's word counts from the moment it is given.
func TestWeakerChanges(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{})
	p := &pod.Pod{Handler: "fly", Namespace: "system"}
	for _, c := range []struct {
		weaker Weaker
		ok     bool
	}{{Weaker{}, false}, {Weaker{Namespaces: []string{"system"}}, true}, {Weaker{}, false}} {
		e.SetWeaker(c.weaker)
		if _, err := e.choose(p); (err == nil) != c.ok {
			t.Errorf("with %+v: %v", c.weaker, err)
		}
	}
}

// lacking is an isolator of ours that the node may lack something for.
type lacking struct {
	likeness
	off     bool
	missing error
}

func (l *lacking) Off() bool      { return l.off }
func (l *lacking) Missing() error { return l.missing }

// TestIsolatorThatLacks: a pod that asks for it is told what, and the node is ready for all
// others, whatever its default is. What was repaired works at once.
func TestIsolatorThatLacks(t *testing.T) {
	t.Parallel()
	for _, usual := range []string{"oci", "vm"} {
		cfg := newBench(t, false, nil).cfg
		oci := cfg.Isolators[0]
		vm := &lacking{likeness{oci, "vm", isolator.IsolationMachine}, false, errors.Join(errors.New("there is no /dev/kvm"), pod.ErrUnavailable)}
		cfg.Isolators, cfg.Isolator, cfg.Weaker = []isolator.Isolator{oci, vm}, usual, Weaker{Namespaces: []string{"system"}}
		e, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		if _, err := e.choose(&pod.Pod{Handler: "vm"}); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "isolator vm (by its handler): there is no /dev/kvm") {
			t.Errorf("%s: %v", usual, err)
		}
		if got, err := e.choose(&pod.Pod{Handler: "oci", Namespace: "system"}); err != nil || got.Name() != "oci" {
			t.Errorf("%s: another isolator: %v, %v", usual, got, err)
		}
		// That it works not is no permission.
		if _, err := e.choose(&pod.Pod{Handler: "oci", Namespace: "shop"}); (err != nil) != (usual == "vm") {
			t.Errorf("%s: a weaker one: %v", usual, err)
		}
		vm.missing = nil
		if _, err := e.choose(&pod.Pod{Handler: "vm"}); err != nil {
			t.Errorf("%s: repaired: %v", usual, err)
		}
	}
}

// TestIsolatorThatIsOff: it is listed as that, and is none of those that a pod can have.
func TestIsolatorThatIsOff(t *testing.T) {
	t.Parallel()
	cfg := newBench(t, false, nil).cfg
	cfg.Isolators = append(cfg.Isolators, &lacking{likeness{cfg.Isolators[0], "vm", isolator.IsolationMachine}, true, errors.New("switched off")})
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if _, err := e.choose(&pod.Pod{Handler: "no"}); err == nil || strings.Contains(err.Error(), "vm") {
		t.Errorf("what this node has: %v", err)
	}
	if _, err := e.choose(&pod.Pod{Handler: "vm"}); err == nil || !strings.Contains(err.Error(), "switched off") {
		t.Errorf("a pod that asks for it: %v", err)
	}
	all := e.Features()
	if last := all[len(all)-1]; last.Name != "vm" || !last.Off || last.Broken == nil || last.Features.Isolation != isolator.IsolationMachine {
		t.Errorf("listed as %+v", last)
	}
}

// TestShareHost: a record says what a pod gets, not what it asked for.
func TestShareHost(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{})
	asked := pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceTarget, IPC: pod.NamespacePod, Target: "another"}
	for name, want := range map[string]pod.Namespaces{
		"oci": asked,
		"fly": {Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode},
	} {
		got := asked
		if e.shareHost(&pod.Pod{Isolator: name}, &got); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	// The network is another matter: with the host's the pod would be another one.
	own := pod.Namespaces{Network: pod.NamespacePod, PID: "fancy"}
	if e.shareHost(&pod.Pod{Isolator: "fly"}, &own); own.Network != pod.NamespacePod || own.PID != "fancy" {
		t.Errorf("%+v", own)
	}
}

// TestIsolatorsThatAreNot: one that a pod has and the node no more.
func TestIsolatorsThatAreNot(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{})
	_, err := e.isolatorOf(&pod.Pod{ID: "p", Isolator: "runc"})
	if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), `"runc"`) || !strings.Contains(err.Error(), "fly, kvm, oci") {
		t.Errorf("an isolator that is gone: %v", err)
	}
	if _, err := e.isolatorOf(&pod.Pod{Isolator: "kvm"}); err != nil {
		t.Error(err)
	}
}
