//go:build e2e

package cluster

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/test/machine"
)

// withKVM is the configuration of a node that can make virtual machines. One that is in an
// emulated machine boots slowly.
const withKVM = withRunc + `[kvm]
memory = "256MiB"
boot-time = "3m"
`

// bootTime is how long a pod that is a machine may take on a real one.
const bootTime = time.Minute

// joinWithMachines is join for pods that are machines.
func joinWithMachines(t *testing.T, config string) api {
	t.Helper()
	sh(t, "modprobe -a kvm_amd vhost_vsock vhost_net tun; test -e /dev/kvm && test -e /dev/vhost-vsock")
	return join(t, config)
}

// machineSpec is a pod of several containers, each with something to show. All have limits,
// and so has the machine: 368 MiB, and the overhead of its class on top.
const machineSpec = `  runtimeClassName: kvm
  restartPolicy: Never
  terminationGracePeriodSeconds: 60
  containers:
  - name: web
    image: ` + busybox + `
    command: [sh, -c, "trap 'echo ended; exit 7' TERM; mkdir -p /tmp/www; echo I am kvm >/tmp/www/index.html; echo up; httpd -f -p 8080 -h /tmp/www & wait"]
    ports: [{containerPort: 8080, hostPort: 18080}]
    resources: {limits: {memory: 128Mi}}
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 2, timeoutSeconds: 60}
    livenessProbe: {exec: {command: [test, -e, /tmp/www/index.html]}, periodSeconds: 5, timeoutSeconds: 60}
    volumeMounts: [{name: words, mountPath: /words}, {name: secret, mountPath: /secret}, {name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
  - name: beside
    image: ` + busybox + `
    command: [sh, -c, "trap exit TERM; sleep 1000000 & wait"]
    resources: {limits: {memory: 64Mi}}
    volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
  - name: sick
    image: ` + busybox + `
    command: [sh, -c, "trap 'exit 9' TERM; touch /tmp/well; sleep 1000000 & wait"]
    resources: {limits: {memory: 64Mi}}
    livenessProbe: {exec: {command: [test, -e, /tmp/well]}, initialDelaySeconds: 10, periodSeconds: 2, timeoutSeconds: 60}
  - name: forty-two
    image: ` + busybox + `
    command: [sh, -c, "echo bye; exit 42"]
    resources: {limits: {memory: 64Mi}}
  - name: eater
    image: ` + busybox + `
    command: [sh, -c, "x=x; while :; do x=$x$x; done"]
    resources: {limits: {memory: 48Mi}}
  volumes:
  - {name: words, configMap: {name: words}}
  - {name: secret, secret: {secretName: words}}
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
`

// TestMachine: a pod that is a virtual machine, beside one of namespaces and one of the
// host's processes, under one kubelet.
func TestMachine(t *testing.T) {
	guard(t)
	a := joinWithMachines(t, withKVM)
	a.words(t, "first")
	a.secret(t, "first")
	p := a.run(t, "default", "kvm", machineSpec)
	t.Cleanup(func() { p.free(t) })
	servers := []server{{class: "oci", port: 8080}, {class: "fly", space: flySpace, port: 8081, host: true}}
	pods, addresses := a.serve(t, servers...)
	o := p.running(t, bootTime)

	t.Run("pods reach each other", func(t *testing.T) {
		reachEachOther(t, append(servers, server{class: "kvm"}), append(pods, p), append(addresses, o.Status.PodIP+":8080"))
	})
	t.Run("its kernel is its own", func(t *testing.T) {
		const id = "cat /proc/sys/kernel/random/boot_id"
		if inside, host := p.output(t, "web", id), sh(t, id); inside == host || len(inside) != len(host) {
			t.Errorf("the pod's kernel was booted as %q, the host's as %q", inside, host)
		}
		if got, host := pods[0].output(t, "web", id), sh(t, id); got != host {
			t.Errorf("the kernel of the pod of namespaces was booted as %q, the host's as %q", got, host)
		}
	})
	t.Run("ends", p.hasEnds)
	t.Run("exec and logs", p.sessions)
	t.Run("probes", p.probed)
	t.Run("port forward", p.forwards)
	t.Run("host port", func(t *testing.T) {
		eventually(t, 10*time.Second, "the host's port leads to the pod", func() bool {
			return sh(t, "curl -s --max-time 60 http://10.0.2.15:18080/ || true") == "I am kvm"
		})
	})
	t.Run("volumes", p.volumes)
	t.Run("overhead", p.hasOverhead)
	t.Run("resize", p.resized)
	t.Run("deleted gracefully", p.deleted)
}

