// Package oci is the default isolator: Linux namespaces and cgroups, set up by an
// OCI runtime that leaves when the app runs.
//
// It turns a pod and an app into a plan and looks at nothing else: config.json
// for the runtime (OCI runtime-spec 1.3.0), start.json for gantry-init, and the
// transient service in which both run. Limits are properties of that service. Crun's own
// cgroup code is off; a runtime that insists on cgroups of its own gets one below the unit's.
//
//	oci.go        what is fixed per node
//	app.go         the app's files and unit
//	dialect.go     in what runtimes differ
//	spec.go        config.json, with mounts.go, seccomp.go, selinux.go, devices.go
//	exec.go        a process in a running app
//	checkpoint.go  its state, written down
package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// The places that are the same on every node.
const (
	DefaultInit = "/usr/libexec/gantry/gantry-init"
	// RootfsTarget is where gantry-init mounts the app's rootfs, in the unit's
	// private mount namespace.
	RootfsTarget = "/run/gantry/rootfs"
	// DefaultName is the name of the isolator that Gantry comes with.
	DefaultName = "oci"
	// Roots has the records of further runtimes, each in a directory of its name.
	Roots = "/run/gantry/runtimes"
)

// Config holds what is fixed per node. All of it is part of the plan's input.
type Config struct {
	// Name is the isolator's; "" is DefaultName.
	Name string
	// Runtime is the OCI runtime's command line up to the subcommand; none is crun's.
	Runtime []string
	// Kind is what the runtime's options are like, one of Kinds; "" is told by the
	// program's name.
	Kind string
	// Installed tells why a program cannot be run; nil does not ask.
	Installed func(program string) error
	// RuntimeTimeout bounds one call of it; 0 is what the start of a unit allows.
	RuntimeTimeout time.Duration
	// Init is the path of gantry-init.
	Init string
	// StdioSocket is gantry-stdio's; "" leaves apps the unit's stdio (the journal).
	StdioSocket string
	// SeccompDefault is the profile of apps that ask for the runtime's default, in
	// Docker's or the OCI's JSON; nil is that of github.com/moby/profiles.
	SeccompDefault []byte
	// AppArmorDefault is the name of the profile of apps that ask for the runtime's
	// default. Set it only where AppArmor is on and has the profile loaded.
	AppArmorDefault string
	// SELinux is set where SELinux is on. Elsewhere labels mean nothing, and are left
	// out: Kubernetes gives them to nodes of both kinds.
	SELinux bool
	// KnownLabel tells whether the policy has a label; nil does not ask. With it, and
	// without SELinux, the policy is one that has no labels for containers.
	KnownLabel func(label string) error
	// Arch is the machine's architecture, in Go's words; "" is this program's.
	Arch string
}

// OCI is the isolator.
type OCI struct {
	cfg     Config
	dialect dialect
	recipe  recipe.Recipe
	seccomp recipe.Seccomp
}

var _ isolator.Isolator = (*OCI)(nil)

// New returns the isolator.
func New(c Config) (*OCI, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if len(c.Runtime) == 0 {
		c.Runtime = []string{"/usr/bin/crun"}
	}
	d, command, err := speak(c)
	if err != nil {
		return nil, err
	}
	c.Runtime = command
	if c.Init == "" {
		c.Init = DefaultInit
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	p, err := recipe.DefaultSeccomp(c.SeccompDefault)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	return &OCI{c, d, recipe.Recipe{Features: d.features, Init: c.Init, StdioSocket: c.StdioSocket}, p}, nil
}

// Name is oci, or what the operator calls another runtime.
func (o *OCI) Name() string { return o.cfg.Name }

// Features are what the runtime has.
func (o *OCI) Features() isolator.Features { return o.recipe.Features }

// features are all there are.
func features() isolator.Features {
	return isolator.Features{
		Isolation:  isolator.IsolationNamespaces,
		PodNetwork: true, HostNetwork: true, HostPID: true, HostIPC: true, UserNamespaces: true, SharedPID: true, Privileged: true,
		RecursiveReadOnlyMounts: true, BidirectionalMounts: true, ImageVolumes: true, MountOptions: true,
		TTY: true, Devices: true, Hooks: true,
	}
}

// Sandbox plans a pod.
func (o *OCI) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	if err := o.checkRuntime(); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	if err := o.dialect.checkPod(in.Pod); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	return o.recipe.Sandbox(in)
}

// Resources turns limits into what changes a running app's.
func (o *OCI) Resources(r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	return recipe.Resources(r)
}

// Cleanup has nothing to do: all that is made for a pod belongs to a unit or lies
// in the pod's directory.
func (o *OCI) Cleanup(context.Context, *pod.Pod) error { return nil }

// Forget removes what the runtime remembers of an app that has ended, if it was
// not told at the end, or did not obey. The app's unit is gone, and with it every
// process: where the runtime fails again its record goes without it.
func (o *OCI) Forget(_ context.Context, app pod.ID) error {
	root := o.runtimeRoot()
	if root == "" {
		return nil
	}
	// A directory, or files whose names begin with the app's.
	records, err := filepath.Glob(filepath.Join(root, string(app)+"*"))
	if err != nil || len(records) == 0 {
		return err
	}
	errs := []error{initproc.Forget(o.cfg.Runtime, string(app))}
	failed := false
	for _, record := range records {
		err := os.RemoveAll(record)
		errs, failed = append(errs, err), failed || err != nil
	}
	if failed {
		return fmt.Errorf("forget app %s: %w", app, errors.Join(errs...))
	}
	return nil
}

// runtimeState is the directory that holds all that the runtime knows of an app, ""
// where we know of none such.
func (o *OCI) runtimeState(app pod.ID) string {
	root := o.runtimeRoot()
	if root == "" || !o.dialect.record {
		return ""
	}
	return filepath.Join(root, string(app))
}

// runtimeRoot is where the runtime keeps its records, "" if its command line does
// not tell.
func (o *OCI) runtimeRoot() string {
	for i, arg := range o.cfg.Runtime {
		if root, ok := strings.CutPrefix(arg, "--root="); ok {
			return root
		}
		if arg == "--root" && i+1 < len(o.cfg.Runtime) {
			return o.cfg.Runtime[i+1]
		}
	}
	return ""
}
