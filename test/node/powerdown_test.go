//go:build e2e

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

// obeys is a script that ends with a code of its own when it is told to, and says
// so.
func obeys(signal string, code int) string {
	return fmt.Sprintf(`trap 'echo last words; exit %d' %s; echo begun; while :; do sleep 1000 & wait $!; done`, code, signal)
}

// serves is obeys with a web server in it.
func serves(code int) string {
	return `mkdir /www; echo "it is served" >/www/index.html; httpd -p 80 -h /www; ` + obeys("TERM", code)
}

// webConfig is a pod whose web server is at a port of the host.
func webConfig(t *testing.T, e engine, attempt uint32) *cri.PodSandboxConfig {
	t.Helper()
	c := e.podConfig(t, "power-web")
	c.Metadata.Uid, c.Metadata.Attempt = "power-web", attempt
	c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 18080}}
	return c
}

func TestPowerRebootBefore(t *testing.T) {
	n := guardBefore(t)
	e := connect(t, powerLogs)
	web := e.runLasting(t, webConfig(t, e, 0))
	server := web.runScript(t, "server", serves(7))
	ended := web.runScript(t, "ended", "exit 3")
	ended.wait(t, 20*time.Second)
	n.add(t, web, map[container]int32{server: 7, ended: 3})
	host := e.runLasting(t, onHost(e.podConfig(t, "power-host")))
	n.add(t, host, map[container]int32{host.runScript(t, "app", obeys("TERM", 8)): 8})
	n.runCLI(t, "power-cli", "", obeys("TERM", 9))
	checkServed(t, web.ips(t))
	n.save(t)
}

func TestPowerRebootAfter(t *testing.T) {
	n := guardAfter(t)
	e := connect(t, powerLogs)
	n.leftNothing(t)
	for _, p := range n.pods(e) {
		if s := p.status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s is %s after the boot", s.Metadata.Name, s.State)
		}
	}
	for _, p := range n.Pods {
		for _, a := range p.Apps {
			if s := e.exitOf(t, a); s.ExitCode != a.Code || s.Reason != "Error" {
				t.Errorf("%s ended with %d, %s; want %d, Error", a.Name, s.ExitCode, s.Reason, a.Code)
			}
		}
	}
	if code, reason := exitOfCLI(t, "power-cli"); code != 9 || reason != "Error" {
		t.Errorf("the pod of the command line ended with %d, %s", code, reason)
	}
	if got := sh(t, "gantry logs power-cli"); got != "begun\nlast words" {
		t.Errorf("its log: %q", got)
	}
	// Kubelet makes the next sandbox before it removes the last.
	again := e.run(t, webConfig(t, e, 1))
	again.runScript(t, "server", serves(0))
	checkServed(t, again.ips(t))
	if was := n.Pods[0].IPs; len(again.ips(t)) != len(was) {
		t.Errorf("the new pod has the addresses %v, the old one had %v", again.ips(t), was)
	}
	n.removeAll(t, e)
	checkServed(t, again.ips(t)) // their removal took nothing of it
}

// leftNothing checks that no pod has left a trace in the kernel, systemd or CNI:
// records are all there is.
func (n *notes) leftNothing(t *testing.T) {
	t.Helper()
	machineLeft(t, n.Traces, "directory")
}

