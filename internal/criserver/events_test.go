package criserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// TestContainerEvents follows the life of a pod and of its containers.
func TestContainerEvents(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.run(t, "before") // nobody hears of it
	in, err := b.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Header(); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	next := func() string {
		t.Helper()
		ev, err := in.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.PodSandboxStatus.GetMetadata().GetUid() != "uid-web" || ev.CreatedAt == 0 {
			t.Errorf("got %v", ev)
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(ev.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
		return fmt.Sprintf("%s %s of %d", names[ev.ContainerId], kind, len(ev.ContainersStatuses))
	}
	want := func(texts ...string) {
		t.Helper()
		for _, text := range texts {
			if got := next(); got != text {
				t.Errorf("got %q, want %q", got, text)
			}
		}
	}
	sandbox := b.run(t, "web")
	names[sandbox] = "pod"
	want("pod CREATED of 0", "pod STARTED of 0")
	one := b.start(t, sandbox, nil)
	names[one] = "one"
	want("one CREATED of 1", "one STARTED of 1")
	b.engine.End(pod.ID(one), 3, 0, pod.ReasonError)
	want("one STOPPED of 1")
	if _, err := b.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: one}); err != nil {
		t.Fatal(err)
	}
	want("one DELETED of 0")
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	want("pod STOPPED of 0")
	if _, err := b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	want("pod DELETED of 0")
}

// TestEventsEndWithTheServer: a subscriber does not hold up a server that is stopped.
func TestEventsEndWithTheServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in, err := b.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Header(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.stop()
	_, err = in.Recv()
	wantCode(t, err, codes.Unavailable)
	if took := time.Since(began); took > time.Second { // the grace is two
		t.Errorf("it took %v", took)
	}
}

// TestDifferences: what went by between two looks is told in order.
func TestDifferences(t *testing.T) {
	t.Parallel()
	at := time.Unix(1, 0)
	app := func(id string, phase pod.Phase, started time.Time) pod.AppStatus {
		return pod.AppStatus{App: &pod.App{ID: pod.ID(id)}, Phase: phase, Started: started}
	}
	a := func(ready bool, apps ...pod.AppStatus) pod.PodStatus {
		return pod.PodStatus{Pod: &pod.Pod{ID: "pod"}, Ready: ready, Apps: apps}
	}
	for name, c := range map[string]struct {
		before, now []pod.PodStatus
		want        []string
	}{
		"nothing new": {[]pod.PodStatus{a(true, app("x", pod.Running, at))}, []pod.PodStatus{a(true, app("x", pod.Running, at))}, nil},
		"a short life": {
			[]pod.PodStatus{a(true)},
			[]pod.PodStatus{a(true, app("x", pod.Exited, at))},
			[]string{"x CREATED", "x STARTED", "x STOPPED"},
		},
		"it did not start": {
			[]pod.PodStatus{a(true, app("x", pod.Prepared, time.Time{}))},
			[]pod.PodStatus{a(true, app("x", pod.Exited, time.Time{}))},
			[]string{"x STOPPED"},
		},
		"gone with its apps": {
			[]pod.PodStatus{a(true, app("x", pod.Running, at))},
			nil,
			[]string{"x STOPPED", "x DELETED", "pod STOPPED", "pod DELETED"},
		},
		"restarted": {
			[]pod.PodStatus{a(true, app("x", pod.Exited, at))},
			[]pod.PodStatus{a(true, app("x", pod.Exited, at), app("y", pod.Running, at))},
			[]string{"y CREATED", "y STARTED"},
		},
	} {
		var got []string
		for _, ev := range differences(c.before, c.now) {
			got = append(got, ev.ContainerId+" "+strings.TrimSuffix(strings.TrimPrefix(ev.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestEventsWaitForThePods: kubelet would not ask again.
func TestEventsWaitForThePods(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.engine.SetReady(errors.New("reading the state"))
	in, err := b.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	header := make(chan error, 1)
	go func() {
		_, err := in.Header()
		header <- err
	}()
	select {
	case err := <-header:
		t.Fatalf("answered while the pods are loaded: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	b.engine.SetReady(nil)
	if err := <-header; err != nil {
		t.Error(err)
	}
}
