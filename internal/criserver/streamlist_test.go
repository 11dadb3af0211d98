package criserver

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/image"
	"gantry/internal/pod"
)

// drain reads a stream to its end and returns the number of its messages.
func drain[M any](t *testing.T, in grpc.ServerStreamingClient[M], openErr error, each func(*M)) (messages int) {
	t.Helper()
	if openErr != nil {
		t.Fatal(openErr)
	}
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return messages
		}
		if err != nil {
			t.Fatal(err)
		}
		messages++
		each(m)
	}
}

// TestStreamedLists: a streamed list tells the same as the list.
func TestStreamedLists(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	containers, err := b.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	if n := drain(t, containers, err, func(*runtimeapi.StreamContainersResponse) {}); n != 0 {
		t.Errorf("an empty list came in %d messages", n)
	}
	for _, name := range []string{"a", "b"} {
		b.start(t, b.run(t, name), func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"of": name} })
	}
	b.images.images = []*image.Image{{ID: imageA, Tags: []string{"web:1"}, Size: 7}}

	var got, want []proto.Message
	pods, err := b.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}})
	drain(t, pods, err, func(m *runtimeapi.StreamPodSandboxesResponse) { got = appendAll(got, m.PodSandboxes) })
	containers, err = b.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"of": "a"}}})
	drain(t, containers, err, func(m *runtimeapi.StreamContainersResponse) { got = appendAll(got, m.Containers) })
	stats, err := b.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"of": "b"}}})
	drain(t, stats, err, func(m *runtimeapi.StreamContainerStatsResponse) { got = appendAll(got, m.ContainerStats) })
	podStats, err := b.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "b"}}})
	drain(t, podStats, err, func(m *runtimeapi.StreamPodSandboxStatsResponse) { got = appendAll(got, m.PodSandboxStats) })
	metrics, err := b.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	drain(t, metrics, err, func(m *runtimeapi.StreamPodSandboxMetricsResponse) { got = appendAll(got, m.PodSandboxMetrics) })
	images, err := b.image.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	drain(t, images, err, func(m *runtimeapi.StreamImagesResponse) { got = appendAll(got, m.Images) })

	l, err := b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}})
	want = appendAll(want, must(t, l, err).Items)
	c, err := b.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"of": "a"}}})
	want = appendAll(want, must(t, c, err).Containers)
	s, err := b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"of": "b"}}})
	want = appendAll(want, must(t, s, err).Stats)
	ps, err := b.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "b"}}})
	want = appendAll(want, must(t, ps, err).Stats)
	pm, err := b.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	want = appendAll(want, must(t, pm, err).PodMetrics)
	i, err := b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	want = appendAll(want, must(t, i, err).Images)
	for _, m := range slices.Concat(got, want) {
		switch s := m.(type) { // they were looked at one after the other
		case *runtimeapi.ContainerStats:
			s.Cpu, s.Memory, s.Swap, s.Io, s.WritableLayer = nil, nil, nil, nil, nil
		case *runtimeapi.PodSandboxStats:
			s.Linux = nil
		case *runtimeapi.PodSandboxMetrics:
			s.Metrics, s.ContainerMetrics = nil, nil
		}
	}
	if len(want) != 7 || !slices.EqualFunc(got, want, proto.Equal) {
		t.Errorf("streamed %v, listed %v", got, want)
	}
}

func appendAll[T proto.Message](to []proto.Message, from []T) []proto.Message {
	for _, m := range from {
		to = append(to, m)
	}
	return to
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestLongStreamedList: what no message could hold comes whole, in order, in messages
// that a client takes.
func TestLongStreamedList(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const n, each = 40, 600_000
	sandbox := b.run(t, "web")
	for i := range n {
		b.create(t, sandbox, func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Name = fmt.Sprintf("c%02d", i)
			c.Annotations = map[string]string{"big": strings.Repeat("x", each)}
		})
	}
	_, err := b.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	wantCode(t, err, codes.ResourceExhausted) // or this test shows nothing
	in, err := b.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	seen := map[string]bool{}
	messages := drain(t, in, err, func(m *runtimeapi.StreamContainersResponse) {
		if size := proto.Size(m); len(m.Containers) == 0 || size > pieceSize+each {
			t.Errorf("a message of %d containers has %d bytes", len(m.Containers), size)
		}
		for _, c := range m.Containers {
			if seen[c.Metadata.Name] {
				t.Errorf("%s came twice", c.Metadata.Name)
			}
			seen[c.Metadata.Name] = true
		}
	})
	if len(seen) != n || messages < 2 {
		t.Errorf("%d containers came in %d messages", len(seen), messages)
	}
}

// TestStreamedListOfNothingKnown: while the engine cannot tell what there is, a
// stream is refused as a list is.
func TestStreamedListOfNothingKnown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.engine.SetReady(fmt.Errorf("loading: %w", pod.ErrUnavailable))
	in, err := b.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	if err == nil {
		_, err = in.Recv()
	}
	wantCode(t, err, codes.Unavailable)
}
