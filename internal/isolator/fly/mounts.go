package fly

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// self is what gantry-init puts into the rootfs.
func self(in isolator.App) (initproc.Self, error) {
	mounts, err := recipe.Mounts(in, kernelMounts(in.App.Security.Privileged))
	if err != nil {
		return initproc.Self{}, err
	}
	masked, readOnly, err := recipe.HiddenPaths(in.App.Security)
	if err != nil {
		return initproc.Self{}, err
	}
	out := initproc.Self{Masked: masked, ReadOnly: readOnly, ReadOnlyRootfs: in.App.Security.ReadOnlyRootfs}
	ownDev := false
	for _, m := range mounts {
		out.Mounts = append(out.Mounts, mount(m))
		ownDev = ownDev || m.Target == dev && m.Type == "tmpfs"
	}
	if ownDev {
		out.Devices, out.Links, out.Console = standardDevices(), links(), in.App.TTY
	}
	for _, d := range in.App.Devices {
		device, err := device(d)
		if err != nil {
			return initproc.Self{}, fmt.Errorf("device %s: %w", d.Path, err)
		}
		if ownDev && slices.ContainsFunc(out.Links, func(l initproc.Link) bool { return l.Path == d.Path }) {
			continue // a privileged app is given all of the host's; its own terminals are others
		}
		if !ownDev && strings.HasPrefix(d.Path, dev+"/") {
			if d.Path != d.Source {
				return initproc.Self{}, fmt.Errorf("device %s: another name of %s in the host's own /dev: %w by this isolator", d.Path, d.Source, pod.ErrUnsupported)
			}
			continue // it is there, as long as the host has it
		}
		out.Devices = append(out.Devices, device)
	}
	return out, nil
}

func mount(m recipe.Mount) initproc.Mount {
	return initproc.Mount{
		Target: m.Target, Type: m.Type, Source: m.Source, Recursive: m.Recursive, Sub: m.Sub,
		ReadOnly: m.ReadOnly, AllReadOnly: m.AllReadOnly, Propagation: string(m.Propagation), Options: m.Options,
	}
}

const dev = "/dev"

// kernelMounts are as oci's. An app has a /dev of its own: places for what is mounted in
// it, by kubelet for one, would be made in the host's. The cgroups are the host's mount: to
// mount them anew, seen from the host's namespace, changes options of all of them.
func kernelMounts(privileged bool) []recipe.Mount {
	access := "ro"
	if privileged {
		access = "rw"
	}
	return []recipe.Mount{
		{Target: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Target: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{
			Target: "/sys/fs/cgroup", Source: "/sys/fs/cgroup", ReadOnly: !privileged, Propagation: pod.PropagationPrivate,
			Options: []string{"nosuid", "noexec", "nodev"},
		},
		{Target: dev, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Target: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Target: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
}

func standardDevices() []initproc.Device {
	var out []initproc.Device
	for _, d := range []struct {
		path         string
		major, minor uint32
	}{
		{"/dev/null", 1, 3},
		{"/dev/zero", 1, 5},
		{"/dev/full", 1, 7},
		{"/dev/random", 1, 8},
		{"/dev/urandom", 1, 9},
		{"/dev/tty", 5, 0},
	} {
		out = append(out, initproc.Device{Path: d.path, Mode: unix.S_IFCHR | 0o666, Major: d.major, Minor: d.minor})
	}
	return out
}

func links() []initproc.Link {
	return []initproc.Link{
		{Path: "/dev/ptmx", To: "pts/ptmx"},
		{Path: "/dev/fd", To: "/proc/self/fd"},
		{Path: "/dev/stdin", To: "/proc/self/fd/0"},
		{Path: "/dev/stdout", To: "/proc/self/fd/1"},
		{Path: "/dev/stderr", To: "/proc/self/fd/2"},
		{Path: "/dev/core", To: "/proc/kcore"},
	}
}

func device(d pod.Device) (initproc.Device, error) {
	if err := recipe.CheckDevice(d); err != nil {
		return initproc.Device{}, err
	}
	mode := d.Mode & 0o7777
	if mode == 0 {
		mode = 0o666
	}
	kind := uint32(unix.S_IFCHR)
	if d.Type == "b" {
		kind = unix.S_IFBLK
	}
	return initproc.Device{Path: d.Path, Mode: kind | mode, Major: uint32(d.Major), Minor: uint32(d.Minor), UID: d.UID, GID: d.GID}, nil
}
