package engine

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// Annotations choose a pod's isolator where no handler does.
const (
	annotationIsolator = "gantry.io/isolator"
	// annotationStage1 is rkt's: the name of an image, such as coreos.com/rkt/stage1-fly.
	annotationStage1 = "rkt.alpha.kubernetes.io/stage1-name-override"
)

// Weaker tells which pods the operator lets be isolated less than the node's default.
// Those of the command line are the operator's own.
type Weaker struct {
	Namespaces []string // "*" is all
	Labels     []string // NAME=VALUE
	// Default is how those of them run that ask for nothing and that the node's default
	// cannot run; "" refuses them.
	Default string
}

func (w Weaker) allows(p *pod.Pod) bool {
	if p.Owner == pod.OwnerCLI || slices.Contains(w.Namespaces, "*") || slices.Contains(w.Namespaces, p.Namespace) {
		return true
	}
	return slices.ContainsFunc(w.Labels, func(l string) bool {
		name, want, _ := strings.Cut(l, "=")
		value, ok := p.Labels[name]
		return ok && value == want
	})
}

// SetWeaker changes which pods may be isolated less than the node's default. Those that
// there are stay as they are.
func (e *Engine) SetWeaker(w Weaker) { e.weaker.Store(&w) }

// choose finds a pod's isolator: by its handler, by its annotations, or the node's
// default, in this order. A pod never gets another one than it asked for. It notes in the
// pod why it is not the node's default, where a pod that asks for nothing gets another.
func (e *Engine) choose(p *pod.Pod) (isolator.Isolator, error) {
	p.IsolatorReason = ""
	name, by := askedIsolator(p)
	usual := e.iso[e.cfg.Isolator]
	// How much one isolates that does not work is not known, nor what it can run.
	if err := usable(usual); err != nil {
		return nil, fmt.Errorf("isolator %s (the node's default): %w", usual.Name(), err)
	}
	if by == "" {
		name, by = e.cfg.Isolator, "the node's default"
		instead, err := e.instead(p, usual)
		if err != nil {
			return nil, err
		}
		if instead != "" {
			name, by = instead, "isolator.weaker-default"
		}
	}
	chosen, err := e.named(name, by)
	if err != nil {
		return nil, err
	}
	if chosen.Features().Isolation < usual.Features().Isolation && !e.weaker.Load().allows(p) {
		return nil, fmt.Errorf("isolator %s (%s) isolates less than the node's default %s, and for pod %s/%s that is %w; the operator allows it by isolator.weaker-namespaces or isolator.weaker-labels",
			chosen.Name(), by, usual.Name(), p.Namespace, p.Name, pod.ErrForbidden)
	}
	if p.IsolatorReason != "" {
		e.log.Info("a pod does not get the node's default isolator", "pod", p.Name, "namespace", p.Namespace, "isolator", chosen.Name(), "reason", p.IsolatorReason)
	}
	return chosen, nil
}

// instead is the name of the isolator that a pod gets which asks for nothing and which the
// node's default cannot run, "" if it can. Whether what it asks for is all that the default
// lacks shows when its apps are made.
func (e *Engine) instead(p *pod.Pod, usual isolator.Isolator) (string, error) {
	rules := e.weaker.Load()
	unfit := usual.Features().CheckPod(p)
	if unfit == nil || rules.Default == "" {
		return "", nil // the plan refuses it
	}
	if !rules.allows(p) {
		return "", fmt.Errorf("isolator %s (the node's default): %w; to run pod %s/%s with isolator.weaker-default %s is %w, unless isolator.weaker-namespaces or isolator.weaker-labels allow it",
			usual.Name(), unfit, p.Namespace, p.Name, rules.Default, pod.ErrForbidden)
	}
	p.IsolatorReason = fmt.Sprintf("isolator.weaker-default: the node's default %s cannot run it: %v", usual.Name(), unfit)
	return rules.Default, nil
}

// named is the isolator of a name, if it can be used.
func (e *Engine) named(name, by string) (isolator.Isolator, error) {
	if to, ok := e.cfg.Handlers[name]; ok {
		name = to
	}
	chosen, ok := e.iso[name]
	if !ok {
		kind := pod.ErrNotFound
		if strings.HasPrefix(by, byAnnotation) { // the pod has a wrong value, like any other
			kind = pod.ErrInvalid
		}
		return nil, fmt.Errorf("isolator %q (%s): %w; this node has %s", name, by, kind, strings.Join(e.isolatorNames(), ", "))
	}
	err := usable(chosen)
	if c, ok := chosen.(conditional); ok && err == nil {
		err = c.Missing()
	}
	if err != nil {
		return nil, fmt.Errorf("isolator %s (%s): %w", chosen.Name(), by, err)
	}
	return chosen, nil
}

// foreign is an isolator that is not part of this program, and may not work.
type foreign interface {
	// Source is the file that it is.
	Source() string
	// Usable tells why it cannot be used, nil if it can.
	Usable() error
}

func usable(i isolator.Isolator) error {
	if f, ok := i.(foreign); ok {
		return f.Usable()
	}
	return nil
}

// conditional is an isolator of this program that stands on what a machine may lack. What
// it would do is known all the same.
type conditional interface {
	// Missing tells why it can make no pod, nil if it can.
	Missing() error
	// Off tells that the operator has not switched it on.
	Off() bool
}

// isolatorOf is the isolator of a pod that there is. What a pod was made with may have
// been taken out of the configuration since.
func (e *Engine) isolatorOf(p *pod.Pod) (isolator.Isolator, error) {
	iso, ok := e.iso[p.Isolator]
	if !ok {
		return nil, fmt.Errorf("isolator %q of pod %s: this node has it no more, only %s: %w", p.Isolator, p.ID, strings.Join(e.isolatorNames(), ", "), pod.ErrUnavailable)
	}
	return iso, nil
}

// shareHost makes a record say what namespaces a pod or an app gets of an isolator
// that has the host's only. To ask for others is no error: Kubernetes does unless told
// otherwise.
func (e *Engine) shareHost(p *pod.Pod, n *pod.Namespaces) {
	if iso, ok := e.iso[p.Isolator]; ok && iso.Features().Isolation == isolator.IsolationNone {
		*n = isolator.OnHost(*n)
	}
}

const byAnnotation = "by annotation "

// askedIsolator is what a pod asks for, and where it does; "" if it does not.
func askedIsolator(p *pod.Pod) (name, by string) {
	if p.Handler != "" {
		return p.Handler, "by its handler"
	}
	if name := p.Annotations[annotationIsolator]; name != "" {
		return name, byAnnotation + annotationIsolator
	}
	if name := p.Annotations[annotationStage1]; name != "" {
		return ofStage1(name), byAnnotation + annotationStage1
	}
	return "", ""
}

// ofStage1 is the isolator that does what one of rkt's images did.
func ofStage1(image string) string {
	name, _, _ := strings.Cut(path.Base(image), ":")
	name = strings.TrimPrefix(name, "stage1-")
	if slices.Contains([]string{"coreos", "src", "host"}, name) { // systemd-nspawn, from three places
		return "oci"
	}
	return name
}

// isolatorNames are all names that choose an isolator.
func (e *Engine) isolatorNames() []string {
	names := slices.Collect(maps.Keys(e.cfg.Handlers))
	for name, iso := range e.iso {
		if c, ok := iso.(conditional); !ok || !c.Off() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
