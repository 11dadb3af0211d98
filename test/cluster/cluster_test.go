//go:build e2e

package cluster

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	kubeletUnit = "trial-kubelet@cluster"
	nodeName    = "gantry-trial"
	busybox     = "registry.k8s.io/busybox:1.37"
	configFile  = "/etc/gantry/config.d/90-cluster.toml"
	isolatorDir = "/etc/gantry/isolators"
	// flySpace is a namespace whose pods may be the host's own processes.
	flySpace = "fly"
)

// withRunc is the configuration of a node with another OCI runtime beside its own.
const withRunc = `[oci]
runtimes = ["runc=/usr/sbin/runc"]
`

// runtimeClasses are those of the tests beside the ones that are shipped: of isolators that an
// operator adds, and of none.
const runtimeClasses = `runc unshare nowhere`

// join is the cluster, with the node ready and configured like that. The test's pods are
// gone after it.
func join(t *testing.T, config string) api {
	t.Helper()
	for _, program := range []string{"kubelet", "kube-apiserver", "etcd"} {
		if _, err := os.Stat("/usr/local/bin/" + program); err != nil {
			notRun(t, "there is no %s in the VM; put it there with: go run ./test/trial kubelet; go run ./test/trial controlplane", program)
		}
	}
	configure(t, config)
	a := newAPI()
	begun := time.Now()
	sh(t, "systemctl start "+kubeletUnit)
	eventually(t, time.Minute, "the node is ready", func() bool { return a.ready(t) })
	if took := time.Since(begun); took > time.Second {
		t.Logf("the node is ready after %s", took.Round(time.Second))
	}
	a.furnish(t)
	t.Cleanup(func() { a.clear(t) })
	return a
}

// configure has Gantry run with a configuration, and with the isolator of the documentation
// as one of a third party.
func configure(t *testing.T, config string) {
	t.Helper()
	if old, err := os.ReadFile(configFile); err == nil && string(old) == config {
		return
	}
	if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "install -D -m 0755 -t "+isolatorDir+" /usr/share/doc/gantry/examples/isolators/unshare")
	sh(t, "/usr/libexec/gantry/gantry-cri --check-config && systemctl restart gantry-cri.service")
}

// ready tells whether the node said so since the kubelet runs.
func (a api) ready(t *testing.T) bool {
	t.Helper()
	data, code, err := a.try(t, http.MethodGet, "/api/v1/nodes/"+nodeName, "")
	if err != nil || code != http.StatusOK {
		return false
	}
	n := decode[node](t, data)
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// furnish makes what all tests use.
func (a api) furnish(t *testing.T) {
	t.Helper()
	const classes = "/apis/node.k8s.io/v1/runtimeclasses"
	shipped, err := filepath.Glob("/usr/share/doc/gantry/examples/kubernetes/runtimeclass-*.yaml")
	if err != nil || len(shipped) < 3 {
		t.Fatalf("what is shipped: %q, %v", shipped, err)
	}
	for _, file := range shipped {
		a.make(t, classes, sh(t, "cat "+file))
	}
	for name := range strings.FieldsSeq(runtimeClasses) {
		a.make(t, classes, "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: "+name+"}\nhandler: "+name+"\n")
	}
	a.make(t, "/api/v1/namespaces", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+flySpace+"}\n")
}

// clear deletes all pods and waits until nothing is left of them. kubelet removes what it has
// stopped at a time of its own choice.
func (a api) clear(t *testing.T) {
	t.Helper()
	for _, space := range []string{"default", flySpace} {
		a.do(t, http.MethodDelete, podsOf(space)+"?gracePeriodSeconds=1", "")
	}
	eventually(t, time.Minute, "all pods are deleted", func() bool {
		return len(decode[list[podObject]](t, a.do(t, http.MethodGet, "/api/v1/pods", "")).Items) == 0
	})
	sh(t, "for id in $(gantry list --quiet); do gantry rm --force $id || true; done")
	if left := sh(t, "gantry list --quiet"); left != "" {
		t.Errorf("pods are left: %s", left)
	}
}
