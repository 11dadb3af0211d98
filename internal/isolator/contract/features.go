package contract

import (
	"errors"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// features checks each feature both ways: one that is announced yields a plan, one
// that is not is refused by name. Nothing is ever left out in silence.
func (s suite) features() error {
	f := s.iso.Features()
	var w wrong
	for _, test := range []struct {
		name  string
		given bool
		ask   func(*isolator.App)
	}{
		{"PodNetwork", f.PodNetwork, func(in *isolator.App) { in.Pod.Namespaces.Network = pod.NamespacePod }},
		{"HostNetwork", f.HostNetwork, func(in *isolator.App) { in.Pod.Namespaces.Network = pod.NamespaceNode }},
		{"HostPID", f.HostPID, func(in *isolator.App) { setPID(in, pod.NamespaceNode) }},
		{"HostIPC", f.HostIPC, func(in *isolator.App) { in.Pod.Namespaces.IPC = pod.NamespaceNode }},
		{"SharedPID", f.SharedPID, func(in *isolator.App) { setPID(in, pod.NamespacePod); in.HolderPID = 4711 }},
		{"UserNamespaces", f.UserNamespaces, func(in *isolator.App) {
			ids := []pod.IDMap{{Container: 0, Host: 65536, Length: 65536}}
			in.Pod.Namespaces.User = &pod.UserNS{UIDs: ids, GIDs: ids}
		}},
		{"Privileged", f.Privileged, func(in *isolator.App) { in.Pod.Security.Privileged, in.App.Security.Privileged = true, true }},
		{"TTY", f.TTY, func(in *isolator.App) { in.App.TTY = true }},
		{"Devices", f.Devices, func(in *isolator.App) {
			in.App.Devices = []pod.Device{{Path: "/dev/fuse", Source: "/dev/fuse", Permissions: "rw", Type: "c", Major: 10, Minor: 229}}
		}},
		{"Hooks", f.Hooks, func(in *isolator.App) {
			in.App.Hooks = []pod.Hook{{Stage: "createRuntime", Path: "/usr/bin/vendor-hook"}}
		}},
		{"RecursiveReadOnlyMounts", f.RecursiveReadOnlyMounts, func(in *isolator.App) {
			in.App.Mounts[0].ReadOnly, in.App.Mounts[0].RecursiveReadOnly = true, true
		}},
		{"BidirectionalMounts", f.BidirectionalMounts, func(in *isolator.App) { in.App.Mounts[0].Propagation = pod.PropagationShared }},
		{"MountOptions", f.MountOptions, func(in *isolator.App) { in.App.Mounts[0].Options = []string{"noexec"} }},
		{"ImageVolumes", f.ImageVolumes, func(in *isolator.App) {
			in.App.Mounts[0] = pod.Mount{Path: "/vol", Image: &pod.Image{ID: "sha256:dd"}, ReadOnly: true}
			in.ImageVolumes = map[string]isolator.Tree{"sha256:dd": {Path: "/run/gantry/images/dd", Unit: "run-gantry-images-dd.mount"}}
		}},
	} {
		in := s.input()
		test.ask(&in)
		_, podErr := s.sandbox(in)
		_, appErr := s.iso.App(in)
		err := errors.Join(podErr, appErr)
		switch {
		case test.given && err != nil:
			w.add("%s is announced, but refused: %v", test.name, err)
		case !test.given && !errors.Is(err, pod.ErrUnsupported):
			w.add("%s is not announced: want pod.ErrUnsupported, got %v", test.name, err)
		}
	}
	return w.all()
}

func setPID(in *isolator.App, m pod.NamespaceMode) {
	in.Pod.Namespaces.PID, in.App.Namespaces.PID = m, m
}
