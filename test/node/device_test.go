//go:build e2e

package node

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCDIDevice gives a container a device by a vendor's specification: its node, a
// variable, a mount, a group, and a hook that runs on the host.
func TestCDIDevice(t *testing.T) {
	guard(t)
	e := dial(t)
	dir := t.TempDir()
	writeFile(t, dir+"/library", "vendor's library\n")
	hook := dir + "/hook"
	writeFile(t, hook, fmt.Sprintf("#!/bin/sh\ncat >%s/state\n", dir))
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	const spec = "/etc/cdi/trial-e2e.json"
	if err := os.MkdirAll("/etc/cdi", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(spec); os.Remove("/etc/cdi") })
	writeFile(t, spec, fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "trial.example/null", "devices": [{"name": "one", "containerEdits": {
		"env": ["DEVICE=one"],
		"deviceNodes": [{"path": "/dev/trial", "hostPath": "/dev/null", "permissions": "rw"}],
		"mounts": [{"hostPath": "%s/library", "containerPath": "/opt/library", "options": ["ro", "nosuid", "nodev", "bind"]}],
		"hooks": [{"hookName": "createRuntime", "path": "%s"}],
		"additionalGids": [4711]}}]}`, dir, hook))
	p := e.run(t, onHost(e.podConfig(t, "device")))
	config := containerConfig("device", "echo $DEVICE; cat /opt/library; echo lost >/dev/trial && stat -c %t:%T /dev/trial; id -G; touch /opt/library; sleep 1000000")
	config.CDIDevices = []*cri.CDIDevice{{Name: "trial.example/null=one"}}
	c := p.create(t, config).start(t)
	eventually(t, 5*time.Second, "log has all lines", func() bool { return len(c.logFile(t)) == 5 })
	out := texts(c.logFile(t), "stdout")
	if !strings.HasPrefix(out, "one\nvendor's library\n1:3\n") || !strings.Contains(out, "4711") {
		t.Errorf("inside is %q", out)
	}
	if got := texts(c.logFile(t), "stderr"); !strings.Contains(got, "Read-only") {
		t.Errorf("writing to a read-only file of the device said %q", got)
	}
	if state, err := os.ReadFile(dir + "/state"); err != nil || !strings.Contains(string(state), `"pid"`) {
		t.Errorf("the hook was given %q, %v", state, err)
	}
	config = containerConfig("none", "exit 0")
	config.CDIDevices = []*cri.CDIDevice{{Name: "trial.example/null=two"}}
	if _, err := e.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config}); err == nil {
		t.Error("a device that is not there was given")
	}
}
