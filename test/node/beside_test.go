//go:build e2e

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

const (
	kubeletUnit = "trial-kubelet@gantry"
	idleName    = "idle"
	// usedByCLI is an image that only the pod of the command line uses, and
	// usedByNobody one to see that kubelet does remove such images.
	usedByCLI    = "127.0.0.1:5000/config:empty"
	usedByNobody = "127.0.0.1:5000/user:uid"
)

// besideTime is how long a pod of the command line lives beside a kubelet: its garbage
// collections of containers come by every minute, those of images every five, and where
// it is hungry both at once.
func besideTime() time.Duration {
	if machine.Long() {
		return 5 * time.Minute
	}
	return 2 * time.Minute
}

// idlePod is a pod of two containers that do nothing. Each run of the probe leaves
// a line in the log.
const idlePod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: probed
    image: registry.k8s.io/busybox:1.37
    command: [sleep, "1000000"]
    livenessProbe: {exec: {command: [sh, -c, "echo probed >/proc/1/fd/1"]}, periodSeconds: 2, timeoutSeconds: 60, failureThreshold: 10}
  - name: quiet
    image: registry.k8s.io/busybox:1.37
    command: [sleep, "1000000"]
`

// hungry makes kubelet believe that there is never disk enough, so that it removes
// every image and container that it may, every ten seconds.
const hungry = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard: {imagefs.available: "99%", nodefs.available: "99%"}
evictionPressureTransitionPeriod: 1s
imageMinimumGCAge: 1s
`

// TestBesideKubelet lets a pod of the command line live for minutes beside a
// stock kubelet that has pods of its own, is restarted, and removes whatever it
// thinks it may. Meanwhile it counts processes: what a pod adds to the machine is
// its apps and nothing else.
func TestBesideKubelet(t *testing.T) {
	guard(t)
	needsGantry(t)
	needsKubelet(t)
	e := dial(t)
	e.pull(t, usedByNobody)
	t.Cleanup(func() { e.endKubelet(t) })
	writeFile(t, "/etc/kubernetes/gantry.d/90-hungry.conf", hungry)
	sh(t, "systemctl start "+kubeletUnit)
	eventually(t, 20*time.Second, "kubelet answers", func() bool {
		return exec.Command("curl", "-sfk", "https://127.0.0.1:10250/healthz").Run() == nil
	})
	alone := residents(t, 5*time.Second)
	if got := names(gantrys(alone)); !slices.Equal(got, []string{"gantry-cri", "gantry-stdio"}) {
		t.Errorf("without a pod these processes of Gantry are resident: %v", got)
	}

	began := time.Now()
	theirs := startBeside(t)
	checkAdded(t, alone, residents(t, 5*time.Second), "httpd", "sh")

	writeFile(t, idleManifest(idleName), fmt.Sprintf(idlePod, idleName))
	e.untilIdle(t, 2)
	e.checkIdlePod(t, alone)

	sh(t, "systemctl restart "+kubeletUnit)
	for _, service := range services() {
		sh(t, "systemctl kill -s KILL --kill-whom=main "+service)
	}
	theirs.check(t, e)
	// One pod goes and another comes.
	writeFile(t, idleManifest("other"), fmt.Sprintf(idlePod, "other"))
	e.untilIdle(t, 4)
	remove(t, idleManifest(idleName))
	e.untilIdle(t, 2)
	eventually(t, time.Minute, "kubelet removed the image that nobody uses", func() bool {
		resp, err := e.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: usedByNobody}})
		return err == nil && resp.Image == nil
	})
	for time.Since(began) < besideTime() {
		pause(min(15*time.Second, besideTime()-time.Since(began)))
		theirs.check(t, e)
	}
	t.Logf("the pod of the command line lived for %.0f s beside a kubelet", time.Since(began).Seconds())
	theirs.checkLog(t, began)
}

func needsKubelet(t *testing.T) {
	t.Helper()
	if !exists("/usr/local/bin/kubelet") {
		notRun(t, "there is no kubelet in the VM; put it there with: go run ./test/trial kubelet")
	}
}

func idleManifest(name string) string { return "/etc/kubernetes/manifests/" + name + ".yaml" }

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// endKubelet leaves the machine as before: kubelet removes what it stopped at a
// time of its own choice.
func (e engine) endKubelet(t *testing.T) {
	t.Helper()
	sh(t, "systemctl stop "+kubeletUnit)
	remove(t, "/etc/kubernetes/gantry.d/90-hungry.conf")
	remove(t, idleManifest(idleName))
	remove(t, idleManifest("other"))
	e.removeAll(t, "default")
}

// idleContainers are those of kubelet's pods that run.
func (e engine) idleContainers(t *testing.T) []*cri.Container {
	t.Helper()
	resp, err := e.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{"io.kubernetes.pod.namespace": "default"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Containers
}

func (e engine) untilIdle(t *testing.T, containers int) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("%d containers of kubelet's run", containers), func() bool {
		return len(e.idleContainers(t)) == containers
	})
}

// checkIdlePod counts, while probes run, what kubelet's pod has added to the
// machine.
func (e engine) checkIdlePod(t *testing.T, alone map[process]bool) {
	t.Helper()
	log := e.idleLog(t)
	eventually(t, 10*time.Second, "the probe has run", func() bool { return lines(t, log) > 0 })
	before := lines(t, log)
	var fewest int
	now := residentsSeen(t, 20*time.Second, func() {
		n := len(podProcesses(t))
		if fewest == 0 || n < fewest {
			fewest = n
		}
	})
	if probes := lines(t, log) - before; probes < 2 {
		t.Errorf("%d probes ran while processes were counted", probes)
	} else {
		t.Logf("%d probes ran while processes were counted", probes)
	}
	checkAdded(t, alone, now, "httpd", "sh", "sleep", "sleep")
	if fewest != 2 {
		t.Errorf("between probes the pod has %d processes, want those of its two containers", fewest)
	}
	if got := names(gantrys(now)); !slices.Equal(got, []string{"gantry-cri", "gantry-stdio"}) {
		t.Errorf("with pods these processes of Gantry are resident: %v", got)
	}
}

