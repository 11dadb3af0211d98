//go:build e2e

package node

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestConfigurationReload: systemctl reload has the server read its configuration again. It goes on
// serving, and what is not valid changes nothing.
func TestConfigurationReload(t *testing.T) {
	guard(t)
	needsGantry(t)
	const file = "/etc/gantry/config.d/95-e2e.toml"
	e := dial(t)
	pid := sh(t, "systemctl show -P MainPID gantry-cri.service")
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		sh(t, "systemctl reload gantry-cri.service")
	})
	may := func() bool {
		t.Helper()
		config := e.flyConfig(t, "e2e-reload")
		resp, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		if err == nil {
			pod{e, resp.PodSandboxId, config}.remove(t)
		} else if status.Code(err) != codes.PermissionDenied {
			t.Fatal(err)
		}
		return err == nil
	}
	for _, c := range []struct {
		what, text string
		may        bool
	}{
		{"allowed", "[isolator]\nweaker-namespaces = [\"fly\", \"bench\", \"e2e-reload\"]\n", true},
		{"not valid", "[isolator]\nweaker-namespaces = 7\n", true},
		{"not allowed", "[isolator]\nweaker-namespaces = [\"fly\", \"bench\"]\n", false},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemctl", "reload", "gantry-cri.service").CombinedOutput(); err != nil {
			t.Fatalf("%s: reload: %v: %s", c.what, err, out)
		}
		if got := may(); got != c.may {
			t.Errorf("%s: a pod may be a process of the host: %v, want %v", c.what, got, c.may)
		}
	}
	if now := sh(t, "systemctl show -P MainPID gantry-cri.service"); now != pid {
		t.Errorf("the server is process %s, and was %s", now, pid)
	}
	if log := sh(t, "journalctl -u gantry-cri.service -n 50 -o cat"); !strings.Contains(log, "is not valid: what was in force stays") {
		t.Errorf("the journal does not say that the configuration is not valid:\n%s", log)
	}
}