// words makes the ConfigMap of the pod, or changes it.
func (a api) words(t *testing.T, word string) {
	t.Helper()
	const path = "/api/v1/namespaces/default/configmaps"
	a.make(t, path, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words}\n")
	a.do(t, http.MethodPatch, path+"/words", `{"data": {"word": "`+word+`"}}`)
}

// secret makes the Secret of the pod, or changes it.
func (a api) secret(t *testing.T, word string) {
	t.Helper()
	const path = "/api/v1/namespaces/default/secrets"
	a.make(t, path, "apiVersion: v1\nkind: Secret\nmetadata: {name: words}\n")
	a.do(t, http.MethodPatch, path+"/words", `{"stringData": {"word": "`+word+`"}}`)
}

func (p pod) hasEnds(t *testing.T) {
	o := p.until(t, bootTime, "two containers have ended", func(o podObject) bool {
		return o.container("forty-two").State.Terminated != nil && o.container("eater").State.Terminated != nil
	})
	if s := o.container("forty-two").State.Terminated; s.ExitCode != 42 || s.Reason != "Error" {
		t.Errorf("exit 42 is %+v", s)
	}
	if s := o.container("eater").State.Terminated; s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("out of memory is %+v", s)
	}
	if got := p.log(t, "forty-two"); got != "bye\n" {
		t.Errorf("the log of what has ended is %q", got)
	}
}

func (p pod) sessions(t *testing.T) {
	out, errOut, ended := p.exec(t, "web", "sh", "-c", "echo out; echo err >&2; exit 5")
	if out != "out\n" || errOut != "err\n" || !strings.Contains(ended, `"message":"5"`) {
		t.Errorf("exec: %q, %q, %s", out, errOut, ended)
	}
	if got := p.log(t, "web"); got != "up\n" {
		t.Errorf("the log is %q", got)
	}
}

// probed: what a probe finds inside is what kubelet acts on, by HTTP and by exec.
func (p pod) probed(t *testing.T) {
	if p.get(t).container("web").Ready {
		t.Error("it is ready before it says so")
	}
	p.output(t, "web", "echo yes >/tmp/www/ready")
	p.until(t, time.Minute, "it is ready", func(o podObject) bool { return o.container("web").Ready })
	p.output(t, "sick", "rm /tmp/well")
	o := p.until(t, 2*time.Minute, "what is not alive is stopped", func(o podObject) bool { return o.container("sick").State.Terminated != nil })
	if s := o.container("sick").State.Terminated; s.ExitCode != 9 {
		t.Errorf("it ended as %+v", s)
	}
	p.says(t, 10*time.Second, "Unhealthy", "Liveness probe failed")
	if o.container("web").State.Running == nil || o.container("beside").State.Running == nil {
		t.Errorf("what is alive does not run on: %v", o)
	}
}

func (p pod) forwards(t *testing.T) {
	conn := machine.DialWebSocket(t, apiServer+p.path()+"/portforward?ports=8080", header(), "v4.channel.k8s.io")
	machine.Say(t, conn, machine.ChannelData, "GET / HTTP/1.0\r\n\r\n")
	got := machine.Hear(t, conn, func(got map[byte]string) bool { return strings.Contains(got[machine.ChannelData], "I am kvm") })
	// Both channels begin with the port.
	if text := got[machine.ChannelData]; !strings.HasPrefix(text, "\x90\x1fHTTP/1.") || !strings.Contains(text, "I am kvm") || got[machine.ChannelWrong] != "\x90\x1f" {
		t.Errorf("the session had %q", got)
	}
}

func (p pod) volumes(t *testing.T) {
	for _, dir := range []string{"disk", "memory"} {
		p.output(t, "web", "echo through "+dir+" >/"+dir+"/letter")
		if got := p.output(t, "beside", "cat /"+dir+"/letter"); got != "through "+dir {
			t.Errorf("the other container reads %q", got)
		}
	}
	const both = "echo $(cat /words/word) $(cat /secret/word)"
	if got := p.output(t, "web", both); got != "first first" {
		t.Errorf("the words of the ConfigMap and the Secret are %q", got)
	}
	p.words(t, "second")
	p.secret(t, "second")
	eventually(t, 2*time.Minute, "the new words are read inside", func() bool {
		return p.output(t, "web", both) == "second second"
	})
}

