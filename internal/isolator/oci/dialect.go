package oci

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// dialect is what is particular to an OCI runtime. The specification leaves to each of
// them how cgroups are managed, and where and how a process gets into a running app.
type dialect struct {
	// options are added to a command line that has none of that name, and never are
	// those that take cgroups out of their units.
	options, never []string
	// record tells that the directory ROOT/ID is all the runtime keeps of an app, beside
	// cgroups: removing it is as good as asking the runtime.
	record bool
	// group tells that the runtime wants a cgroup of its own for each app.
	group bool
	// socket tells that exec sends a terminal to a socket. Others do so only if they are
	// to leave at once, and then nobody learns how the process ended.
	socket bool
	// exec are options of exec, with isolator.GroupArg or isolator.GroupPathArg: what puts
	// the process into a cgroup below the app's.
	exec []string
	// features of the isolator.
	features isolator.Features
	// kernel tells that apps have a kernel of the runtime's: the host's profiles do not
	// reach them, and what the pod's namespaces hold they have to be told.
	kernel bool
}

// The kinds of runtimes whose dialect we know.
const (
	kindCrun  = "crun"
	kindRunc  = "runc"
	kindRunsc = "runsc"
	kindYouki = "youki"
)

func dialects() map[string]dialect {
	// Without mounts with mapped users, which runc has from 1.2 on, a user namespace
	// shows an app files that are nobody's.
	most := features()
	most.UserNamespaces = false
	// gVisor has a kernel of its own: it shares nothing with the host but files and packets.
	least := isolator.Features{
		Isolation: isolator.IsolationKernel, PodNetwork: true, ImageVolumes: true, MountOptions: true, TTY: true,
	}
	return map[string]dialect{
		kindCrun: {
			options: []string{"--cgroup-manager=disabled"}, never: []string{"--systemd-cgroup", "--cgroup-manager=systemd", "--cgroup-manager=cgroupfs"},
			// It keeps no cgroup of an app that is started without: a path is from the root.
			record: true, socket: true, exec: []string{"--cgroup", isolator.GroupPathArg}, features: features(),
		},
		kindRunc: {
			never: []string{"--systemd-cgroup"}, record: true, group: true,
			exec: []string{"--cgroup", isolator.GroupArg}, features: most,
		},
		kindYouki: {never: []string{"--systemd-cgroup"}, group: true, features: most},
		// What an app writes goes through to its writable layer, where it is counted and limited,
		// and not into a file of runsc's in the rootfs, which is gone when runsc wants to remove it.
		kindRunsc: {
			options: []string{"--overlay2=none"}, never: []string{"--systemd-cgroup"}, group: true, features: least, kernel: true,
		},
	}
}

// Kinds are the words for Config.Kind.
func Kinds() []string { return slices.Sorted(maps.Keys(dialects())) }

// kindOf tells a runtime's kind by its program's name, which may end with a version:
// runc-1.2. A program of another name is a wrapper, or something new.
func kindOf(c Config) (kind string, wrapped bool) {
	name, _, _ := strings.Cut(filepath.Base(c.Runtime[0]), "-")
	_, known := dialects()[name]
	switch {
	case c.Kind != "":
		return c.Kind, c.Kind != name
	case known:
		return name, false
	case c.Name == DefaultName:
		return kindCrun, true
	default:
		return kindRunc, true // its command line is what others take over
	}
}

