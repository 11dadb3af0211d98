package unit

import (
	"fmt"
	"strings"
)

// The names of Gantry's units. Every one of them begins with "gantry-", so that
// systemctl list-units 'gantry-*' shows all.
const (
	Slice       = "gantry.slice"
	appPrefix   = "gantry-app-"
	podPrefix   = "gantry-pod-"
	imagePrefix = "gantry-image-"
	service     = ".service"
)

// App names the service of an app.
func App(id string) string { return appPrefix + id + service }

// Pod names the service that holds a pod's namespaces and network.
func Pod(id string) string { return podPrefix + id + service }

// PodSlice names the slice of a pod that no kubelet made one for.
func PodSlice(id string) string { return "gantry-" + id + ".slice" }

// Holder names the service that holds a pod's shared PID namespace.
func Holder(id string) string { return "gantry-holder-" + id + service }

// Machine names the service that is a pod's virtual machine, and FileServer the one that
// shares files of the host with it.
func Machine(id string) string    { return "gantry-machine-" + id + service }
func FileServer(id string) string { return "gantry-files-" + id + service }

// Exit names the service that records an app's end when its own unit could not: it
// runs outside the pod's slice. Its unit file is shipped.
func Exit(id string) string { return "gantry-exit@" + id + service }

// Ended names the service that ends a pod whose machine has failed, where the machine's own
// unit could not. Its unit file is shipped.
func Ended(id string) string { return "gantry-ended@" + id + service }

// Checkpoint names the service that writes down the state of an app.
func Checkpoint(id string) string { return "gantry-checkpoint-" + id + service }

// AppID tells which app a unit belongs to.
func AppID(name string) (string, bool) { return between(name, appPrefix, service) }

// PodID tells which pod a unit belongs to.
func PodID(name string) (string, bool) { return between(name, podPrefix, service) }

// PodOf tells which pod a unit is for that is not an app's: the pod's own, one that holds or
// serves something of it, or its slice.
func PodOf(name string) (string, bool) {
	for _, named := range []func(string) string{Pod, Holder, Machine, FileServer, PodSlice} {
		prefix, suffix, _ := strings.Cut(named("/"), "/")
		id, ok := between(name, prefix, suffix)
		if ok && !strings.Contains(id, "-") {
			return id, true
		}
	}
	return "", false
}

func between(s, prefix, suffix string) (string, bool) {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, suffix)
	return s, ok && s != ""
}

// Escape makes a string fit for a unit's name, as systemd-escape(1) does.
func Escape(s string) string {
	if s == "" {
		return ""
	}
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/':
			b.WriteByte('-')
		case isPlain(c) && (c != '.' || i > 0):
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// EscapePath escapes an absolute path for use in a mount unit's name.
func EscapePath(path string) string {
	var parts []string
	for p := range strings.SplitSeq(path, "/") {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return Escape(strings.Join(parts, "/"))
}

// Mount names the mount unit of a path; systemd allows no other name for it.
func Mount(path string) string { return EscapePath(path) + ".mount" }

func isPlain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ':' || c == '_' || c == '.'
}

// SliceOf turns a cgroup path, as kubelet gives it, into the slice unit it names:
// /kubepods.slice/kubepods-pod1.slice is kubepods-pod1.slice.
func SliceOf(cgroup string) (string, error) {
	last := cgroup[strings.LastIndexByte(cgroup, '/')+1:]
	if !strings.HasSuffix(last, ".slice") || ValidName(last) != nil {
		return "", fmt.Errorf("cgroup parent %q: want a path that ends in a slice, such as /kubepods.slice (is kubelet's cgroupDriver systemd?)", cgroup)
	}
	return last, nil
}

// ValidName checks a unit's name as unit_name_is_valid() of systemd does.
func ValidName(name string) error {
	i := strings.LastIndexByte(name, '.')
	if i <= 0 || i == len(name)-1 || len(name) > 255 {
		return fmt.Errorf("unit name %q: want NAME.TYPE of at most 255 characters", name)
	}
	for j := range len(name) {
		if c := name[j]; !isPlain(c) && c != '-' && c != '\\' && c != '@' {
			return fmt.Errorf("unit name %q: character %q is not allowed", name, c)
		}
	}
	return nil
}

// CgroupOf gives the path of a slice below the cgroup root: kubepods-a-b.slice
// is kubepods.slice/kubepods-a.slice/kubepods-a-b.slice.
func CgroupOf(slice string) string {
	base, ok := strings.CutSuffix(slice, ".slice")
	if !ok || base == "-" {
		return ""
	}
	var path []string
	for i := range len(base) {
		if base[i] == '-' {
			path = append(path, base[:i]+".slice")
		}
	}
	return strings.Join(append(path, slice), "/")
}
