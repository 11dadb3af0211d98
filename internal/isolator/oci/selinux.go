package oci

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// The types of the policies of all distributions that have any for containers.
const (
	processType    = "container_t"
	fileType       = "container_file_t"
	privilegedType = "spc_t"
)

// selinux is what the user said of an app's label: its own, else the pod's. The level
// is what apps of a pod have in common, unless one has another.
func selinux(in isolator.App) (l pod.SELinux) {
	whole := in.Pod.Security.SELinux
	if whole != nil {
		l = *whole
	}
	if own := in.App.Security.SELinux; own != nil {
		l = *own
		if whole != nil {
			l.Level = cmp.Or(l.Level, whole.Level)
		}
	}
	l.Level = cmp.Or(l.Level, pod.Level(in.Pod.ID))
	return l
}

// processLabel is the label of an app's processes. What was not said of it keeps pods
// apart: the level is the pod's own. A privileged app may do as it likes.
func (o *OCI) processLabel(in isolator.App) string {
	if !o.cfg.SELinux {
		return ""
	}
	l := selinux(in)
	kind := processType
	if in.App.Security.Privileged {
		kind = privilegedType
	}
	return label(cmp.Or(l.User, "system_u"), cmp.Or(l.Role, "system_r"), cmp.Or(l.Type, kind), l.Level)
}

// fileLabel is the label of the files that are an app's, "" if they keep theirs.
func (o *OCI) fileLabel(in isolator.App) string {
	if !o.cfg.SELinux || in.App.Security.Privileged {
		return ""
	}
	l := selinux(in)
	return label(cmp.Or(l.User, "system_u"), "object_r", fileType, l.Level)
}

func label(parts ...string) string { return strings.Join(parts, ":") }

// relabel lists what gets a label before the app is there: the pod's own files, and the
// volumes of which that was asked.
func (o *OCI) relabel(in isolator.App) []initproc.Relabel {
	own := initproc.Relabel{Label: o.fileLabel(in)}
	if own.Label == "" {
		return nil
	}
	// Apps with labels of their own must not take what all have in common.
	pods := initproc.Relabel{Label: o.fileLabel(isolator.App{Pod: in.Pod, App: &pod.App{}})}
	shared := initproc.Relabel{Label: label("system_u", "object_r", fileType, "s0")}
	for _, m := range recipe.PodMounts(in) {
		if m.Source != "/dev/shm" { // the host's
			pods.Paths = append(pods.Paths, m.Source)
		}
	}
	for _, m := range in.App.Mounts {
		switch {
		case m.Image != nil:
		case m.Relabel:
			own.Paths = append(own.Paths, m.Source)
		case m.RelabelShared:
			shared.Paths = append(shared.Paths, m.Source)
		}
	}
	return slices.DeleteFunc([]initproc.Relabel{pods, own, shared}, func(r initproc.Relabel) bool { return len(r.Paths) == 0 })
}

// theHosts are directories that the host itself lives in, with all below them; of
// hostsAlone it is only what lies directly in them. Whoever gives them to an app must not
// make them the app's.
var (
	theHosts = []string{
		"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr",
	}
	hostsAlone = []string{
		"/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/cache", "/var/lib", "/var/lib/kubelet",
		"/var/lib/kubelet/pods", "/var/log", "/var/log/pods", "/var/run", "/var/spool", "/var/tmp",
	}
)

// ofTheHost tells whether a path is the host's or ours.
func ofTheHost(in isolator.App, p string) bool {
	if slices.Contains(hostsAlone, p) {
		return true
	}
	state, run := path.Dir(path.Dir(in.Dir.Pod)), path.Dir(path.Dir(in.Dir.Run))
	for _, dir := range append([]string{state, run}, theHosts...) {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// checkLabels finds what cannot work with SELinux.
func (o *OCI) checkLabels(in isolator.App) error {
	if explicit := in.App.Security.SELinux != nil || in.Pod.Security.SELinux != nil; explicit && !o.cfg.SELinux && o.cfg.KnownLabel != nil {
		return recipe.Invalid("security.selinux: the node's policy has no types for containers")
	}
	process, files := o.processLabel(in), o.fileLabel(in)
	for _, l := range []string{process, files} {
		if l == "" || o.cfg.KnownLabel == nil {
			continue
		}
		if err := o.cfg.KnownLabel(l); err != nil {
			return recipe.Invalid("security.selinux: the policy has no label %q", l)
		}
	}
	if files == "" {
		return nil
	}
	for _, m := range in.App.Mounts {
		if (m.Relabel || m.RelabelShared) && m.Image == nil && (ofTheHost(in, path.Clean(m.Source)) || ofTheHost(in, path.Clean(m.HostPath))) {
			return recipe.Invalid("mount %s: %s is the host's, and not given an app's SELinux label", m.Path, m.Source)
		}
	}
	return nil
}