// speak finds a runtime's dialect, and completes its command line.
func speak(c Config) (dialect, []string, error) {
	kind, wrapped := kindOf(c)
	d, ok := dialects()[kind]
	if !ok {
		return d, nil, fmt.Errorf("isolator %s: kind %q of runtime: want one of %s: %w", c.Name, kind, strings.Join(Kinds(), ", "), pod.ErrInvalid)
	}
	for _, bad := range d.never {
		if given(c.Runtime, bad) {
			return d, nil, fmt.Errorf("isolator %s: option %s of %s: an app's cgroup is its unit's, leave it out: %w", c.Name, bad, c.Runtime[0], pod.ErrInvalid)
		}
	}
	d.record = d.record && !wrapped // a wrapper wants to be asked
	command := slices.Clone(c.Runtime)
	root := path.Join(Roots, c.Name)
	if c.Name == DefaultName {
		root = path.Join(path.Dir(Roots), kind)
	}
	for _, option := range append([]string{"--root=" + root}, d.options...) {
		name, _, _ := strings.Cut(option, "=")
		if !slices.ContainsFunc(command[1:], func(s string) bool { return s == name || strings.HasPrefix(s, name+"=") }) {
			command = append(command, option)
		}
	}
	return d, command, nil
}

// given tells whether a command line has an option, with its value in the same word or in
// the next.
func given(command []string, option string) bool {
	name, value, _ := strings.Cut(option, "=")
	for i, word := range command {
		if word == option || word == name && i+1 < len(command) && command[i+1] == value {
			return true
		}
	}
	return false
}

// ownCgroup tells a runtime that manages cgroups where the app's is: below its unit's.
// The unit has the limits, and the rules for devices: the one here keeps the runtime from
// taking away what the unit allows.
func (d dialect) ownCgroup(in isolator.App, l *specs.Linux) {
	if !d.group {
		return
	}
	l.CgroupsPath = path.Join("/", unit.CgroupOf(in.Pod.Slice), unit.App(string(in.App.ID)), isolator.AppGroup)
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
}

// appGroup is where an app is below its unit's cgroup, "" in it.
func (d dialect) appGroup() string {
	if d.group {
		return isolator.AppGroup
	}
	return ""
}

// appArmor leaves out that there is no profile, where AppArmor is off: only crun takes
// that word there.
func (o *OCI) appArmor(s pod.Security) (string, error) {
	profile, err := recipe.AppArmor(s, o.cfg.AppArmorDefault)
	if o.dialect.group && profile == recipe.Unconfined && o.cfg.AppArmorDefault == "" {
		profile = ""
	}
	return profile, err
}

// checkPod refuses what would be left out in silence.
func (d dialect) checkPod(p *pod.Pod) error {
	if d.kernel && len(p.Sysctls) > 0 {
		return fmt.Errorf("sysctls: %w by this isolator, whose pods have a kernel of their own", pod.ErrUnsupported)
	}
	return nil
}

// checkProfiles refuses profiles and paths that would be left out in silence. Those by
// default are for what the runtime has its own means for.
func (d dialect) checkProfiles(s pod.Security) error {
	for _, p := range []struct {
		field string
		kind  pod.ProfileKind
	}{{"security.seccomp", s.Seccomp.Kind}, {"security.appArmor", s.AppArmor.Kind}} {
		if d.kernel && p.kind == pod.ProfileLocalhost {
			return fmt.Errorf("%s: a profile of the host's: %w by this isolator", p.field, pod.ErrUnsupported)
		}
	}
	for _, hidden := range slices.Concat(s.MaskedPaths, s.ReadOnlyPaths) { // those of /proc and /sys are the kernel's own affair
		if at := path.Clean(hidden); d.kernel && !strings.HasPrefix(at, "/proc/") && !strings.HasPrefix(at, "/sys/") {
			return fmt.Errorf("security: %s masked or read-only: %w by this isolator", hidden, pod.ErrUnsupported)
		}
	}
	return nil
}

// checkRuntime tells that the runtime's program is missing, and what to do.
func (o *OCI) checkRuntime() error {
	if o.cfg.Installed == nil {
		return nil
	}
	err := o.cfg.Installed(o.cfg.Runtime[0])
	if err == nil {
		return nil
	}
	key := "oci.runtimes"
	if o.cfg.Name == DefaultName {
		key = "oci.runtime"
	}
	return fmt.Errorf("isolator %s: cannot run its runtime %s (%w): install it, or correct %s in the configuration: %w",
		o.cfg.Name, o.cfg.Runtime[0], err, key, pod.ErrUnavailable)
}
