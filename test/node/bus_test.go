//go:build e2e

package node

import (
	"errors"
	"maps"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestListsWithoutTheBus takes the bus away, and with it what tells gantry-cri of units.
// It does not list what it cannot know, and when the bus is back it knows. A restart of
// the bus is over before that.
func TestListsWithoutTheBus(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "bus")))
	lasting := p.runScript(t, "lasting", "while :; do sleep 0.2; done")
	killed := p.runScript(t, "killed", "while :; do sleep 0.2; done")
	want := e.picture(t)

	sh(t, "systemctl restart dbus.service")
	asked, failed := 0, 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); pause(50 * time.Millisecond) {
		asked++
		if err := e.lists(t); err != nil {
			failed++
		}
	}
	t.Logf("right after a restart of dbus %d of %d questions failed", failed, asked)
	eventually(t, 20*time.Second, "lists after a restart of dbus", func() bool { return e.lists(t) == nil })
	if got := e.picture(t); !maps.Equal(got, want) {
		t.Errorf("after a restart of dbus the lists say\n%v, want\n%v", got, want)
	}

	t.Cleanup(func() { sh(t, "systemctl start dbus.socket dbus.service") })
	sh(t, "systemctl stop dbus.socket; systemctl kill -s KILL dbus.service")
	began := time.Now()
	eventually(t, 20*time.Second, "lists are refused", func() bool { return status.Code(e.lists(t)) == codes.Unavailable })
	t.Logf("lists are refused %s after the bus went: %v", time.Since(began).Round(time.Millisecond), e.lists(t))
	if _, err := e.Version(t.Context(), &cri.VersionRequest{}); err != nil {
		t.Error(err)
	}
	sh(t, "systemctl kill -s KILL gantry-app-"+killed.id+".service")
	pause(2 * time.Second)
	if err := e.lists(t); status.Code(err) != codes.Unavailable {
		t.Errorf("lists without the bus: %v", err)
	}
	sh(t, "systemctl start dbus.socket dbus.service")
	eventually(t, 20*time.Second, "lists with the bus", func() bool { return e.lists(t) == nil })
	if s := killed.status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("the container that was killed meanwhile: %v", s)
	}
	if s := lasting.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container that lasts: %v", s)
	}
	p.runScript(t, "later", "exit 3").wait(t, 20*time.Second)
}

// lists asks for both.
func (e engine) lists(t *testing.T) error {
	t.Helper()
	_, err := e.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	_, err2 := e.ListContainers(t.Context(), &cri.ListContainersRequest{})
	if err != nil && err2 != nil {
		return err
	}
	return errors.Join(err, err2)
}
