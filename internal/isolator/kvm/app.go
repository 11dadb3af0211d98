package kvm

import (
	"encoding/json"
	"fmt"
	"path"
	"time"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/recipe"
	"gantry/internal/machine"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// App plans an app. It refuses everything that can be wrong with one as far as that can be
// told without the machine.
func (k *KVM) App(in isolator.App) (isolator.Plan, error) {
	plan, err := k.app(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	return plan, recipe.Valid(plan.Units)
}

func (k *KVM) app(in isolator.App) (isolator.Plan, error) {
	in, err := k.check(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	if err := recipe.CheckTree("rootfs", in.Rootfs); err != nil {
		return isolator.Plan{}, err
	}
	inside, err := k.inside.Inside(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	inside.Process.Rlimits = fly.Rlimits(in.App.Rlimits)
	start, shares, err := translate(in, inside)
	if err != nil {
		return isolator.Plan{}, err
	}
	switch n := in.App.Namespaces; n.PID {
	case pod.NamespacePod:
		start.PIDs = initproc.PodPIDs
	case pod.NamespaceTarget:
		start.PIDs = string(n.Target)
	}
	if start.Cgroup, err = limits(in.Resources); err != nil {
		return isolator.Plan{}, err
	}
	service, err := k.service(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	a := machine.App{
		ID: string(in.App.ID), Start: start, Shares: shares,
		Stdio: initproc.Stdio{Socket: k.cfg.StdioSocket, TTY: in.App.TTY}, Stdin: in.App.Stdin || in.App.TTY, OOMScoreAdj: in.Resources.OOMScoreAdj,
	}
	files, err := k.appFiles(in, a, inside.Process)
	return isolator.Plan{Files: files, Units: []unit.Unit{service}}, err
}

// appFiles are what the process that stands for an app reads, and what the recorder of its
// end does.
func (k *KVM) appFiles(in isolator.App, a machine.App, p initproc.Process) ([]isolator.File, error) {
	own := initproc.Start{Pod: string(in.Pod.ID), App: a.ID, Program: true, Stdio: a.Stdio, End: []string{k.cfg.Guest, "ended", in.Dir.App}}
	if in.Pod.CgroupParent != "" {
		own.PodSlice = path.Join("/sys/fs/cgroup", unit.CgroupOf(in.Pod.Slice))
	}
	secret, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write process: %w", err)
	}
	out := []isolator.File{
		{Path: initproc.ProcessFile, Mode: 0o600, Secret: true, Data: secret, Shown: func() []byte { return fly.Shown(p) }},
	}
	for _, f := range []struct {
		name string
		v    any
	}{{machine.AppFile, a}, {initproc.StartFile, own}} {
		data, err := json.MarshalIndent(f.v, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", f.name, err)
		}
		out = append(out, isolator.File{Path: f.name, Mode: 0o644, Data: append(data, '\n')})
	}
	return out, nil
}

// service is the unit of the process that stands for the app. The app's limits are the
// machine's business.
func (k *KVM) service(in isolator.App) (unit.Unit, error) {
	own := in
	own.Resources = pod.Resources{OOMScoreAdj: oomScore(in.Pod.Slice)}
	none, err := recipe.LimitsOf(own)
	if err != nil {
		return unit.Unit{}, err
	}
	u := k.recipe.Service(own, none)
	id := string(in.Pod.ID)
	for i, p := range u.Properties {
		switch p.Name {
		case "ExecStart":
			u.Properties[i].Value = unit.Commands{{Path: k.cfg.Guest, Args: []string{k.cfg.Guest, "app", in.Dir.App}}}
		case "OOMPolicy": // it is started again, as after any other kill
			u.Properties[i].Value = unit.String("continue")
		case "Restart": // the app's end is none of a signal, but that of the process is
			u.Properties[i].Value = unit.String("on-abort")
		case "After", "Requisite":
			u.Properties[i].Value = append(p.Value.(unit.Strings), unit.Machine(id))
		case "DeviceAllow":
			u.Properties[i].Value = append(p.Value.(unit.Devices), unit.Device{Path: "/dev/vsock", Permissions: "rw"}, unit.Device{Path: "/dev/ptmx", Permissions: "rw"})
		case "PrivateMounts": // what it shares with the machine the file server has to see
			u.Properties[i].Value = unit.Bool(false)
		}
	}
	// Nobody sees that it is gone for a moment: its stdio stays open, and the unit is never
	// down. Who kills it again and again may.
	u.Properties = append(u.Properties,
		unit.Property{Name: "RestartMode", Value: unit.String("direct")},
		unit.Property{Name: "RestartUSec", Value: unit.Duration(restartPause)},
		unit.Property{Name: "StartLimitIntervalUSec", Value: unit.Duration(0)},
		unit.Property{Name: "FileDescriptorStoreMax", Value: unit.Uint32(storeSize)},
	)
	return u, nil
}

const (
	// restartPause keeps a program that cannot even begin from keeping PID 1 busy.
	restartPause = 20 * time.Millisecond
	storeSize    = 8
)

// check returns the input with what has a meaning in the machine, where no AppArmor is: the
// default profile keeps an app from the host, which the machine does. One that a pod names
// may do anything, so without it there is no app.
func (k *KVM) check(in isolator.App) (isolator.App, error) {
	if in.App != nil {
		app := *in.App
		switch app.Security.AppArmor.Kind {
		case "", pod.ProfileRuntimeDefault, pod.ProfileUnconfined:
			app.Security.AppArmor = pod.Profile{Kind: pod.ProfileUnconfined}
		case pod.ProfileLocalhost:
			return in, fmt.Errorf("security.appArmor: profile %s: %w by this isolator: there is no AppArmor in a machine", app.Security.AppArmor.Localhost, pod.ErrUnsupported)
		}
		in.App = &app
	}
	return in, k.recipe.CheckApp(in)
}

func (k *KVM) execProcess(in isolator.App, p pod.Process) (initproc.Process, error) {
	in, err := k.check(in)
	if err != nil {
		return initproc.Process{}, err
	}
	return k.inside.InsideExec(in, p)
}
