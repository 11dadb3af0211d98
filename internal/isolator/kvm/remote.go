package kvm

import (
	"context"
	"errors"
	"fmt"
	"net"

	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/machine"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Signal sends a signal to an app's first process, or to all of them. It goes to the machine:
// the process that stands for the app may be away.
func (k *KVM) Signal(ctx context.Context, d isolator.Dirs, app pod.ID, signal int, all bool) error {
	return machine.Signal(ctx, d.Pod, string(app), signal, all)
}

// ForgetIn takes away what the machine keeps of an app: one whose end was recorded while the
// machine did not answer may run there still. It is no error if that does not answer now.
func (k *KVM) ForgetIn(ctx context.Context, d isolator.Dirs, app pod.ID) error {
	err := machine.Forget(ctx, d.Pod, string(app))
	if errors.Is(err, pod.ErrUnavailable) {
		return nil
	}
	return err
}

// Measure reads files of an app's cgroup in the machine.
func (k *KVM) Measure(ctx context.Context, d isolator.Dirs, app pod.ID, files []string) (isolator.Reading, error) {
	n, err := machine.Measure(ctx, d.Pod, string(app), files)
	if err != nil {
		return isolator.Reading{}, err
	}
	out := isolator.Reading{
		Files: map[string]string{}, Processes: n.Processes, FSBytes: n.FsBytes, FSInodes: n.FsInodes, FSFreeInodes: n.FsInodesFree,
	}
	for _, f := range n.Files {
		out.Files[f.Name] = f.Value
	}
	return out, nil
}

// MeasureLayer looks at what an app has written.
func (k *KVM) MeasureLayer(ctx context.Context, d isolator.Dirs, app pod.ID) (bytes, inodes uint64, err error) {
	return machine.MeasureLayer(ctx, d.Pod, string(app))
}

// Dial connects to a port of the machine's loopback.
func (k *KVM) Dial(ctx context.Context, d isolator.Dirs, port uint16) (net.Conn, error) {
	return machine.DialPort(ctx, d.Pod, port)
}

// Update changes the limits of an app that runs, in the machine.
func (k *KVM) Update(ctx context.Context, d isolator.Dirs, app pod.ID, was, now pod.Resources) error {
	has, err := machine.SizeOf(d.Pod)
	if err != nil {
		return err
	}
	if now.Memory > has.Memory && now.Memory > was.Memory {
		return recipe.Invalid("memory limit of %d MiB: the pod's machine has %d, and gets no more while it runs", now.Memory/mebi, has.Memory/mebi)
	}
	if want := processors(now); want > has.CPUs && want > processors(was) {
		return recipe.Invalid("limit of %d processors: the pod's machine has %d, and gets no more while it runs", want, has.CPUs)
	}
	files, err := limits(now)
	if err != nil {
		return err
	}
	return machine.Update(ctx, d.Pod, string(app), files, was.OOMScoreAdj, now.OOMScoreAdj)
}

func limitWords(limit int64) string {
	if limit <= 0 {
		return "no limit"
	}
	return fmt.Sprintf("a limit of %d", limit/mebi)
}

// PodResources are the limits of a pod that runs. Its machine keeps the memory and the
// processors that it was booted with: it can neither get more nor give any back. That is an
// invalid wish and not an unsupported one, of which kubelet thinks that it need not care:
// it would change the pod's cgroup all the same, and a machine that is larger than that is
// killed for want of memory.
func (k *KVM) PodResources(_ *pod.Pod, d isolator.Dirs, r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	has, err := machine.SizeOf(d.Pod)
	if err != nil {
		return nil, nil, err
	}
	if r.Memory > 0 && r.Memory != has.Limit {
		return nil, nil, recipe.Invalid("memory limit of %d MiB: the pod's machine has %d and was made for %s, which cannot change while it runs",
			r.Memory/mebi, has.Memory/mebi, limitWords(has.Limit))
	}
	if want := processors(r); want > has.CPUs {
		return nil, nil, recipe.Invalid("limit of %d processors: the pod's machine has %d, which cannot change while it runs", want, has.CPUs)
	}
	return recipe.Resources(r)
}
