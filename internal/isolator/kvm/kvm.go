// Package kvm is the isolator that gives each pod a virtual machine: a kernel of its own,
// and of the host only what the pod was given.
//
// The machine is a unit in the pod's slice, as is the server of the files that it shares.
// An app is a unit too, whose process stands for what runs in the machine: it passes on
// what is said and signals, and ends as the app does.
//
//	kvm.go       what is fixed per node; the pod
//	machine.go   the units of the machine
//	app.go       an app's files and unit
//	share.go     what the machine sees of the host
//	limits.go    limits, for the machine's own cgroups
package kvm

import (
	"context"
	"encoding/json"
	"fmt"
	"path"

	"gantry/internal/guest"
	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/recipe"
	"gantry/internal/machine"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Config holds what is fixed per node. All of it is part of the plan's input.
type Config struct {
	// Init and Guest are the paths of gantry-init and gantry-guest.
	Init, Guest string
	// StdioSocket is gantry-stdio's; "" leaves apps the unit's stdio (the journal).
	StdioSocket string
	// Emulator and FileServer are the paths of qemu and virtiofsd.
	Emulator, FileServer string
	// Firmware is that of a machine that is not emulated.
	Firmware string
	// Boot is what a machine boots.
	Boot machine.Boot
	// Emulate has the machine's processors emulated, where there is no /dev/kvm.
	Emulate bool
	// HugePages has a machine's memory in huge pages, where the host has them free.
	HugePages bool
	// Memory is what a machine has whose pod has no limit, and 0 if no machine is to be made;
	// Overhead what of a pod's limit its kernel, the emulator and the file server take. In
	// bytes.
	Memory, Overhead int64
	// CPUs is how many processors a machine has whose pod has no limit.
	CPUs int
	// Disk is the size of what the apps of a pod may write, in bytes.
	Disk int64
	// BootTime is how long a machine may take to answer, in seconds.
	BootTime int
	// Arch is the machine's architecture, in Go's words; "" is this program's.
	Arch string
	// SELinux is set where the host's SELinux is on. A pod that asks for a label is refused
	// there: in the machine there is none.
	SELinux bool
	// Lacks tells what the node lacks for machines, nil if nothing; without it nobody asks.
	Lacks func() error
	// Furnish makes what Boot names, unless it is there; without it the machine's own units do.
	Furnish func(ctx context.Context) error
}

// KVM is the isolator.
type KVM struct {
	cfg    Config
	recipe recipe.Recipe
	inside *fly.Fly
}

var _ isolator.Isolator = (*KVM)(nil)

// New returns the isolator.
func New(c Config) (*KVM, error) {
	// What an app is in the machine is what an app of fly is on the host, but that it is
	// alone. AppArmor and SELinux are the host's.
	inside, err := fly.New(fly.Config{Init: c.Init, SELinux: c.SELinux, Arch: c.Arch})
	if err != nil {
		return nil, err
	}
	return &KVM{c, recipe.Recipe{Features: features(), Init: c.Init, StdioSocket: c.StdioSocket}, inside}, nil
}

// Name is kvm.
func (k *KVM) Name() string { return "kvm" }

// Features are what can be had behind another kernel.
func (k *KVM) Features() isolator.Features { return k.recipe.Features }

func features() isolator.Features {
	return isolator.Features{
		Isolation: isolator.IsolationMachine, OwnKernel: true, PodNetwork: true, SharedPID: true,
		RecursiveReadOnlyMounts: true, ImageVolumes: true, MountOptions: true, TTY: true,
	}
}

// Off tells that the operator wants no machines.
func (k *KVM) Off() bool { return k.cfg.Memory == 0 }

// Missing tells why no machine can be made now, nil if one can. Those that there are run on.
func (k *KVM) Missing() error {
	if k.Off() {
		return fmt.Errorf("switched off; kvm.memory in the configuration switches it on: %w", pod.ErrUnavailable)
	}
	if k.cfg.Lacks == nil {
		return nil
	}
	if err := k.cfg.Lacks(); err != nil {
		return fmt.Errorf("%w: %w", err, pod.ErrUnavailable)
	}
	return nil
}

// Sandbox plans a pod and its machine.
func (k *KVM) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	if k.cfg.SELinux && in.Pod != nil && in.Pod.Security.SELinux != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: security.selinux: %w by this isolator", pod.ErrUnsupported)
	}
	plan, err := k.recipe.Sandbox(in)
	if err != nil {
		return plan, err
	}
	size, err := k.size(in)
	if err != nil {
		return plan, fmt.Errorf("plan pod: %w", err)
	}
	plan.Late = k.units(in, size)
	booted := machine.Size{Memory: size.memory * mebi, CPUs: size.cpus}
	if in.Pod.Resources != nil {
		booted.Limit = max(in.Pod.Resources.Memory, 0)
	}
	what, err := json.MarshalIndent(machine.Plan{
		Machine: guest.Machine{Hostname: in.Pod.Hostname, ShmBytes: shmSize}, Sysctls: in.Pod.Sysctls, Size: booted,
		Run: in.Dir.Run, Boot: k.cfg.Boot, DiskBytes: k.cfg.Disk,
		Cgroup: path.Join("/sys/fs/cgroup", unit.CgroupOf(in.Pod.Slice)),
	}, "", "  ")
	if err != nil {
		return plan, fmt.Errorf("plan pod: write machine: %w", err)
	}
	plan.Files = append(plan.Files, isolator.File{Path: machine.PlanFile, Mode: 0o644, Data: append(what, '\n')})
	return plan, recipe.Valid(plan.Late)
}

// LateUnits are the names of those that a pod has, the last one first.
func (k *KVM) LateUnits(id pod.ID) []string {
	return []string{unit.Machine(string(id)), unit.FileServer(string(id))}
}

// LateErrors are the files that tell why they did not come up.
func (k *KVM) LateErrors(d isolator.Dirs) []string { return machine.ErrorFiles(d.Pod) }

// Networked tells the late units of a pod that it has its network.
func (k *KVM) Networked(d isolator.Dirs) error { return machine.Networked(d.Pod) }

// Furnish makes what machines boot, unless it is there.
func (k *KVM) Furnish(ctx context.Context) error {
	if k.cfg.Furnish == nil {
		return nil
	}
	return k.cfg.Furnish(ctx)
}

// shmSize is what /dev/shm of a pod may hold, as with other isolators.
const shmSize = 64 << 20

// Exec plans a process in a running app.
func (k *KVM) Exec(in isolator.App, p pod.Process) (isolator.Exec, error) {
	process, err := k.execProcess(in, p)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	data, err := json.Marshal(process)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	args := []string{k.cfg.Guest, "exec", in.Dir.App, isolator.ProcessArg, isolator.LogArg}
	if p.TTY {
		args = append(args, isolator.ConsoleArg)
	}
	return isolator.Exec{Path: k.cfg.Guest, Args: args, Process: data}, nil
}

// Resources has nothing for the unit of an app, whose process only stands for it: see
// Update. It refuses what Update would.
func (k *KVM) Resources(r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	_, err := limits(r)
	return nil, nil, err
}

// Cleanup has nothing to do: what is made for a pod belongs to a unit or lies in the pod's
// directories.
func (k *KVM) Cleanup(context.Context, *pod.Pod) error { return nil }

// share is where the machine's share is on the host.
func share(d isolator.Dirs) string { return path.Join(d.Run, machine.ShareDir) }
