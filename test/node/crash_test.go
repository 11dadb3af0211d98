//go:build e2e

package node

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// services are Gantry's that may be killed at any moment.
func services() []string { return []string{"gantry-cri.service", "gantry-stdio.service"} }

// TestKillsUnderLoad kills Gantry's services again and again while containers
// write and end. None stops, no exit code is lost, no log line is lost or
// doubled.
func TestKillsUnderLoad(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "kills")))
	const lines = 2000
	var writers []container
	for i := range 3 {
		script := fmt.Sprintf(`i=1; while [ $i -le %d ]; do echo "line $i"; [ $((i %% 20)) = 0 ] && sleep 0.1; i=$((i+1)); done; exit %d`, lines, 10+i)
		writers = append(writers, p.runScript(t, fmt.Sprintf("writer-%d", i), script))
	}
	stop := make(chan struct{})
	killed := make(chan map[string]int)
	go func() {
		count := map[string]int{}
		for i := 0; ; i++ {
			service := services()[i%len(services())]
			if exec.Command("systemctl", "kill", "-s", "KILL", "--kill-whom=main", service).Run() == nil {
				count[service]++
			}
			select {
			case <-stop:
				killed <- count
				return
			case <-time.After(time.Duration(100+i%7*130) * time.Millisecond):
			}
		}
	}()
	for _, c := range writers {
		c.outlive(t)
	}
	close(stop)
	t.Logf("kills: %v", <-killed)
	for i, c := range writers {
		if s := c.outlive(t); s.ExitCode != int32(10+i) { // the last kill may just be felt
			t.Errorf("%s: exit code %d, want %d", c.config.Metadata.Name, s.ExitCode, 10+i)
		}
		c.checkLines(t, lines)
	}
}

// outlive waits for a container's end while calls may fail.
func (c container) outlive(t *testing.T) (s *cri.ContainerStatus) {
	t.Helper()
	eventually(t, time.Minute, c.config.Metadata.Name+" ended", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Second))
		defer cancel()
		resp, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		s = resp.GetStatus()
		return err == nil && s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

// checkLines wants a log to count from one to last.
func (c container) checkLines(t *testing.T, last int) {
	t.Helper()
	next := 1
	for line := range strings.Lines(texts(c.logFile(t), "stdout")) {
		if want := fmt.Sprintf("line %d\n", next); line != want {
			t.Errorf("log of %s: %q where %q should be", c.config.Metadata.Name, line, want)
			return
		}
		next++
	}
	if next != last+1 {
		t.Errorf("log of %s ends with line %d, want %d", c.config.Metadata.Name, next-1, last)
	}
}

// TestEngineStopped stops the CRI server for a while: containers go on, and what
// happened meanwhile is known afterwards.
func TestEngineStopped(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "stopped")))
	lasting := p.runScript(t, "lasting", "while :; do sleep 0.2; done")
	ending := p.runScript(t, "ending", "sleep 3; echo bye; exit 9")
	t.Cleanup(func() { sh(t, "systemctl start gantry-cri.socket") })
	sh(t, "systemctl stop gantry-cri.socket gantry-cri.service")
	<-time.After(patience(time.Second))
	sh(t, "systemctl start gantry-cri.socket")
	start := time.Now()
	s := ending.status(t)
	t.Logf("first answer after %.2f s", time.Since(start).Seconds())
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 9 {
		t.Errorf("the one that ended meanwhile: %v", s)
	}
	if got := texts(ending.logFile(t), "stdout"); got != "bye\n" {
		t.Errorf("its log: %q", got)
	}
	if s := lasting.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the one that lasts: %v", s)
	}
}
