package recipe

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// Mount is a part of an app's file system that is not of its image.
type Mount struct {
	Target string
	// Type is a kernel file system's, with its Options. "" shows the host's Source: all
	// that is mounted below it too, if Recursive.
	Type      string
	Source    string
	Recursive bool
	// Sub is a part of Source, an image's tree: symbolic links on the way to it are the
	// image's.
	Sub         string
	ReadOnly    bool
	AllReadOnly bool // and what is mounted below it
	Propagation pod.Propagation
	Options     []string
	UIDs, GIDs  []pod.IDMap
}

// Mounts lists what is mounted in the app: the isolator's own mounts, the pod's files,
// then what the user gave, a directory before what lies in it. A mount of the user
// replaces the pod's at the same place; and at or above one of the isolator's it
// replaces that: who mounts the host's /sys gets it whole.
func Mounts(in isolator.App, own []Mount) ([]Mount, error) {
	given := map[string]bool{}
	var user []Mount
	for _, m := range in.App.Mounts {
		mount, err := userMount(in, m)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, err)
		}
		if given[mount.Target] {
			return nil, Invalid("mount %s: the path is used twice", m.Path)
		}
		given[mount.Target] = true
		user = append(user, mount)
	}
	own = slices.DeleteFunc(slices.Clone(own), func(m Mount) bool { return underAny(m.Target, given) })
	files := slices.DeleteFunc(PodMounts(in), func(m Mount) bool { return given[m.Target] })
	all := slices.Concat(own, files, user)
	slices.SortStableFunc(all, func(a, b Mount) int { return depth(a.Target) - depth(b.Target) })
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

// PodMounts are what the apps of a pod share: /dev/shm and files in /etc.
func PodMounts(in isolator.App) []Mount {
	plain := []string{"nosuid", "nodev", "noexec"}
	shm := "/dev/shm"
	if in.Pod.Namespaces.IPC != pod.NamespaceNode {
		shm = path.Join(in.Dir.Run, "shm")
	}
	out := []Mount{{Target: "/dev/shm", Source: shm, Recursive: true, Propagation: pod.PropagationPrivate, Options: plain}}
	add := func(target, file string) {
		m := Mount{
			Target: target, Source: path.Join(in.Dir.Pod, file), Propagation: pod.PropagationPrivate, Options: plain,
			ReadOnly: in.App.Security.ReadOnlyRootfs,
		}
		// The files belong to root on the host; in the pod they belong to its root.
		if u := in.Pod.Namespaces.User; u != nil {
			m.UIDs, m.GIDs = u.UIDs, u.GIDs
		}
		out = append(out, m)
	}
	if in.Pod.Hostname != "" {
		add("/etc/hostname", HostnameFile)
	}
	if HasHosts(in.Pod) {
		add("/etc/hosts", HostsFile)
	}
	if in.Pod.DNS != nil {
		add("/etc/resolv.conf", ResolvFile)
	}
	return out
}

func userMount(in isolator.App, m pod.Mount) (Mount, error) {
	out := Mount{Target: path.Clean(m.Path)}
	if !path.IsAbs(m.Path) || out.Target == "/" || strings.ContainsRune(m.Path, 0) {
		return out, Invalid("want an absolute path below the root")
	}
	if err := checkOptions(m.Options); err != nil {
		return out, err
	}
	if m.Image != nil {
		return imageMount(in, m, out)
	}
	if err := CheckPath(m.Source); err != nil {
		return out, fmt.Errorf("source: %w", err)
	}
	propagation, err := propagationOf(m)
	if err != nil {
		return out, err
	}
	out.Source, out.Recursive, out.Propagation, out.Options = m.Source, true, propagation, m.Options
	out.ReadOnly, out.AllReadOnly = m.ReadOnly || m.RecursiveReadOnly, m.RecursiveReadOnly
	out.UIDs, out.GIDs = m.UIDs, m.GIDs
	return out, checkMapped(in, m)
}

func propagationOf(m pod.Mount) (pod.Propagation, error) {
	p := m.Propagation
	switch p {
	case "":
		p = pod.PropagationPrivate
	case pod.PropagationPrivate, pod.PropagationSlave, pod.PropagationShared:
	default:
		return "", Invalid("propagation %q", p)
	}
	if m.RecursiveReadOnly && (!m.ReadOnly || p != pod.PropagationPrivate) {
		return "", Invalid("recursiveReadOnly needs readOnly and no propagation")
	}
	return p, nil
}

func checkOptions(options []string) error {
	for _, o := range options {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return Invalid("option %q: want noexec, nodev or nosuid", o)
		}
	}
	return nil
}

func checkMapped(in isolator.App, m pod.Mount) error {
	if len(m.UIDs) == 0 && len(m.GIDs) == 0 {
		return nil
	}
	if len(m.UIDs) == 0 || len(m.GIDs) == 0 {
		return Invalid("uids without gids, or gids without uids")
	}
	if in.Pod.Namespaces.User == nil {
		return Invalid("uids and gids need a pod with a user namespace")
	}
	for _, ids := range [][]pod.IDMap{m.UIDs, m.GIDs} {
		if err := CheckMaps(ids); err != nil {
			return err
		}
	}
	return nil
}

// imageMount shows an image's tree, or a part of it. The part's path may lead
// through symbolic links of the image, so it is gantry-init that looks it up.
func imageMount(in isolator.App, m pod.Mount, out Mount) (Mount, error) {
	if !m.ReadOnly {
		return out, Invalid("an image volume is read-only")
	}
	if m.Source != "" || m.Propagation != "" && m.Propagation != pod.PropagationPrivate {
		return out, Invalid("an image volume has no source and no propagation")
	}
	tree, ok := in.ImageVolumes[m.Image.ID]
	if !ok {
		return out, Invalid("image %s is not mounted", m.Image.ID)
	}
	if err := CheckTree("image volume", tree); err != nil {
		return out, err
	}
	sub, err := imageSubPath(m)
	if err != nil {
		return out, err
	}
	out.Source, out.Sub, out.ReadOnly, out.Propagation = tree.Path, sub, true, pod.PropagationPrivate
	out.Options = []string{"nosuid", "nodev", "noexec"}
	if u := in.Pod.Namespaces.User; u != nil {
		out.UIDs, out.GIDs = u.UIDs, u.GIDs
	}
	return out, nil
}

func imageSubPath(m pod.Mount) (string, error) {
	sub := strings.Trim(m.ImageSubPath, "/")
	if sub != "" && path.Clean("/"+sub) != "/"+sub || strings.ContainsRune(sub, 0) {
		return "", Invalid("imageSubPath %q: want a path without . and ..", m.ImageSubPath)
	}
	return sub, nil
}
