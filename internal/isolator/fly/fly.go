// Package fly is the isolator without isolation: an app is a process of the host, with
// the host's processes, network, IPC and users, in a directory made of its image. It
// is for what manages the host: agents of the node, of its network and its storage.
//
// No OCI runtime is in the way. Gantry-init mounts the image's tree in a mount
// namespace of the unit's own, furnishes it, changes its root, drops privileges and
// becomes the app. What else keeps an app in its place is honoured: limits, users,
// capabilities, seccomp, AppArmor, read-only mounts. That they hold back a hostile
// program is not said: it sees the host's processes, and with the capability to change
// its root it leaves the directory.
//
//	fly.go      what is fixed per node; the pod
//	app.go      the app's files and unit
//	mounts.go   what is in its rootfs
//	process.go  what is executed, in an app and in an exec
//	seccomp.go  profiles for the kernel
//	inside.go   the same, inside of what another isolator puts around an app
package fly

import (
	"context"
	"fmt"
	"runtime"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Config holds what is fixed per node. All of it is part of the plan's input.
type Config struct {
	// Init is the path of gantry-init.
	Init string
	// StdioSocket is gantry-stdio's; "" leaves apps the unit's stdio (the journal).
	StdioSocket string
	// AppArmorDefault is the name of the profile of apps that ask for the node's
	// default, "" is none.
	AppArmorDefault string
	// SELinux is set where SELinux is on. An app that asks for a label is refused there.
	SELinux bool
	// Arch is the machine's architecture, in Go's words; "" is this program's.
	Arch string
}

// Fly is the isolator.
type Fly struct {
	cfg     Config
	recipe  recipe.Recipe
	seccomp recipe.Seccomp
}

var _ isolator.Isolator = (*Fly)(nil)

// New returns the isolator.
func New(c Config) (*Fly, error) {
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	p, err := recipe.DefaultSeccomp(nil)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	return &Fly{c, recipe.Recipe{Features: features(), Init: c.Init, StdioSocket: c.StdioSocket}, p}, nil
}

// Name is fly.
func (f *Fly) Name() string { return "fly" }

// Features are all but what takes namespaces, and hooks: no OCI runtime runs them.
func (f *Fly) Features() isolator.Features { return f.recipe.Features }

func features() isolator.Features {
	return isolator.Features{
		Isolation:   isolator.IsolationNone,
		HostNetwork: true, HostPID: true, HostIPC: true, SharedPID: true, Privileged: true,
		RecursiveReadOnlyMounts: true, BidirectionalMounts: true, ImageVolumes: true, MountOptions: true,
		TTY: true, Devices: true,
	}
}

// Sandbox plans a pod. All its apps see each other's processes, for they see the
// host's: no process has to hold a namespace for that.
func (f *Fly) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	if in.Pod != nil && !in.Pod.HostNetwork() {
		return isolator.Plan{}, fmt.Errorf("plan pod: fly needs the host's network (hostNetwork: true, or gantry run --net host): a network of the pod's own is %w", pod.ErrUnsupported)
	}
	if in.Pod != nil {
		in.Pod = onHost(in.Pod)
	}
	return f.recipe.Sandbox(in)
}

// onHost is the pod as it will be: what namespaces it asks for beside the network's it
// does not get, and Kubernetes asks for some unless told otherwise.
func onHost(p *pod.Pod) *pod.Pod {
	host := *p
	host.Namespaces = isolator.OnHost(p.Namespaces)
	return &host
}

// Resources turns limits into what changes a running app's.
func (f *Fly) Resources(r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	return recipe.Resources(r)
}

// Cleanup has nothing to do: all that is made for a pod belongs to a unit or lies in
// the pod's directory.
func (f *Fly) Cleanup(context.Context, *pod.Pod) error { return nil }

// Forget takes the rootfs of an app off the host, where it was to be mounted there and
// what records the app's end was killed.
func (f *Fly) Forget(_ context.Context, app pod.ID) error {
	return initproc.UnmountRootfs(hostTarget(app))
}
