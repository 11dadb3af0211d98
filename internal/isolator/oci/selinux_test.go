package oci

import (
	"errors"
	"reflect"
	"testing"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/pod"
)

func labelled(app, whole *pod.SELinux, privileged bool, mounts ...pod.Mount) isolator.App {
	return isolator.App{
		Pod: &pod.Pod{ID: "aaaaaaaaaaaaaaaaaaaaaaaa", Security: pod.Security{SELinux: whole}},
		App: &pod.App{Security: pod.Security{SELinux: app, Privileged: privileged}, Mounts: mounts},
		Dir: isolator.Dirs{Pod: "/var/lib/gantry/pods/a", Run: "/run/gantry/pods/a"},
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	level := pod.Level("aaaaaaaaaaaaaaaaaaaaaaaa")
	o := newOCI(t)
	for name, c := range map[string]struct {
		app, whole     *pod.SELinux
		privileged     bool
		process, files string
	}{
		"nothing said":  {nil, nil, false, "system_u:system_r:container_t:" + level, "system_u:object_r:container_file_t:" + level},
		"privileged":    {nil, nil, true, "system_u:system_r:spc_t:" + level, ""},
		"the pod's":     {nil, &pod.SELinux{Type: "a_t", Level: "s0:c1"}, false, "system_u:system_r:a_t:s0:c1", "system_u:object_r:container_file_t:s0:c1"},
		"its own":       {&pod.SELinux{User: "u", Role: "r"}, &pod.SELinux{Type: "a_t", Level: "s0:c1"}, false, "u:r:container_t:s0:c1", "u:object_r:container_file_t:s0:c1"},
		"own level too": {&pod.SELinux{Level: "s0:c2"}, &pod.SELinux{Level: "s0:c1"}, false, "system_u:system_r:container_t:s0:c2", "system_u:object_r:container_file_t:s0:c2"},
	} {
		in := labelled(c.app, c.whole, c.privileged)
		if got := o.processLabel(in); got != c.process {
			t.Errorf("%s: processes have %s, want %s", name, got, c.process)
		}
		if got := o.fileLabel(in); got != c.files {
			t.Errorf("%s: files have %s, want %s", name, got, c.files)
		}
	}
	o.cfg.SELinux = false
	if in := labelled(&pod.SELinux{Type: "a_t"}, nil, false); o.processLabel(in) != "" || o.fileLabel(in) != "" || o.relabel(in) != nil {
		t.Error("labels without SELinux")
	}
}

func TestRelabel(t *testing.T) {
	t.Parallel()
	o := newOCI(t)
	own, shared := pod.Mount{Source: "/data/own", Relabel: true}, pod.Mount{Source: "/data/all", RelabelShared: true}
	in := labelled(&pod.SELinux{Level: "s0:c1"}, nil, false, own, shared, pod.Mount{Source: "/data/kept"}, pod.Mount{Image: &pod.Image{}, Relabel: true})
	want := []initproc.Relabel{
		{Label: "system_u:object_r:container_file_t:" + pod.Level("aaaaaaaaaaaaaaaaaaaaaaaa"), Paths: []string{"/run/gantry/pods/a/shm"}},
		{Label: "system_u:object_r:container_file_t:s0:c1", Paths: []string{"/data/own"}},
		{Label: "system_u:object_r:container_file_t:s0", Paths: []string{"/data/all"}},
	}
	if got := o.relabel(in); !reflect.DeepEqual(got, want) {
		t.Errorf("relabel %+v", got)
	}
	if err := o.checkLabels(in); err != nil {
		t.Error(err)
	}
	for _, host := range []string{"/", "/etc", "/usr/", "/usr/lib/systemd", "/var/lib", "/var/lib/gantry/images", "/run/gantry", "/dev/shm"} {
		for _, m := range []pod.Mount{{Source: host, Relabel: true}, {Source: host, RelabelShared: true}, {Source: "/data", HostPath: host, Relabel: true}} {
			if err := o.checkLabels(labelled(nil, nil, false, m)); !errors.Is(err, pod.ErrInvalid) {
				t.Errorf("%+v: %v", m, err)
			}
		}
	}
	for _, p := range []string{"/data", "/var/lib/kubelet/pods/u/volumes/v", "/home/user/x", "/usrdata"} {
		if err := o.checkLabels(labelled(nil, nil, false, pod.Mount{Source: p, HostPath: p, Relabel: true})); err != nil {
			t.Error(err)
		}
	}
	o.cfg.KnownLabel = func(label string) error {
		if label != "system_u:system_r:container_t:s0:c1" {
			return errors.New("no such label")
		}
		return nil
	}
	if err := o.checkLabels(in); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a label of files that is not there: %v", err)
	}
	o.cfg.SELinux = false // the policy has none of them
	if err := o.checkLabels(in); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a label for a policy without types: %v", err)
	}
	if err := o.checkLabels(labelled(nil, nil, false)); err != nil {
		t.Error(err)
	}
}
