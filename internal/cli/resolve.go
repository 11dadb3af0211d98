package cli

import (
	"fmt"
	"strings"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// findPod finds the pod a user means: by its ID, by NAME or NAMESPACE/NAME, or by
// the beginning of its ID, as long as only one pod fits.
func findPod(e Engine, ref string) (pod.PodStatus, error) {
	pods, err := e.Pods(engine.Filter{})
	if err != nil {
		return pod.PodStatus{}, err
	}
	return choosePod(pods, ref)
}

func choosePod(pods []pod.PodStatus, ref string) (pod.PodStatus, error) {
	for _, fits := range []func(pod.PodStatus) bool{
		func(p pod.PodStatus) bool { return string(p.ID) == ref },
		func(p pod.PodStatus) bool { return p.Name == ref || p.Namespace+"/"+p.Name == ref },
		func(p pod.PodStatus) bool { return ref != "" && strings.HasPrefix(string(p.ID), ref) },
	} {
		var found []pod.PodStatus
		for _, p := range pods {
			if fits(p) {
				found = append(found, p)
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		ids := make([]string, len(found))
		for i, p := range found {
			ids[i] = string(p.ID)
		}
		return pod.PodStatus{}, fmt.Errorf("find pod %q: it may be any of %s: %w", ref, strings.Join(ids, ", "), pod.ErrInvalid)
	}
	return pod.PodStatus{}, withHint(fmt.Errorf("find pod %q: %w", ref, pod.ErrNotFound), "gantry list shows all pods")
}

// findApp finds one app of a pod by its name or the beginning of its ID. Without
// a name the pod must have one app only; the running ones come first.
func findApp(p pod.PodStatus, ref string) (pod.AppStatus, error) {
	var found []pod.AppStatus
	for _, a := range p.Apps {
		switch {
		case ref == "" || a.Name == ref:
			found = append(found, a)
		case strings.HasPrefix(string(a.ID), ref):
			found = append(found, a)
		}
	}
	if ref != "" {
		// A name given twice is an app that was started anew: the last one counts.
		for i := len(found) - 1; i >= 0; i-- {
			if found[i].Name == ref {
				return found[i], nil
			}
		}
	}
	if len(found) > 1 && ref == "" {
		if running := inPhase(found, pod.Running); len(running) == 1 {
			found = running
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(p.Apps) == 0:
		return pod.AppStatus{}, fmt.Errorf("find app in pod %s: it has none: %w", p.Name, pod.ErrNotFound)
	case len(found) == 0:
		return pod.AppStatus{}, withHint(fmt.Errorf("find app %q in pod %s: %w", ref, p.Name, pod.ErrNotFound), "its apps are %s", appNames(p.Apps))
	}
	return pod.AppStatus{}, withHint(fmt.Errorf("find app in pod %s: it has several: %w", p.Name, pod.ErrInvalid), "name one of %s", appNames(p.Apps))
}

// findOne finds the app that the words POD [APP] mean.
func findOne(e Engine, args []string) (p pod.PodStatus, a pod.AppStatus, err error) {
	app := ""
	if len(args) > 1 {
		app = args[1]
	}
	if p, err = findPod(e, args[0]); err == nil {
		a, err = findApp(p, app)
	}
	return p, a, err
}

func inPhase(apps []pod.AppStatus, phase pod.Phase) []pod.AppStatus {
	var out []pod.AppStatus
	for _, a := range apps {
		if a.Phase == phase {
			out = append(out, a)
		}
	}
	return out
}

func appNames(apps []pod.AppStatus) string {
	var names []string
	for _, a := range apps {
		names = append(names, a.Name)
	}
	return strings.Join(names, ", ")
}

// mayChange refuses to touch a pod of a kubelet, unless forced.
func mayChange(p pod.PodStatus, verb string, force bool) error {
	if p.Owner == pod.OwnerCLI || force {
		return nil
	}
	return fmt.Errorf("%s pod %s: %w", verb, p.Name, pod.ErrNotOwner)
}

// phaseOf is the one word for a whole pod.
func phaseOf(p pod.PodStatus) pod.Phase {
	count := map[pod.Phase]int{}
	for _, a := range p.Apps {
		count[a.Phase]++
	}
	switch {
	case count[pod.Running] > 0:
		return pod.Running
	case count[pod.Unknown] > 0:
		return pod.Unknown
	case count[pod.Exited] > 0:
		return pod.Exited
	case !p.Ready: // whatever was not started in it never will be
		return pod.Exited
	default:
		return pod.Prepared
	}
}

func short(id pod.ID) string { return string(id[:min(8, len(id))]) }
