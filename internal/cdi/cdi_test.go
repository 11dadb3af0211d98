package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

const gpu = `
cdiVersion: 0.7.0
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR=all]
  mounts:
  - {hostPath: /usr/lib/vendor, containerPath: /opt/vendor, options: [ro, nosuid, nodev, rbind]}
devices:
- name: "0"
  containerEdits:
    env: [GPU=0]
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/vendor/gpu0, permissions: rw, uid: 5, fileMode: 0640}
    - {path: /dev/gpuctl, type: c, major: 195, minor: 255, permissions: none}
    hooks:
    - {hookName: createContainer, path: /usr/bin/vendor-hook, args: [vendor-hook, update], env: [A=b], timeout: 5}
    additionalGids: [0, 44]
- name: "1"
  containerEdits:
    env: [GPU=1]
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/vendor/gpu1}
`

func specDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ptr[T any](v T) *T { return &v }

func TestFind(t *testing.T) {
	t.Parallel()
	dir := specDir(t, map[string]string{"gpu.yaml": gpu})
	got, err := Find([]string{dir}, []string{"vendor.com/gpu=0"})
	if err != nil {
		t.Fatal(err)
	}
	want := Edits{
		Env: []string{"VENDOR=all", "GPU=0"},
		Devices: []Device{
			{Device: pod.Device{Path: "/dev/gpu0", Source: "/dev/vendor/gpu0", Permissions: "rw"}, UID: ptr(uint32(5)), Mode: ptr(uint32(0o640))},
			{Device: pod.Device{Path: "/dev/gpuctl", Source: "/dev/gpuctl", Permissions: "m", Type: "c", Major: 195, Minor: 255}},
		},
		Mounts: []pod.Mount{{
			Path: "/opt/vendor", HostPath: "/usr/lib/vendor", ReadOnly: true, Propagation: pod.PropagationPrivate, Options: []string{"nosuid", "nodev"},
		}},
		Hooks:  []pod.Hook{{Stage: "createContainer", Path: "/usr/bin/vendor-hook", Args: []string{"vendor-hook", "update"}, Env: []string{"A=b"}, Timeout: 5}},
		Groups: []uint32{44},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	both, err := Find([]string{dir}, []string{"vendor.com/gpu=0", "vendor.com/gpu=1"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"VENDOR=all", "GPU=0", "GPU=1"}, both.Env); diff != "" {
		t.Errorf("of two devices: %s", diff)
	}
	if len(both.Mounts) != 1 || len(both.Devices) != 2 || both.Devices[1].Source != "/dev/vendor/gpu1" {
		t.Errorf("of two devices: %+v", both)
	}
}

// What is in a later directory goes before what is in an earlier one.
func TestLaterDirectoryWins(t *testing.T) {
	t.Parallel()
	first := specDir(t, map[string]string{"gpu.yaml": gpu})
	second := specDir(t, map[string]string{"gpu.json": `{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{"name":"0","containerEdits":{"env":["GPU=other"]}}]}`})
	got, err := Find([]string{first, second, "/none/there"}, []string{"vendor.com/gpu=0"})
	if err != nil || len(got.Env) != 1 || got.Env[0] != "GPU=other" {
		t.Errorf("found %+v, %v", got, err)
	}
}

func TestFindRefuses(t *testing.T) {
	t.Parallel()
	edits := func(text string) string {
		return `{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":` + text + `}]}`
	}
	for name, c := range map[string]struct {
		file, device string
		kind         error
		want         string
	}{
		"no name":         {gpu, "gpu0", pod.ErrInvalid, "gpu0"},
		"another device":  {gpu, "vendor.com/gpu=7", pod.ErrInvalid, "of this class there are vendor.com/gpu=0, vendor.com/gpu=1"},
		"another class":   {gpu, "vendor.com/nic=0", pod.ErrInvalid, "no specification in"},
		"a damaged file":  {"cdiVersion: [", "vendor.com/gpu=0", pod.ErrInvalid, "not read: spec.yaml"},
		"cache control":   {edits(`{"intelRdt":{"closID":"x"}}`), "v.com/c=d", pod.ErrUnsupported, "intelRdt"},
		"an interface":    {edits(`{"netDevices":[{"hostInterfaceName":"eth7","name":"eth1"}]}`), "v.com/c=d", pod.ErrUnsupported, "netDevices"},
		"a pipe":          {edits(`{"deviceNodes":[{"path":"/dev/p","type":"p"}]}`), "v.com/c=d", pod.ErrUnsupported, `type "p"`},
		"a file system":   {edits(`{"mounts":[{"hostPath":"tmpfs","containerPath":"/m","type":"tmpfs"}]}`), "v.com/c=d", pod.ErrUnsupported, `type "tmpfs"`},
		"a mount's extra": {edits(`{"mounts":[{"hostPath":"/a","containerPath":"/m","options":["sync"]}]}`), "v.com/c=d", pod.ErrUnsupported, `option "sync"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := specDir(t, map[string]string{"spec.yaml": c.file})
			_, err := Find([]string{dir}, []string{c.device})
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error = %v, want %q", err, c.want)
			}
		})
	}
}

func TestIsName(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{"vendor.com/gpu=0": true, "/dev/fuse": false, "/dev/a=b": false, "vendor.com/gpu": false, "": false} {
		if got := IsName(s); got != want {
			t.Errorf("IsName(%q) = %v", s, got)
		}
	}
}