// checkAdded wants the named processes to have been added and no others, whosever
// they are.
func checkAdded(t *testing.T, before, now map[process]bool, want ...string) {
	t.Helper()
	added := map[process]bool{}
	for p := range now {
		if !before[p] {
			added[p] = true
		}
	}
	if got := names(added); !slices.Equal(got, want) {
		t.Errorf("pods added the processes %v, want %v: %v", got, want, added)
	}
}

func (e engine) idleLog(t *testing.T) string {
	t.Helper()
	for _, c := range e.idleContainers(t) {
		if c.Metadata.Name == "probed" {
			resp, err := e.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.Id})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Status.LogPath
		}
	}
	t.Fatal("there is no container with a probe")
	return ""
}

func lines(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// podProcesses are all in the groups of kubelet's pods.
func podProcesses(t *testing.T) []string {
	t.Helper()
	return strings.Fields(sh(t, "find /sys/fs/cgroup/kubepods.slice -name cgroup.procs -exec cat {} + 2>/dev/null || true"))
}

// process is one that is not the kernel's own. The time of its start tells it from
// a later one with its number.
type process struct {
	pid         int
	name, start string
}

// processes lists all that run now.
func processes(t *testing.T) map[process]bool {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	out := map[process]bool{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		fields := strings.Fields(string(stat[end+1:]))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || open < 0 || len(fields) < 20 {
			t.Fatalf("%s/stat: %q", dir, stat)
		}
		const kthreadd = "2"
		if pid == 2 || fields[1] == kthreadd || fields[0] == "Z" {
			continue
		}
		out[process{pid, string(stat[open+1 : end]), fields[19]}] = true
	}
	return out
}

// residents are the processes that are there all the time for a while: what a
// probe starts is not.
func residents(t *testing.T, d time.Duration) map[process]bool {
	t.Helper()
	return residentsSeen(t, d, func() {})
}

func residentsSeen(t *testing.T, d time.Duration, each func()) map[process]bool {
	t.Helper()
	out := processes(t)
	for end := time.Now().Add(d); time.Now().Before(end); {
		each()
		pause(200 * time.Millisecond)
		now := processes(t)
		for p := range out {
			if !now[p] {
				delete(out, p)
			}
		}
	}
	return out
}

func names(all map[process]bool) []string {
	var out []string
	for p := range all {
		out = append(out, p.name)
	}
	slices.Sort(out)
	return out
}

// gantrys are the processes of Gantry's programs, by the file they run.
func gantrys(all map[process]bool) map[process]bool {
	out := map[process]bool{}
	for p := range all {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
		if err == nil && (strings.HasPrefix(exe, "/usr/libexec/gantry/") || strings.HasPrefix(exe, "/usr/bin/gantry")) {
			out[p] = true
		}
	}
	return out
}

// beside is a pod of the command line.
type beside struct {
	id, unit, invocation string
	pid                  int
	ip                   string
}

func startBeside(t *testing.T) beside {
	t.Helper()
	id := sh(t, "gantry run --detach --quiet --name theirs "+usedByCLI+" -- sh -c "+
		shellQuote(`mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; i=0; while :; do i=$((i+1)); echo $i; sleep 1; done`))
	t.Cleanup(func() { sh(t, "gantry rm --force theirs") })
	s := cliStatus(t, "theirs")
	if len(s.Apps) != 1 || len(s.IPs) == 0 {
		t.Fatalf("the pod of the command line: %+v", s)
	}
	unit := s.Apps[0].Unit
	return beside{id, unit, sh(t, "systemctl show --value -p InvocationID "+unit), s.Apps[0].PID, s.IPs[0]}
}

// check wants the pod to be as it was, and the CRI not to speak of it.
func (b beside) check(t *testing.T, e engine) {
	t.Helper()
	s := cliStatus(t, "theirs")
	if !s.Ready || len(s.Apps) != 1 || s.Apps[0].Phase != "running" || s.Apps[0].PID != b.pid {
		t.Fatalf("the pod of the command line, whose process was %d: %+v", b.pid, s)
	}
	if got := sh(t, "systemctl show --value -p InvocationID "+b.unit); got != b.invocation {
		t.Errorf("its unit was started again: invocation %s, was %s", got, b.invocation)
	}
	if out := sh(t, "curl -sf --max-time 20 http://"+b.ip+"/"); out != "served" {
		t.Errorf("its web server says %q", out)
	}
	if got := e.pictureAfterKill(t); got[b.id] != "" {
		t.Errorf("the CRI lists the pod of the command line: %v", got)
	}
	sh(t, "gantry image status "+usedByCLI)
}

// checkLog wants the app's count to be whole and to have gone on all the time.
func (b beside) checkLog(t *testing.T, began time.Time) {
	t.Helper()
	var last int
	for i, line := range strings.Split(sh(t, "gantry logs theirs"), "\n") {
		last = i + 1
		if line != strconv.Itoa(last) {
			t.Fatalf("line %d of the log is %q", last, line)
		}
	}
	// A second each, and what a busy machine takes to start "sleep".
	if least := int(time.Since(began).Seconds() / 4); last < least {
		t.Errorf("it counted to %d only, want %d at least", last, least)
	}
}