// hasOverhead: the class says what a machine takes beside its containers, and the pod's
// cgroup has both.
func (p pod) hasOverhead(t *testing.T) {
	if got := p.get(t).Spec.Overhead["memory"]; got != "160Mi" {
		t.Errorf("the pod's overhead is %q", got)
	}
	slice := "kubepods-burstable-pod" + strings.ReplaceAll(p.uid, "-", "_") + ".slice"
	want := fmt.Sprint((368 + 160) << 20)
	if got := sh(t, "cat /sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/"+slice+"/memory.max"); got != want {
		t.Errorf("the pod's cgroup has %s bytes of memory at most, want %s", got, want)
	}
}

// resized: a machine cannot grow. Kubelet hears that, tells it, and changes nothing.
func (p pod) resized(t *testing.T) {
	resize := func(memory string) {
		t.Helper()
		p.do(t, http.MethodPatch, p.path()+"/resize", `{"spec": {"containers": `+p.containers(t, "web", memory)+`}}`)
	}
	resize("192Mi")
	p.until(t, 2*time.Minute, "its condition says why it is not resized", func(o podObject) bool {
		return slices.ContainsFunc(o.Status.Conditions, func(c condition) bool {
			return c.Type == "PodResizeInProgress" && c.Reason == "Error" && strings.Contains(c.Message, "which cannot change while it runs")
		})
	})
	p.hasOverhead(t)
	if got := p.output(t, "web", "cat /sys/fs/cgroup/memory.max"); got != fmt.Sprint(128<<20) {
		t.Errorf("the container has %s bytes of memory", got)
	}
	resize("128Mi")
	p.until(t, 2*time.Minute, "nothing is left to be done", func(o podObject) bool {
		return !slices.ContainsFunc(o.Status.Conditions, func(c condition) bool { return c.Type == "PodResizeInProgress" })
	})
	if o := p.get(t); o.container("web").State.Running == nil || o.container("beside").State.Running == nil {
		t.Errorf("not all run on: %v", o)
	}
}

