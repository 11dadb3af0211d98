package engine

import (
	"context"
	"fmt"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// planID stands for IDs in a plan that is only printed, so that the same pod
// gives the same text: the pod is a…a, its apps are ba…a, ca…a and so on.
func planID(n int) pod.ID {
	return pod.ID(string(rune('a'+n%26)) + strings.Repeat("a", 23))
}

// Plan tells what CreatePod, CreateApp and StartApp would write and start. It
// looks at images, users, mounts and devices as they would, so it finds the same
// errors, and it changes nothing. Images must be in the store.
func (e *Engine) Plan(ctx context.Context, p pod.Pod, apps []AppSpec) (string, error) {
	iso, err := e.choose(&p)
	if err != nil {
		return "", err
	}
	p.ID, p.Isolator = planID(0), iso.Name()
	e.shareHost(&p, &p.Namespaces)
	if p.Slice, err = sliceOf(&p); err != nil {
		return "", err
	}
	sandbox, err := iso.Sandbox(isolator.Sandbox{Pod: &p, Dir: e.dirs(p.ID, "")})
	if err != nil {
		return "", fmt.Errorf("plan pod %s: %w", p.Name, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# pod %s\n", p.Name)
	if p.IsolatorReason != "" {
		fmt.Fprintf(&b, "# isolator %s: %s\n", p.Isolator, p.IsolatorReason)
	}
	b.WriteString(sandbox.Text())
	for i, spec := range apps {
		app, secret, err := e.resolve(ctx, &p, spec)
		if err != nil {
			return "", fmt.Errorf("plan app %s: %w", spec.Name, err)
		}
		app.ID = planID(1 + i)
		plan, before, err := e.plan(&p, app, secret, app.Resources, notYet)
		if err != nil {
			return "", fmt.Errorf("plan app %s: %w", spec.Name, err)
		}
		plan.Units = append(before, plan.Units...)
		fmt.Fprintf(&b, "\n# app %s\n%s", spec.Name, plan.Text())
	}
	return b.String(), nil
}
