//go:build e2e

package node

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

// TestServerKilledUnderPods kills gantry-cri six times, and fifty times in the long
// run, at random moments, while pods run, end and are asked about. No pod may notice.
func TestServerKilledUnderPods(t *testing.T) {
	guard(t)
	needsGantry(t)
	kills, pods := machine.Amount(50, 6), 5
	e := dial(t)
	var running []container
	for i := range pods {
		config := e.podConfig(t, fmt.Sprintf("killed-%d", i))
		if i > 0 { // one with an address
			onHost(config)
		}
		p := e.run(t, config)
		running = append(running, p.runScript(t, "app", "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"))
	}
	want := e.picture(t)
	pids := e.pids(t, running)
	var slowest time.Duration
	for i := range kills {
		// Every fifth time a container ends just then: its end must not get lost.
		var ending *container
		if i%5 == 0 {
			c := running[0].pod.runScript(t, fmt.Sprintf("short-%d", i), fmt.Sprintf("sleep 0.%d; exit %d", rand.IntN(10), i))
			ending = &c
		}
		pause(time.Duration(rand.IntN(200)) * time.Millisecond)
		sh(t, "systemctl kill -s KILL --kill-whom=main gantry-cri.service")
		killed := time.Now()
		got := e.pictureAfterKill(t)
		slowest = max(slowest, time.Since(killed))
		if ending != nil {
			if s := ending.wait(t, 10*time.Second); s.ExitCode != int32(i) || s.FinishedAt < s.StartedAt {
				t.Errorf("kill %d: the container that ended meanwhile: %v", i, s)
			}
			if _, err := e.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: ending.id}); err != nil {
				t.Fatal(err)
			}
			delete(got, ending.id)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("kill %d: the lists say\n%v, want\n%v", i, got, want)
		}
	}
	t.Logf("%d kills; the slowest answer after one came in %s", kills, slowest.Round(time.Millisecond))
	if limit := machine.Patience(time.Second); machine.Long() && slowest > limit {
		t.Errorf("an answer came in %s after a kill, want at most %s", slowest, limit)
	}
	if got := e.pids(t, running); !slices.Equal(got, pids) {
		t.Errorf("processes %v are now %v", pids, got)
	}
	for _, c := range running {
		c.stop(t, 30)
		if s := c.status(t); s.ExitCode != 9 {
			t.Errorf("after all kills: %v", s)
		}
		inOrder(t, c.logFile(t))
	}
}

// inOrder checks that no line of a container that counts is missing or doubled.
func inOrder(t *testing.T, lines []logLine) {
	t.Helper()
	for i, l := range lines {
		if l.text != fmt.Sprint(i+1) {
			t.Errorf("line %d of the log is %q", i+1, l.text)
			return
		}
	}
}

// picture is what is said of sandboxes and containers: IDs and states, and addresses.
func (e engine) picture(t *testing.T, options ...grpc.CallOption) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	out := map[string]string{}
	pods, err := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}, options...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		out[p.Id] = p.State.String()
		s, err := e.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id}, options...)
		if status.Code(err) == codes.NotFound {
			continue // removed meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		out[p.Id] += fmt.Sprint(" ", s.Status.GetState(), " ", s.Status.GetNetwork().GetIp(), s.Status.GetNetwork().GetAdditionalIps())
	}
	containers, err := e.ListContainers(ctx, &cri.ListContainersRequest{}, options...)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		out[c.Id] = c.State.String()
	}
	return out
}

// pictureAfterKill asks until it is answered: a request that was under way when
// the program died fails, and so may the first one after it.
func (e engine) pictureAfterKill(t *testing.T) map[string]string {
	t.Helper()
	eventually(t, 10*time.Second, "the server answers again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
		defer cancel()
		_, err := e.ListContainers(ctx, &cri.ListContainersRequest{}, grpc.WaitForReady(true))
		if err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		return err == nil
	})
	return e.picture(t, grpc.WaitForReady(true))
}

