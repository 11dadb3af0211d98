//go:build e2e

package node

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestConfigurationReload: systemctl reload has the server read its configuration again. It goes on
// serving, and what is not valid changes nothing.
func TestConfigurationReload(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	pid := sh(t, "systemctl show -P MainPID gantry-cri.service")
	reload := reloader(t)
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
		reload(c.text)
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

// reloader gives a function that has the server read some configuration. At the end of
// the test it is gone.
func reloader(t *testing.T) func(text string) {
	t.Helper()
	const file = "/etc/gantry/config.d/95-e2e.toml"
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		sh(t, "systemctl reload gantry-cri.service")
	})
	return func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		sh(t, "systemctl reload gantry-cri.service")
	}
}

// TestReloadOfTheLog: how much is logged, and what counts as slow, can be changed while
// the server runs.
func TestReloadOfTheLog(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	reload := reloader(t)
	after := "journalctl --sync && journalctl -u gantry-cri.service -o cat --after-cursor=" +
		shellQuote(sh(t, "journalctl --sync && journalctl -n 0 --show-cursor -q | sed -n 's/^-- cursor: //p'"))
	_, err := e.Version(t.Context(), &cri.VersionRequest{})
	reload("[cri]\nslow = \"1us\"\n")
	_, err2 := e.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	reload("[cri]\nslow = \"1us\"\n[log]\nlevel = \"error\"\n")
	_, err3 := e.Status(t.Context(), &cri.StatusRequest{})
	reload("[log]\nlevel = \"debug\"\n")
	_, err4 := e.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	const last = "method=ListMetricDescriptors"
	var log string
	eventually(t, 5*time.Second, "the last request is in the journal", func() bool {
		log = sh(t, after)
		return strings.Contains(log, last)
	})
	for _, want := range []string{`msg="slow request" method=RuntimeConfig`, `msg=request ` + last} {
		if !strings.Contains(log, want) {
			t.Errorf("the journal has no %s:\n%s", want, log)
		}
	}
	for _, no := range []string{"method=Version", "method=Status"} {
		if strings.Contains(log, no) {
			t.Errorf("the journal has %s:\n%s", no, log)
		}
	}
}