// containers are those of the pod's object, one of them with another limit of memory.
func (p pod) containers(t *testing.T, name, memory string) string {
	t.Helper()
	o := decode[struct {
		Spec struct{ Containers []map[string]any }
	}](t, p.do(t, http.MethodGet, p.path(), ""))
	for _, c := range o.Spec.Containers {
		if c["name"] == name {
			c["resources"] = map[string]any{"limits": map[string]any{"memory": memory}, "requests": map[string]any{"memory": "128Mi"}}
		}
	}
	data, err := json.Marshal(o.Spec.Containers)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// deleted: its containers get their signals and the time to obey. The object stays until
// they were looked at.
func (p pod) deleted(t *testing.T) {
	p.do(t, http.MethodPatch, p.path(), `{"metadata": {"finalizers": ["gantry.io/trial"]}}`)
	p.do(t, http.MethodDelete, p.path(), "")
	o := p.until(t, time.Minute, "all has ended", func(o podObject) bool {
		return o.container("web").State.Terminated != nil && o.container("beside").State.Terminated != nil
	})
	if s := o.container("web").State.Terminated; s.ExitCode != 7 {
		t.Errorf("what was to obey its signal ended as %+v", s)
	}
	p.free(t)
}

// free takes away what keeps a deleted pod's object.
func (p pod) free(t *testing.T) {
	t.Helper()
	if _, code, err := p.try(t, http.MethodPatch, p.path(), `{"metadata": {"finalizers": null}}`); err != nil || code != http.StatusOK && code != http.StatusNotFound {
		t.Errorf("release pod %s: %d, %v", p.name, code, err)
	}
}

// TestMachineByDefault: where the node's default is a machine, a pod that says nothing is
// one. One that shares the host's kernel needs the operator's word then.
func TestMachineByDefault(t *testing.T) {
	guard(t)
	a := joinWithMachines(t, withKVM+"[isolator]\ndefault = \"kvm\"\nweaker-default = \"oci\"\n")
	unmarked := a.run(t, "default", "unmarked", server{port: 8080}.spec())
	refused := a.run(t, "default", "oci", server{class: "oci", port: 8080}.spec())
	refused.says(t, time.Minute, "FailedCreatePodSandBox", "isolator.weaker-namespaces")
	a.run(t, "default", "host", server{class: "kvm", port: 8082, host: true}.spec()).
		says(t, time.Minute, "FailedCreatePodSandBox", "namespaces.network=node")
	allowed := a.run(t, flySpace, "oci", server{class: "oci", port: 8080}.spec())
	allowed.running(t, time.Minute)
	a.insteadOfMachines(t)
	unmarked.running(t, bootTime)
	const id = "cat /proc/sys/kernel/random/boot_id"
	host := sh(t, id)
	if got := unmarked.output(t, "web", id); got == host || len(got) != len(host) {
		t.Errorf("the kernel of a pod that says nothing was booted as %q, the host's as %q", got, host)
	}
	if got := allowed.output(t, "web", id); got != host {
		t.Errorf("the kernel of a pod of namespaces was booted as %q, the host's as %q", got, host)
	}
}

// insteadOfMachines makes pods that cannot be machines and say nothing of isolators: where
// the operator allows it they are of the node's weaker default, elsewhere refused.
func (a api) insteadOfMachines(t *testing.T) {
	t.Helper()
	const container = `  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "` + busybox + `", command: [sleep, "1000000"]%s}
`
	for name, c := range map[string]struct{ of, container, why string }{
		"network":    {"  hostNetwork: true\n", "", "namespaces.network=node"},
		"processes":  {"  hostPID: true\n", "", "namespaces.pid=node"},
		"privileged": {"", ", securityContext: {privileged: true}", "security.privileged"},
	} {
		spec := c.of + fmt.Sprintf(container, c.container)
		refused := a.run(t, "default", "instead-"+name, spec)
		refused.says(t, time.Minute, "FailedCreatePodSandBox", c.why)
		refused.says(t, time.Second, "FailedCreatePodSandBox", "isolator.weaker-namespaces")
		p := a.run(t, flySpace, "instead-"+name, spec)
		p.running(t, time.Minute)
		got := sh(t, "gantry list --format json | jq -r '.pods[] | select(.uid == \""+p.uid+"\") | .isolator, .isolatorReason'")
		if !strings.HasPrefix(got, "oci\n") || !strings.Contains(got, c.why) {
			t.Errorf("pod %s: its isolator and why: %q", name, got)
		}
	}
}

// TestMachineLacks: where the node lacks something for a machine, or what it boots is of no
// use, an event says what and what to do. All others run, and so does the machine once it
// is there.
func TestMachineLacks(t *testing.T) {
	guard(t)
	a := joinWithMachines(t, withKVM)
	const files = "/usr/libexec/virtiofsd"
	for name, c := range map[string]struct{ path, remedy string }{
		"qemu":   {"/usr/bin/qemu-system-x86_64", "install qemu-system-x86"},
		"dev":    {"/dev/kvm", "modprobe kvm_intel or kvm_amd"},
		"files":  {files, "install virtiofsd"},
		"kernel": {"/boot/vmlinuz-" + sh(t, "uname -r"), "install the kernel that runs"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.path
			away(t, path)
			p := a.run(t, "default", "no-"+name, server{class: "kvm", port: 8080}.spec())
			p.says(t, time.Minute, "FailedCreatePodSandBox", "this node lacks "+path+": is not there")
			p.says(t, time.Second, "FailedCreatePodSandBox", c.remedy)
			if !a.ready(t) {
				t.Error("the node is not ready")
			}
			if path != files {
				return
			}
			a.serve(t, server{class: "oci", port: 8080})
			sh(t, "mv "+path+".away "+path)
			p.running(t, 2*bootTime) // kubelet tries again at a time of its own choice
		})
	}
	t.Run("boot", func(t *testing.T) {
		initramfs := sh(t, "ls /var/lib/gantry/boot/initramfs-*") // there since a machine ran
		for path := range strings.FieldsSeq(initramfs) {
			away(t, path)
			sh(t, "cp /dev/null "+path)
		}
		p := a.run(t, "default", "no-boot", server{class: "kvm", port: 8080}.spec())
		p.says(t, bootTime, "FailedCreatePodSandBox", "boot the machine")
		p.says(t, time.Second, "FailedCreatePodSandBox", "Kernel panic")
	})
}

// away takes a file away until the test's end.
func away(t *testing.T, path string) {
	t.Helper()
	sh(t, "mv "+path+" "+path+".away")
	t.Cleanup(func() { sh(t, "! test -e "+path+".away || mv "+path+".away "+path) })
}

// TestMachineIsListed: the node tells that a RuntimeClass can name it.
func TestMachineIsListed(t *testing.T) {
	guard(t)
	a := joinWithMachines(t, withKVM)
	eventually(t, time.Minute, "the node lists the handler kvm", func() bool {
		for _, h := range decode[node](t, a.do(t, http.MethodGet, "/api/v1/nodes/"+nodeName, "")).Status.RuntimeHandlers {
			if h.Name == "kvm" {
				return h.Features.RecursiveReadOnlyMounts && !h.Features.UserNamespaces
			}
		}
		return false
	})
}
