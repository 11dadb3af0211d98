//go:build e2e

package cluster

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// server is a pod of one container that serves its own name.
type server struct {
	class, space string
	port         int
	host         bool // in the host's network
}

func (s server) spec() string {
	class := ""
	if s.class != "" {
		class = "  runtimeClassName: " + s.class + "\n"
	}
	return fmt.Sprintf(`%s  hostNetwork: %v
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: %s
    command: [sh, -c, "mkdir -p /tmp/www; echo I am %s >/tmp/www/index.html; echo up; exec httpd -f -p %d -h /tmp/www"]
    readinessProbe: {httpGet: {path: /ready, port: %d}, periodSeconds: 2, timeoutSeconds: 60}
    livenessProbe: {exec: {command: [test, "!", -e, /tmp/sick]}, periodSeconds: 2, timeoutSeconds: 60}
`, class, s.host, busybox, s.name(), s.port, s.port)
}

func (s server) name() string {
	if s.class == "" {
		return "unmarked"
	}
	return s.class
}

// serve makes the pods, one after the other: an emulated machine has no processor to spare.
func (a api) serve(t *testing.T, servers ...server) (pods []pod, addresses []string) {
	t.Helper()
	for _, s := range servers {
		if s.space == "" {
			s.space = "default"
		}
		p := a.run(t, s.space, s.name(), s.spec())
		pods = append(pods, p)
		addresses = append(addresses, fmt.Sprintf("%s:%d", p.running(t, time.Minute).Status.PodIP, s.port))
	}
	return pods, addresses
}

// reachEachOther has each pod ask all others by their addresses.
func reachEachOther(t *testing.T, servers []server, pods []pod, addresses []string) {
	t.Helper()
	for i, from := range pods {
		var script, want []string
		for j, address := range addresses {
			if i != j {
				script = append(script, "wget -qO- -T 60 http://"+address+"/")
				want = append(want, "I am "+servers[j].name()+"\n")
			}
		}
		eventually(t, 10*time.Second, "all answer "+servers[i].name(), func() bool {
			out, _, _ := from.exec(t, "web", "sh", "-c", strings.Join(script, " && "))
			return out == strings.Join(want, "")
		})
	}
}

// TestSideBySide: pods of all isolators that share the host's kernel, on one node, each by
// its RuntimeClass. One is an executable of a third party, and one another OCI runtime.
func TestSideBySide(t *testing.T) {
	guard(t)
	a := join(t, withRunc)
	servers := []server{
		{class: "oci", port: 8080},
		{class: "fly", space: flySpace, port: 8081, host: true},
		{class: "runc", port: 8080},
		{class: "unshare", port: 8080},
	}
	pods, addresses := a.serve(t, servers...)
	reachEachOther(t, servers, pods, addresses)
	// What Gantry says of them is what was asked for.
	for i, s := range servers {
		if got := sh(t, "gantry list --format json | jq -r '.pods[] | select(.uid == \""+pods[i].uid+"\").isolator'"); got != s.class {
			t.Errorf("pod %s is of isolator %q", s.class, got)
		}
	}
	// fly sees the host's processes, the others their own.
	for i, s := range servers {
		inits := pods[i].output(t, "web", "cat /proc/1/comm")
		if (inits == "systemd") != (s.class == "fly") {
			t.Errorf("pod %s has %q as its first process", s.name(), inits)
		}
		if out, errOut, ended := pods[i].exec(t, "web", "sh", "-c", "echo out; echo err >&2; exit 42"); out != "out\n" || errOut != "err\n" || !strings.Contains(ended, `"message":"42"`) {
			t.Errorf("pod %s: exec: %q, %q, %s", s.name(), out, errOut, ended)
		}
		if got := pods[i].log(t, "web"); got != "up\n" {
			t.Errorf("pod %s: its log is %q", s.name(), got)
		}
	}
	// kubelet's probes reach what runs in each.
	for i, s := range servers {
		if pods[i].get(t).container("web").Ready {
			t.Errorf("pod %s is ready before it says so", s.name())
		}
		pods[i].output(t, "web", "touch /tmp/www/ready")
		pods[i].until(t, time.Minute, "it is ready", func(o podObject) bool { return o.container("web").Ready })
		pods[i].output(t, "web", "touch /tmp/sick")
	}
	for _, p := range pods {
		o := p.until(t, time.Minute, "what is not alive is stopped", func(o podObject) bool { return o.container("web").State.Terminated != nil })
		if s := o.container("web").State.Terminated; s.ExitCode != 137 && s.ExitCode != 143 {
			t.Errorf("pod %s ended as %+v", p.name, s)
		}
	}
}

