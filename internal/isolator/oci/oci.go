// Package oci is the default isolator: Linux namespaces and cgroups, set up by an
// OCI runtime that leaves when the app runs.
//
// It turns a pod and an app into a plan and looks at nothing else: config.json
// for the runtime (OCI runtime-spec 1.3.0), start.json for gantry-init, and the
// transient service in which both run. Limits are properties of that service; the
// runtime's own cgroup code is off.
//
//	oci.go        what is fixed per node
//	app.go         the app's files and unit
//	spec.go        config.json, with mounts.go, seccomp.go, selinux.go, devices.go
//	exec.go        a process in a running app
//	checkpoint.go  its state, written down
package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
)

// Config holds what is fixed per node. All of it is part of the plan's input.
type Config struct {
	// Runtime is the OCI runtime's command line up to the subcommand. It must leave
	// cgroups alone: the app's unit is its cgroup.
	Runtime []string
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
	recipe  recipe.Recipe
	seccomp recipe.Seccomp
}

var _ isolator.Isolator = (*OCI)(nil)

// New returns the isolator.
func New(c Config) (*OCI, error) {
	if len(c.Runtime) == 0 {
		c.Runtime = []string{"/usr/bin/crun", "--root=/run/gantry/crun", "--cgroup-manager=disabled"}
	}
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
	return &OCI{c, recipe.Recipe{Features: features(), Init: c.Init, StdioSocket: c.StdioSocket}, p}, nil
}

// Name is oci.
func (o *OCI) Name() string { return "oci" }

// Features are all there are.
func (o *OCI) Features() isolator.Features { return o.recipe.Features }

func features() isolator.Features {
	return isolator.Features{
		Isolation:  isolator.IsolationNamespaces,
		PodNetwork: true, HostNetwork: true, HostPID: true, HostIPC: true, UserNamespaces: true, SharedPID: true, Privileged: true,
		RecursiveReadOnlyMounts: true, BidirectionalMounts: true, ImageVolumes: true, MountOptions: true,
		TTY: true, Devices: true, Hooks: true,
	}
}

// Sandbox plans a pod.
func (o *OCI) Sandbox(in isolator.Sandbox) (isolator.Plan, error) { return o.recipe.Sandbox(in) }

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
	record := filepath.Join(root, string(app))
	if _, err := os.Lstat(record); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := initproc.Forget(o.cfg.Runtime, string(app))
	if rmErr := os.RemoveAll(record); rmErr != nil {
		return fmt.Errorf("forget app %s: %w", app, errors.Join(err, rmErr))
	}
	return nil
}

// runtimeState is the directory that holds all that crun knows of an app when its
// cgroup manager is off; of other runtimes, and with cgroups, we know no such thing.
func (o *OCI) runtimeState(app pod.ID) string {
	root := o.runtimeRoot()
	if root == "" || filepath.Base(o.cfg.Runtime[0]) != "crun" || !slices.Contains(o.cfg.Runtime, "--cgroup-manager=disabled") {
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
