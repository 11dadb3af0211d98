package oci

import (
	"fmt"
	"path"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// mounts are config.json's, and the parts of images that gantry-init has to mount for
// them first.
func mounts(in isolator.App) ([]specs.Mount, []initproc.Tree, error) {
	all, err := recipe.Mounts(in, kernelMounts(in))
	if err != nil {
		return nil, nil, err
	}
	var out []specs.Mount
	var trees []initproc.Tree
	for _, m := range all {
		if m.Sub != "" {
			target := path.Join(initproc.Trees, strconv.Itoa(len(trees)))
			trees = append(trees, initproc.Tree{Source: m.Source, Sub: m.Sub, Target: target})
			m.Source = target
		}
		out = append(out, mount(m))
	}
	return out, trees, nil
}

// mount is in the OCI's words.
func mount(m recipe.Mount) specs.Mount {
	out := specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: m.Options}
	if m.Type != "" {
		return out
	}
	out.Type, out.Options = "bind", []string{"bind"}
	if m.Recursive {
		out.Options[0] = "rbind"
	}
	out.Options = append(out.Options, string(m.Propagation))
	if m.ReadOnly {
		out.Options = append(out.Options, "ro")
	}
	if m.AllReadOnly {
		out.Options = append(out.Options, "rro")
	}
	out.Options = append(out.Options, m.Options...)
	if len(m.UIDs) > 0 {
		out.UIDMappings, out.GIDMappings = idMappings(m.UIDs), idMappings(m.GIDs)
		out.Options = append(out.Options, "idmap")
	}
	return out
}

func kernelMounts(in isolator.App) []recipe.Mount {
	access, plain := "ro", []string{"nosuid", "noexec", "nodev"}
	cgroup := recipe.Mount{Target: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(plain, "relatime", "ro")}
	if in.App.Security.Privileged {
		access = "rw"
		// It sees the host's cgroups: to mount them anew, from the host's namespace, would
		// take options of the host's own mount away.
		cgroup = recipe.Mount{Target: "/sys/fs/cgroup", Source: "/sys/fs/cgroup", Propagation: pod.PropagationPrivate, Options: plain}
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if u := in.Pod.Namespaces.User; u == nil || recipe.Mapped(u.GIDs, ttyGroup) {
		pts = append(pts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	return []recipe.Mount{
		{Target: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Target: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Target: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Target: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Target: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		cgroup,
	}
}

// ttyGroup is the group that owns terminals in every distribution.
const ttyGroup = 5