func (e engine) pids(t *testing.T, containers []container) []string {
	t.Helper()
	var out []string
	for _, c := range containers {
		out = append(out, strings.TrimSpace(sh(t, "systemctl show --value -p MainPID gantry-app-"+c.id+".service")))
	}
	return out
}

func pause(d time.Duration) { <-time.After(d) }

// TestServerRestartsWithoutAGap asks all the time while gantry-cri is stopped in
// order and started again: the socket keeps the questions.
func TestServerRestartsWithoutAGap(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "restart")))
	c := p.runScript(t, "app", "sleep 1000000")
	before := e.pids(t, []container{c})
	for range 3 {
		sh(t, "systemctl restart gantry-cri.service")
		if got := e.pictureAfterKill(t)[c.id]; got != "CONTAINER_RUNNING" {
			t.Errorf("after a restart the container is %q", got)
		}
	}
	if after := e.pids(t, []container{c}); !slices.Equal(before, after) {
		t.Errorf("processes %v are now %v", before, after)
	}
}

// TestServerUnit checks what the unit promises of the running program.
func TestServerUnit(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	if _, err := e.Version(t.Context(), &cri.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(sh(t, "systemctl show --value -p MainPID gantry-cri.service"))
	if got := strings.TrimSpace(sh(t, "cat /proc/"+pid+"/oom_score_adj")); got != "-999" {
		t.Errorf("OOM score of gantry-cri: %s", got)
	}
	if ns, host := link(t, "/proc/"+pid+"/ns/mnt"), link(t, "/proc/1/ns/mnt"); ns != host {
		t.Errorf("gantry-cri is in mount namespace %s, the host in %s", ns, host)
	}
	if got := strings.TrimSpace(sh(t, "stat -c %a:%U:%G /run/gantry/cri.sock")); got != "660:root:root" {
		t.Errorf("socket: %s", got)
	}
	// What it starts inherits neither its score nor its descriptors, and has the
	// limits of the container.
	p := e.run(t, onHost(e.podConfig(t, "unit")))
	c := p.runScript(t, "app", "sleep 1000000")
	out, _, _ := c.exec(t, "sh", "-c", "cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l; env | grep -c -e NOTIFY -e LISTEN -e WATCHDOG")
	if got := strings.Join(strings.Fields(out), " "); got != "0 4 0" {
		t.Errorf("an exec has OOM score, descriptors and variables of systemd %q, want 0, 4 and 0", got)
	}
	own, _, _ := c.exec(t, "cat", "/proc/self/limits")
	apps, _, _ := c.exec(t, "cat", "/proc/1/limits")
	if own != apps {
		t.Errorf("an exec has the limits\n%s\nand the container\n%s", own, apps)
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestDamagedRecord tears the record of a pod that runs. It stays in the lists, but for a
// server that was started after that: it lists nothing, and says why.
func TestDamagedRecord(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "damaged")))
	p.runScript(t, "app", "sleep 1000000")
	want := e.picture(t)
	record := "/var/lib/gantry/pods/" + p.id + "/pod.json"
	whole, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	mend := func() {
		if err := os.WriteFile(record, whole, 0o644); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(mend)
	if err := os.WriteFile(record, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl daemon-reload") // after which all is looked at again
	if got := e.picture(t); !maps.Equal(got, want) {
		t.Errorf("the lists say\n%v, want\n%v", got, want)
	}
	sh(t, "systemctl restart gantry-cri.service")
	eventually(t, 20*time.Second, "the file is named", func() bool {
		err := e.lists(t)
		return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "pod.json") && strings.Contains(err.Error(), "gantry-pod-"+p.id)
	})
	mend()
	if got := e.pictureAfterKill(t); !maps.Equal(got, want) {
		t.Errorf("after the file was put right the lists say\n%v, want\n%v", got, want)
	}
}