// checkServed asks the web server at all its addresses and at the host's port.
func checkServed(t *testing.T, ips []string) {
	t.Helper()
	if len(ips) != 2 {
		t.Errorf("the pod has the addresses %v, want one of each family", ips)
	}
	addresses := []string{net.JoinHostPort(hostAddress(t), "18080")}
	for _, ip := range ips {
		addresses = append(addresses, net.JoinHostPort(ip, "80"))
	}
	client := http.Client{Timeout: patience(2 * time.Second)}
	for _, a := range addresses {
		eventually(t, 10*time.Second, "the web server at "+a+" answers", func() bool {
			resp, err := client.Get("http://" + a + "/")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
}

// hostAddress is the machine's own, on its uplink.
func hostAddress(t *testing.T) string {
	t.Helper()
	return sh(t, "ip -4 -o addr show dev eth0 | awk '{ sub(\"/.*\", \"\", $4); print $4 }'")
}

// offPods is how many pods run when the machine is powered off; every fifth is of
// the command line.
const offPods = 20

// offLines is how much each app has to say when it is told to end.
const offLines = 200

// lastWords ends with a code, after many lines, when it gets the right signal, and
// with 99 at another one.
func lastWords(signal string, code int) string {
	wrong := map[string]string{"TERM": "USR1", "USR1": "TERM"}[signal]
	return fmt.Sprintf(`trap 'exit 99' %s; trap 'seq %d; echo "got %s"; exit %d' %s; while :; do sleep 1000 & wait $!; done`, wrong, offLines, signal, code, signal)
}

func offSignal(i int) (string, cri.Signal) {
	if i%2 == 1 {
		return "USR1", cri.Signal_SIGNAL_SIGUSR1
	}
	return "TERM", cri.Signal_SIGNAL_SIGTERM
}

func TestPowerOffBefore(t *testing.T) {
	n := guardBefore(t)
	e := connect(t, powerLogs)
	e.pull(t, busybox)
	made := make(chan notedPod, offPods)
	errs := make(chan error, 2)
	// Two at once, as many as the machine has processors.
	for first := range 2 {
		go func() { errs <- e.makeOffPods(t, first, made) }()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	close(made)
	for p := range made {
		n.Pods = append(n.Pods, p)
	}
	for i := 4; i < offPods; i += 5 {
		signal, _ := offSignal(i)
		n.runCLI(t, fmt.Sprintf("power-%d", i), "--stop-signal "+signal, lastWords(signal, 100+i))
	}
	n.save(t)
}

// makeOffPods makes every second pod of the CRI's.
func (e engine) makeOffPods(t *testing.T, first int, made chan<- notedPod) error {
	for i := first; i < offPods; i += 2 {
		if i%5 == 4 {
			continue
		}
		signal, number := offSignal(i)
		config := containerConfig("app", lastWords(signal, 100+i))
		config.StopSignal = number
		p, err := e.makePod(t, e.podConfig(t, fmt.Sprintf("power-%d", i)), config)
		if err != nil {
			return err
		}
		p.Apps[0].Code = int32(100 + i)
		made <- p
	}
	return nil
}

// makePod runs a pod of one container, and may be called by any goroutine.
func (e engine) makePod(t *testing.T, config *cri.PodSandboxConfig, c *cri.ContainerConfig) (notedPod, error) {
	name := config.Metadata.Name
	log := filepath.Join(config.LogDirectory, c.LogPath)
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return notedPod{}, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(time.Minute))
	defer cancel()
	sandbox, err := e.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return notedPod{}, fmt.Errorf("run pod %s: %w", name, err)
	}
	created, err := e.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: c, SandboxConfig: config})
	if err != nil {
		return notedPod{}, fmt.Errorf("create container of pod %s: %w", name, err)
	}
	if _, err := e.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return notedPod{}, fmt.Errorf("start container of pod %s: %w", name, err)
	}
	return notedPod{ID: sandbox.PodSandboxId, Name: name, Apps: []notedApp{{ID: created.ContainerId, Name: "app", Log: log}}}, nil
}

func TestPowerOffAfter(t *testing.T) {
	n := guardAfter(t)
	e := connect(t, powerLogs)
	n.leftNothing(t)
	ordered := readShutdown(t, n.BootID)
	for _, p := range n.Pods {
		a := p.Apps[0]
		if s := e.exitOf(t, a); s.ExitCode != a.Code || s.Reason != "Error" {
			t.Errorf("%s ended with %d, %s; want %d, Error", p.Name, s.ExitCode, s.Reason, a.Code)
		}
		text, err := os.ReadFile(a.Log)
		if err != nil {
			t.Fatal(err)
		}
		checkLastWords(t, p.Name, a.Code, texts(parseLog(t, string(text)), "stdout"))
		ordered.check(t, p.ID, a.ID)
	}
	for name, id := range n.CLI {
		code, _ := exitOfCLI(t, name)
		if want, _ := strconv.Atoi(strings.TrimPrefix(name, "power-")); code != 100+want {
			t.Errorf("%s ended with %d, want %d", name, code, 100+want)
		}
		checkLastWords(t, name, int32(code), sh(t, "gantry logs "+name)+"\n")
		app := strings.TrimSuffix(strings.TrimPrefix(cliStatus(t, name).Apps[0].Unit, "gantry-app-"), ".service")
		ordered.check(t, id, app)
	}
	n.removeAll(t, e)
}

