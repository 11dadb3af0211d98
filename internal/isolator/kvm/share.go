package kvm

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"gantry/internal/guest"
	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/machine"
	"gantry/internal/pod"
)

// translate turns an app of the host into one of the machine: what it sees of the host is
// shared, and has another path there.
func translate(in isolator.App, inside fly.Inside) (initproc.Start, []machine.Share, error) {
	app := string(in.App.ID)
	t := translation{host: path.Join(share(in.Dir), app), guest: path.Join(guest.Share, app)}
	self := inside.Self
	self.Mounts = nil
	for _, m := range inside.Self.Mounts {
		m, err := t.mount(m, in.Dir)
		if err != nil {
			return initproc.Start{}, nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		self.Mounts = append(self.Mounts, m)
	}
	if len(inside.Self.Devices) > len(standard) {
		return initproc.Start{}, nil, fmt.Errorf("devices: %w by this isolator", pod.ErrUnsupported)
	}
	// A device file that an app makes in its /dev is none: those that there are come from
	// the machine's.
	self.Devices = nil
	for _, d := range standard {
		self.Mounts = append(self.Mounts, initproc.Mount{Target: d, Source: d, Propagation: "rprivate"})
	}
	upper := path.Join(guest.Scratch, app)
	return initproc.Start{
		Pod: string(in.Pod.ID), App: app, Self: &self,
		Rootfs: initproc.Rootfs{
			Lower: []string{t.add(machine.Share{Source: in.Rootfs.Path, ReadOnly: true})},
			Upper: path.Join(upper, "upper"), Work: path.Join(upper, "work"), Target: fly.Target,
			NoDev: true, // the machine's devices are no app's
		},
	}, t.shares, nil
}

// standard are the devices that every app has.
var standard = [...]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}

type translation struct {
	host, guest string // the app's part of the share
	shares      []machine.Share
}

// add shares something, and returns where it is in the machine.
func (t *translation) add(s machine.Share) string {
	name := strconv.Itoa(len(t.shares))
	s.Target = path.Join(t.host, name)
	t.shares = append(t.shares, s)
	return path.Join(t.guest, name)
}

func (t *translation) mount(m initproc.Mount, d isolator.Dirs) (initproc.Mount, error) {
	switch {
	case m.Target == "/sys/fs/cgroup":
		options := []string{"nosuid", "noexec", "nodev"}
		if m.ReadOnly {
			options = append(options, "ro")
		}
		return initproc.Mount{Target: m.Target, Type: "cgroup2", Source: "cgroup2", Options: options}, nil
	case m.Target == "/dev" && m.Type == "tmpfs":
		m.Options = append(slices.Clone(m.Options), "nodev")
		return m, nil
	case m.Type != "":
		return m, nil
	case m.Source == path.Join(d.Run, "shm"):
		m.Source, m.Recursive = guest.Shm, false
		return m, nil
	case m.Propagation == string(pod.PropagationShared):
		return m, fmt.Errorf("propagation to the host: %w by this isolator", pod.ErrUnsupported)
	case ofKernel(m.Source):
		return m, fmt.Errorf("%s of the host: %w by this isolator", m.Source, pod.ErrUnsupported)
	}
	m.Source = t.add(machine.Share{Source: m.Source, Sub: m.Sub, ReadOnly: m.ReadOnly, Private: m.Propagation != string(pod.PropagationSlave), Recursive: m.Recursive, AllReadOnly: m.AllReadOnly})
	// In the machine what is mounted below comes when somebody goes there, and is as its
	// parent is. So only the host can tell the parent's being read-only from its own.
	m.ReadOnly = m.AllReadOnly
	m.Sub, m.Propagation = "", string(pod.PropagationSlave)
	return m, nil
}

// ofKernel tells of what means something only in front of the host's kernel.
func ofKernel(source string) bool {
	return slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, func(dir string) bool {
		return source == dir || strings.HasPrefix(source, dir+"/")
	})
}
