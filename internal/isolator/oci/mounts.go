package oci

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// mounts lists what is mounted in the app: the kernel's file systems, the pod's
// files, then what the user gave, a directory before what lies in it. A mount of
// the user replaces ours at the same place; and at or above a kernel file system
// it replaces that: who mounts the host's /sys gets it whole.
func mounts(in isolator.App) ([]specs.Mount, error) {
	given := map[string]bool{}
	var user []specs.Mount
	for i, m := range in.App.Mounts {
		mount, err := userMount(in, i)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, err)
		}
		if given[mount.Destination] {
			return nil, invalid("mount %s: the path is used twice", m.Path)
		}
		given[mount.Destination] = true
		user = append(user, mount)
	}
	kernel := slices.DeleteFunc(kernelMounts(in), func(m specs.Mount) bool { return underAny(m.Destination, given) })
	files := slices.DeleteFunc(podMounts(in), func(m specs.Mount) bool { return given[m.Destination] })
	all := slices.Concat(kernel, files, user)
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return all, nil
}

func depth(p string) int { return strings.Count(p, "/") }

func underAny(p string, dirs map[string]bool) bool {
	for ; p != "/"; p = path.Dir(p) {
		if dirs[p] {
			return true
		}
	}
	return false
}

func kernelMounts(in isolator.App) []specs.Mount {
	access := "ro"
	if in.App.Security.Privileged {
		access = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if u := in.Pod.Namespaces.User; u == nil || mapped(u.GIDs, ttyGroup) {
		pts = append(pts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access},
		},
	}
}

// ttyGroup is the group that owns terminals in every distribution.
const ttyGroup = 5

// podMounts are what the apps of a pod share: /dev/shm and files in /etc.
func podMounts(in isolator.App) []specs.Mount {
	shm := "/dev/shm"
	if in.Pod.Namespaces.IPC != pod.NamespaceNode {
		shm = path.Join(in.Dir.Run, "shm")
	}
	out := []specs.Mount{{
		Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec"},
	}}
	add := func(destination, file string) {
		m := specs.Mount{
			Destination: destination, Type: "bind", Source: path.Join(in.Dir.Pod, file),
			Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"},
		}
		if in.App.Security.ReadOnlyRootfs {
			m.Options = append(m.Options, "ro")
		}
		// The files belong to root on the host; in the pod they belong to its root.
		if u := in.Pod.Namespaces.User; u != nil {
			mapOwners(&m, u.UIDs, u.GIDs)
		}
		out = append(out, m)
	}
	if in.Pod.Hostname != "" {
		add("/etc/hostname", hostnameFile)
	}
	if hasHosts(in.Pod) {
		add("/etc/hosts", hostsFile)
	}
	if in.Pod.DNS != nil {
		add("/etc/resolv.conf", resolvFile)
	}
	return out
}

// mapOwners makes m an idmapped mount.
func mapOwners(m *specs.Mount, uids, gids []pod.IDMap) {
	m.UIDMappings, m.GIDMappings = idMappings(uids), idMappings(gids)
	m.Options = append(m.Options, "idmap")
}

func userMount(in isolator.App, i int) (specs.Mount, error) {
	m := in.App.Mounts[i]
	out := specs.Mount{Destination: path.Clean(m.Path), Type: "bind"}
	if !path.IsAbs(m.Path) || out.Destination == "/" || strings.ContainsRune(m.Path, 0) {
		return out, invalid("want an absolute path below the root")
	}
	if err := checkOptions(m.Options); err != nil {
		return out, err
	}
	if m.Image != nil {
		return imageMount(in, i, out)
	}
	if err := checkPath(m.Source); err != nil {
		return out, fmt.Errorf("source: %w", err)
	}
	propagation, err := propagationOf(m)
	if err != nil {
		return out, err
	}
	out.Source, out.Options = m.Source, []string{"rbind", propagation}
	switch {
	case m.RecursiveReadOnly:
		out.Options = append(out.Options, "ro", "rro")
	case m.ReadOnly:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	out.Options = append(out.Options, m.Options...)
	return out, idmapped(in, m, &out)
}

func propagationOf(m pod.Mount) (string, error) {
	p := m.Propagation
	switch p {
	case "":
		p = pod.PropagationPrivate
	case pod.PropagationPrivate, pod.PropagationSlave, pod.PropagationShared:
	default:
		return "", invalid("propagation %q", p)
	}
	if m.RecursiveReadOnly && (!m.ReadOnly || p != pod.PropagationPrivate) {
		return "", invalid("recursiveReadOnly needs readOnly and no propagation")
	}
	return string(p), nil
}

func checkOptions(options []string) error {
	for _, o := range options {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return invalid("option %q: want noexec, nodev or nosuid", o)
		}
	}
	return nil
}

func idmapped(in isolator.App, m pod.Mount, out *specs.Mount) error {
	if len(m.UIDs) == 0 && len(m.GIDs) == 0 {
		return nil
	}
	if len(m.UIDs) == 0 || len(m.GIDs) == 0 {
		return invalid("uids without gids, or gids without uids")
	}
	if in.Pod.Namespaces.User == nil {
		return invalid("uids and gids need a pod with a user namespace")
	}
	for _, ids := range [][]pod.IDMap{m.UIDs, m.GIDs} {
		if err := checkMaps(ids); err != nil {
			return err
		}
	}
	mapOwners(out, m.UIDs, m.GIDs)
	return nil
}

// imageMount shows an image's tree, or a part of it. The part's path may lead
// through symbolic links of the image, so it is gantry-init that looks it up.
func imageMount(in isolator.App, i int, out specs.Mount) (specs.Mount, error) {
	m := in.App.Mounts[i]
	if !m.ReadOnly {
		return out, invalid("an image volume is read-only")
	}
	if m.Source != "" || m.Propagation != "" && m.Propagation != pod.PropagationPrivate {
		return out, invalid("an image volume has no source and no propagation")
	}
	tree, ok := in.ImageVolumes[m.Image.ID]
	if !ok {
		return out, invalid("image %s is not mounted", m.Image.ID)
	}
	if err := checkTree("image volume", tree); err != nil {
		return out, err
	}
	sub, err := imageSubPath(m)
	if err != nil {
		return out, err
	}
	out.Source = tree.Path
	if sub != "" {
		out.Source = subTarget(i)
	}
	out.Options = []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"}
	if u := in.Pod.Namespaces.User; u != nil {
		mapOwners(&out, u.UIDs, u.GIDs)
	}
	return out, nil
}

func imageSubPath(m pod.Mount) (string, error) {
	sub := strings.Trim(m.ImageSubPath, "/")
	if sub != "" && path.Clean("/"+sub) != "/"+sub || strings.ContainsRune(sub, 0) {
		return "", invalid("imageSubPath %q: want a path without . and ..", m.ImageSubPath)
	}
	return sub, nil
}

// subTarget is where gantry-init mounts the part of an image that is the app's
// mount number i.
func subTarget(i int) string { return path.Join(initproc.Trees, strconv.Itoa(i)) }

// subTrees are the parts of images that gantry-init has to mount. The mounts were
// checked before.
func subTrees(in isolator.App) []initproc.Tree {
	var out []initproc.Tree
	for i, m := range in.App.Mounts {
		if m.Image == nil {
			continue
		}
		if sub, err := imageSubPath(m); err == nil && sub != "" {
			out = append(out, initproc.Tree{
				Source: in.ImageVolumes[m.Image.ID].Path, Sub: sub, Target: subTarget(i),
			})
		}
	}
	return out
}