// checkLastWords wants all that an app said when it got its signal.
func checkLastWords(t *testing.T, name string, code int32, log string) {
	t.Helper()
	signal, _ := offSignal(int(code) - 100)
	var want strings.Builder
	for i := range offLines {
		fmt.Fprintln(&want, i+1)
	}
	fmt.Fprintln(&want, "got "+signal)
	if log != want.String() {
		t.Errorf("the log of %s has %d bytes and ends with %q, want %d that end with %q", name, len(log), log[max(0, len(log)-40):], want.Len(), "got "+signal)
	}
}

// TestPowerOffCost judges what the host measured: the CPU time of the whole machine
// from the request to the end of its power.
func TestPowerOffCost(t *testing.T) {
	guard(t)
	cpu, err := strconv.ParseFloat(os.Getenv("GANTRY_E2E_DOWN_CPU"), 64)
	if err != nil {
		t.Fatalf("the host did not say what CPU time the way down took: %v", err)
	}
	t.Logf("powering off with %d pods took %s s, and %.1f s of CPU time of the whole machine", offPods, os.Getenv("GANTRY_E2E_DOWN_WALL"), cpu)
	// A busy host makes the seconds of an emulated processor longer, twice and more:
	// only who takes the time for a quiet one is held to the goal.
	if limit := machine.Amount(30, 90); cpu > float64(limit) {
		t.Errorf("powering off took %.1f s of CPU time, want less than %d; the goal is 30", cpu, limit)
	}
}

// shutdown is when PID 1 began to stop units, and when they were stopped, in
// microseconds since the boot before this one.
type shutdown struct{ stopping, stopped map[string]int64 }

