//go:build e2e

package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

// The tests TestPower…Before and …After are the halves of one each: "trial test"
// takes the machine down and up again between them (test/trial/cycle.go). They are
// not run otherwise.

const (
	// powerNotes is what the first half tells the second.
	powerNotes = "/var/lib/trial-power.json"
	powerLogs  = "/var/log/trial-power"
)

// notes is what was so before the machine went down.
type notes struct {
	Traces machine.Traces // before any pod was made
	BootID string
	Pods   []notedPod
	CLI    map[string]string // pods of the command line: ID by name
}

type notedPod struct {
	ID, Name string
	IPs      []string
	Apps     []notedApp
}

type notedApp struct {
	ID, Name, Log string
	Code          int32 // with which it is to end
}

func guardBefore(t *testing.T) *notes {
	t.Helper()
	needsGantry(t)
	n := &notes{Traces: machine.Before(), BootID: bootID(t), CLI: map[string]string{}}
	if err := os.RemoveAll(powerLogs); err != nil {
		t.Fatal(err)
	}
	return n
}

// guardAfter compares the machine after this half with the machine before the
// first one.
func guardAfter(t *testing.T) *notes {
	t.Helper()
	needsGantry(t)
	data, err := os.ReadFile(powerNotes)
	if err != nil {
		t.Fatalf("there is no first half: %v", err)
	}
	n := &notes{}
	if err := json.Unmarshal(data, n); err != nil {
		t.Fatal(err)
	}
	machine.GuardSince(t, n.Traces)
	t.Cleanup(func() {
		for _, path := range []string{powerNotes, powerLogs} {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
	})
	if n.BootID == bootID(t) {
		t.Fatal("the machine did not go down")
	}
	return n
}

func bootID(t *testing.T) string { t.Helper(); return sh(t, "cat /proc/sys/kernel/random/boot_id") }

// save makes sure that the notes outlive the power.
func (n *notes) save(t *testing.T) {
	t.Helper()
	data, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(powerNotes, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, "sync "+powerNotes+" /var/lib")
}

// add notes a pod of the CRI with its containers and how they are to end.
func (n *notes) add(t *testing.T, p pod, codes map[container]int32) {
	t.Helper()
	noted := notedPod{ID: p.id, Name: p.config.Metadata.Name, IPs: p.ips(t)}
	for c, code := range codes {
		log := filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
		noted.Apps = append(noted.Apps, notedApp{ID: c.id, Name: c.config.Metadata.Name, Log: log, Code: code})
	}
	n.Pods = append(n.Pods, noted)
}

// runCLI runs a pod of the command line in the background.
func (n *notes) runCLI(t *testing.T, name, options, script string) {
	t.Helper()
	n.CLI[name] = sh(t, fmt.Sprintf("gantry run --detach --quiet --name %s %s %s -- sh -c %s", name, options, busybox, shellQuote(script)))
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (p pod) ips(t *testing.T) []string {
	t.Helper()
	n := p.status(t).Network
	if n.GetIp() == "" {
		return nil
	}
	ips := []string{n.Ip}
	for _, more := range n.AdditionalIps {
		ips = append(ips, more.Ip)
	}
	return ips
}

// pods are those of the notes, to work with.
func (n *notes) pods(e engine) []pod {
	var out []pod
	for _, p := range n.Pods {
		out = append(out, pod{engine: e, id: p.ID, config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: p.Name}}})
	}
	return out
}

// removeAll removes every pod of the notes, of both owners.
func (n *notes) removeAll(t *testing.T, e engine) {
	t.Helper()
	for _, p := range n.pods(e) {
		p.remove(t)
	}
	for name := range n.CLI {
		sh(t, "gantry rm "+name)
	}
}

// exitOf checks that an app reads exited, at a time before this boot, and returns
// how.
func (e engine) exitOf(t *testing.T, a notedApp) *cri.ContainerStatus {
	t.Helper()
	resp, err := e.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: a.ID})
	if err != nil {
		t.Fatalf("status of %s: %v", a.Name, err)
	}
	s := resp.Status
	if s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("%s is %s after the boot", a.Name, s.State)
	}
	if s.StartedAt == 0 || s.FinishedAt <= s.StartedAt || s.FinishedAt > bootTime(t).UnixNano() {
		t.Errorf("%s ran from %s to %s, and this boot was at %s", a.Name, time.Unix(0, s.StartedAt), time.Unix(0, s.FinishedAt), bootTime(t))
	}
	return s
}

// bootTime is when this boot began, to a second.
func bootTime(t *testing.T) time.Time {
	t.Helper()
	seconds, err := strconv.ParseInt(sh(t, "awk '$1 == \"btime\" { print $2 }' /proc/stat"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(seconds+1, 0)
}

// podJSON is what "gantry status" says of a pod.
type podJSON struct {
	Ready bool      `json:"ready"`
	IPs   []string  `json:"ips"`
	Apps  []appJSON `json:"apps"`
}

type appJSON struct {
	Phase    string    `json:"phase"`
	PID      int       `json:"pid"`
	Unit     string    `json:"unit"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Exit     *struct {
		Code   int    `json:"code"`
		Reason string `json:"reason"`
	} `json:"exit"`
}

func cliStatus(t *testing.T, name string) podJSON {
	t.Helper()
	var p podJSON
	if err := json.Unmarshal([]byte(sh(t, "gantry status --format json "+name)), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// exitOfCLI is exitOf for the one app of a pod of the command line.
func exitOfCLI(t *testing.T, name string) (code int, reason string) {
	t.Helper()
	p := cliStatus(t, name)
	if len(p.Apps) != 1 || p.Apps[0].Exit == nil || p.Apps[0].Phase != "exited" || p.Ready {
		t.Fatalf("pod %s after the boot: %+v, want one exited app", name, p)
	}
	a := p.Apps[0]
	if a.Started.IsZero() || !a.Finished.After(a.Started) || a.Finished.After(bootTime(t)) {
		t.Errorf("%s ran from %s to %s, and this boot was at %s", name, a.Started, a.Finished, bootTime(t))
	}
	return a.Exit.Code, a.Exit.Reason
}