// TestExitsByRuntimeClass: what kubelet reports of ends is what happened, with each.
func TestExitsByRuntimeClass(t *testing.T) {
	guard(t)
	a := join(t, withRunc)
	for _, class := range []string{"runc", "unshare"} {
		p := a.run(t, "default", "ends-"+class, `  runtimeClassName: `+class+`
  restartPolicy: Never
  containers:
  - {name: forty-two, image: "`+busybox+`", command: [sh, -c, "exit 42"]}
  - {name: eater, image: "`+busybox+`", command: [sh, -c, "x=x; while :; do x=$x$x; done"], resources: {limits: {memory: 48Mi}}}
`)
		o := p.until(t, 2*time.Minute, "all has ended", func(o podObject) bool { return o.Status.Phase == "Failed" })
		if s := o.container("forty-two").State.Terminated; s == nil || s.ExitCode != 42 || s.Reason != "Error" {
			t.Errorf("%s: exit 42 is %+v", class, s)
		}
		if s := o.container("eater").State.Terminated; s == nil || s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("%s: out of memory is %+v", class, s)
		}
	}
}

// TestRefused: a pod that cannot be made as it was asked for is told why by an event, and
// the node is ready for all others.
func TestRefused(t *testing.T) {
	guard(t)
	a := join(t, withRunc)
	fly := a.run(t, "default", "fly", server{class: "fly", port: 8081, host: true}.spec())
	nowhere := a.run(t, "default", "nowhere", server{class: "nowhere", port: 8080}.spec())
	// An isolator that the node has and this one cannot use.
	own := a.run(t, flySpace, "own", server{class: "fly", port: 8081}.spec())
	fly.says(t, time.Minute, "FailedCreatePodSandBox", "isolator.weaker-namespaces")
	nowhere.says(t, time.Minute, "FailedCreatePodSandBox", `"nowhere"`)
	nowhere.says(t, time.Second, "FailedCreatePodSandBox", "oci")
	own.says(t, time.Minute, "FailedCreatePodSandBox", "network")
	off := a.run(t, "default", "switched-off", server{class: "kvm", port: 8080}.spec())
	off.says(t, time.Minute, "FailedCreatePodSandBox", "kvm.memory in the configuration switches it on")
	for _, p := range []pod{fly, nowhere, own, off} {
		if o := p.get(t); o.Status.Phase != "Pending" {
			t.Errorf("pod %s: %v", p.name, o)
		}
	}
	if !a.ready(t) {
		t.Error("the node is not ready")
	}
	a.serve(t, server{class: "oci", port: 8080})
}

// TestHandlers: the node tells which isolators a RuntimeClass can name, with what they can do.
func TestHandlers(t *testing.T) {
	guard(t)
	a := join(t, withRunc)
	type features struct{ readOnly, users bool }
	want := map[string]features{
		"": {true, true}, "oci": {true, true}, "fly": {true, false}, "runc": {true, false}, "unshare": {true, false},
	}
	var got map[string]features
	eventually(t, time.Minute, "the node lists its handlers", func() bool {
		got = map[string]features{}
		for _, h := range decode[node](t, a.do(t, http.MethodGet, "/api/v1/nodes/"+nodeName, "")).Status.RuntimeHandlers {
			got[h.Name] = features{h.Features.RecursiveReadOnlyMounts, h.Features.UserNamespaces}
		}
		return got["unshare"].readOnly
	})
	for name, f := range want {
		if got[name] != f {
			t.Errorf("handler %q: %+v, want %+v; all: %+v", name, got[name], f, got)
		}
	}
}