// readShutdown reads what PID 1 wrote into the journal of an earlier boot.
func readShutdown(t *testing.T, bootID string) shutdown {
	t.Helper()
	const stopping, stopped = "de5b426a63be47a7b6ac3eaac82e2f6f", "9d1aaa27d60140bd96365438aad20286"
	s := shutdown{map[string]int64{}, map[string]int64{}}
	out := sh(t, "journalctl -o json --output-fields=MESSAGE_ID,UNIT,__MONOTONIC_TIMESTAMP -b "+strings.ReplaceAll(bootID, "-", "")+
		" _PID=1 MESSAGE_ID="+stopping+" + _PID=1 MESSAGE_ID="+stopped)
	for line := range strings.Lines(out) {
		var entry struct {
			ID   string `json:"MESSAGE_ID"`
			Unit string `json:"UNIT"`
			At   string `json:"__MONOTONIC_TIMESTAMP"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("journal entry %q: %v", line, err)
		}
		at, err := strconv.ParseInt(entry.At, 10, 64)
		if err != nil {
			t.Fatalf("journal entry %q: %v", line, err)
		}
		if entry.ID == stopping {
			s.stopping[entry.Unit] = at
		} else {
			s.stopped[entry.Unit] = at
		}
	}
	return s
}

// check wants an app to have ended before the end of its pod's unit began, and the
// unit before that of the network and of what keeps the logs.
func (s shutdown) check(t *testing.T, podID, appID string) {
	t.Helper()
	app, unit := "gantry-app-"+appID+".service", "gantry-pod-"+podID+".service"
	for _, pair := range [][2]string{
		{app, unit}, {app, "gantry-stdio.service"}, {unit, "network.target"}, {unit, "trial-network.service"}, {unit, "dbus.socket"},
	} {
		first, ok := s.stopped[pair[0]]
		if !ok {
			t.Errorf("the journal does not say that %s was stopped", pair[0])
			continue
		}
		then := s.stopping[pair[1]]
		if then == 0 {
			then = s.stopped[pair[1]] // targets and sockets are stopped at once
		}
		if then < first {
			t.Errorf("%s was stopped at %d µs, after the end of %s began, at %d µs", pair[0], first, pair[1], then)
		}
	}
}

func TestPowerCutBefore(t *testing.T) {
	n := guardBefore(t)
	e := connect(t, powerLogs)
	web := e.runLasting(t, webConfig(t, e, 0))
	server := web.runScript(t, "server", serves(0))
	ended := web.runScript(t, "ended", "exit 3")
	ended.wait(t, 20*time.Second)
	n.add(t, web, map[container]int32{server: 255, ended: 3})
	n.runCLI(t, "power-cli", "", obeys("TERM", 0))
	n.save(t)
	// Pods come and go all the time, so that the power goes while records are
	// written.
	rounds := "/run/trial-churn"
	sh(t, "systemd-run --quiet --unit trial-churn sh -c 'i=0; while :; do gantry run --rm --quiet --name churn-$i "+busybox+" true; i=$((i+1)); echo $i >"+rounds+"; done'")
	eventually(t, 20*time.Second, "pods come and go", func() bool {
		data, err := os.ReadFile(rounds)
		return err == nil && strings.TrimSpace(string(data)) >= "2"
	})
}

func TestPowerCutAfter(t *testing.T) {
	n := guardAfter(t)
	e := connect(t, powerLogs)
	checkRecords(t)
	for _, a := range n.Pods[0].Apps {
		want := "Error"
		if a.Code == 255 {
			want = "Unknown"
		}
		if s := e.exitOf(t, a); s.ExitCode != a.Code || s.Reason != want || want == "Unknown" && s.Message == "" {
			t.Errorf("%s ended with %d, %s, %q; want %d, %s", a.Name, s.ExitCode, s.Reason, s.Message, a.Code, want)
		}
	}
	if code, reason := exitOfCLI(t, "power-cli"); code != 255 || reason != "Unknown" {
		t.Errorf("the pod of the command line ended with %d, %s", code, reason)
	}
	// A new pod in place of the old one, which nobody has stopped yet.
	again := e.run(t, webConfig(t, e, 1))
	again.runScript(t, "server", serves(0))
	checkServed(t, again.ips(t))
	t.Logf("gantry gc:\n%s", sh(t, "gantry gc --explain"))
	if left := sh(t, "gantry gc --dry-run"); left != "" {
		t.Errorf("after gc there is more for it:\n%s", left)
	}
	checkServed(t, again.ips(t)) // gc took nothing of it
	again.remove(t)
	n.leftNothing(t) // gc has given back the leases of the pods that were lost
	n.removeAll(t, e)
	for _, name := range strings.Fields(sh(t, "gantry list --quiet --owner cli")) {
		sh(t, "gantry rm "+name)
	}
}

// checkRecords wants every pod on disk to be listed, and every record that is
// there to be whole.
func checkRecords(t *testing.T) {
	t.Helper()
	onDisk, err := filepath.Glob("/var/lib/gantry/pods/*")
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Fields(sh(t, "gantry list --quiet"))
	for _, dir := range onDisk {
		if !slices.Contains(listed, filepath.Base(dir)) {
			t.Errorf("%s is on disk and not listed", dir)
		}
	}
	// Those that only a start reads are not synced: an app is started once.
	synced := []string{"pod.json", "network.json", "app.json", "secret.json", "run.json", "exit.json", "resources.json"}
	whole := 0
	for _, name := range synced {
		for _, pattern := range []string{"/var/lib/gantry/pods/*/" + name, "/var/lib/gantry/pods/*/apps/*/" + name} {
			paths, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range paths {
				data, err := os.ReadFile(path)
				if err != nil || !json.Valid(data) {
					t.Errorf("%s is torn: %q, %v", path, data, err)
				}
				whole++
			}
		}
	}
	t.Logf("%d pods, %d records", len(onDisk), whole)
}
