//go:build e2e

package node

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestNodeCalls: what a node is asked about itself, and told.
func TestNodeCalls(t *testing.T) {
	guard(t)
	e := dial(t)
	ctx := t.Context()
	version, err := e.Version(ctx, &cri.VersionRequest{})
	if err != nil || version.RuntimeApiVersion != "v1" || version.RuntimeName == "" || version.RuntimeVersion == "" {
		t.Errorf("version: %v, %v", version, err)
	}
	s, err := e.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"RuntimeReady", "NetworkReady"} {
		if !slices.ContainsFunc(s.Status.Conditions, func(c *cri.RuntimeCondition) bool { return c.Type == kind && c.Status }) {
			t.Errorf("%s is not true: %v", kind, s.Status.Conditions)
		}
	}
	if !slices.ContainsFunc(s.RuntimeHandlers, func(h *cri.RuntimeHandler) bool { return h.Name == "" }) {
		t.Errorf("the default handler is not among %v", s.RuntimeHandlers)
	}
	if len(s.Info) == 0 {
		t.Error("nothing was said, though all was asked for")
	}
	config, err := e.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
	if err != nil || config.GetLinux().GetCgroupDriver() != cri.CgroupDriver_SYSTEMD {
		t.Errorf("configuration: %v, %v", config, err)
	}
	update := &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.88.0.0/16"}}}
	if _, err := e.UpdateRuntimeConfig(ctx, update); err != nil {
		t.Errorf("the node's range of addresses: %v", err)
	}
}

// TestImageFsInfo: kubelet collects images by these numbers.
func TestImageFsInfo(t *testing.T) {
	guard(t)
	e := dial(t)
	e.pull(t, busybox)
	const image = registry + "layers:10"
	remove := func() {
		t.Helper()
		if _, err := e.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
	}
	used := func() (bytes, inodes uint64) {
		t.Helper()
		resp, err := e.images.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
		if err != nil || len(resp.ImageFilesystems) == 0 {
			t.Fatalf("the images' file system: %v, %v", resp, err)
		}
		fs := resp.ImageFilesystems[0]
		if fs.FsId.GetMountpoint() == "" || fs.Timestamp == 0 || fs.UsedBytes.GetValue() == 0 || fs.InodesUsed.GetValue() == 0 {
			t.Errorf("the images' file system: %v", fs)
		}
		return fs.UsedBytes.GetValue(), fs.InodesUsed.GetValue()
	}
	remove()
	beforeBytes, beforeInodes := used()
	e.pull(t, image)
	grown := func() bool {
		bytes, inodes := used()
		return bytes > beforeBytes && inodes > beforeInodes
	}
	eventually(t, 30*time.Second, "an image takes room", grown) // some engines look now and then
	remove()
	eventually(t, 30*time.Second, "and gives it back", func() bool { return !grown() })
}

// TestPodLimits: kubelet says what a pod may have now, after it has changed the pod's
// cgroup. A cgroup that kubelet did not make is the engine's to change.
func TestPodLimits(t *testing.T) {
	guard(t)
	e := dial(t)
	config := onHost(e.podConfig(t, "limits"))
	if ours() {
		config.Linux.CgroupParent = ""
	}
	p := e.run(t, config)
	p.runScript(t, "app", "sleep 1000000")
	_, err := e.UpdatePodSandboxResources(t.Context(), &cri.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuPeriod: 100000, CpuQuota: 50000},
	})
	if !ours() {
		if err != nil && status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	limits := sh(t, fmt.Sprintf("cd /sys/fs/cgroup/gantry.slice/gantry-%s.slice && cat memory.max cpu.max", p.id))
	if want := "104857600\n50000 100000"; strings.TrimSpace(limits) != want {
		t.Errorf("the pod's limits are %q, want %q", limits, want)
	}
}

// TestImageNamesAreOne: kubelet keeps images by what a pull returned, and removes what no
// container names.
func TestImageNamesAreOne(t *testing.T) {
	guard(t)
	e := dial(t)
	ref := e.pull(t, busybox)
	p := e.run(t, onHost(e.podConfig(t, "names")))
	c := p.runScript(t, "app", "sleep 1000000")
	got, err := e.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: busybox}})
	if err != nil || got.Image == nil {
		t.Fatalf("the image: %v, %v", got, err)
	}
	all, err := e.images.ListImages(t.Context(), &cri.ListImagesRequest{})
	if err != nil || !slices.ContainsFunc(all.Images, func(i *cri.Image) bool { return i.Id == got.Image.Id }) {
		t.Errorf("image %s is not among %v, %v", got.Image.Id, all, err)
	}
	one, err := e.images.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: busybox}}})
	if err != nil || len(one.Images) != 1 || one.Images[0].Id != got.Image.Id {
		t.Errorf("the images of that name are %v, %v", one, err)
	}
	s := c.status(t)
	if s.ImageId != got.Image.Id {
		t.Errorf("the container's image is %q, and the image %q", s.ImageId, got.Image.Id)
	}
	if ref != got.Image.Id {
		t.Errorf("the pull returned %q, and the image is %q", ref, got.Image.Id)
	}
}

// TestStreamsAreTheLists: what comes in pieces is what comes in one.
func TestStreamsAreTheLists(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "streams")))
	c := p.runScript(t, "app", "sleep 1000000")
	ctx := t.Context()
	pods, err := e.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
	streamed(t, "pods", p.id, pods, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes, (*cri.PodSandbox).GetId)
	containers, err := e.StreamContainers(ctx, &cri.StreamContainersRequest{})
	streamed(t, "containers", c.id, containers, err, (*cri.StreamContainersResponse).GetContainers, (*cri.Container).GetId)
	stats, err := e.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{})
	streamed(t, "statistics of containers", c.id, stats, err, (*cri.StreamContainerStatsResponse).GetContainerStats,
		func(s *cri.ContainerStats) string { return s.GetAttributes().GetId() })
	podStats, err := e.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{})
	streamed(t, "statistics of pods", p.id, podStats, err, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats,
		func(s *cri.PodSandboxStats) string { return s.GetAttributes().GetId() })
	metrics, err := e.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
	streamed(t, "metrics", p.id, metrics, err, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*cri.PodSandboxMetrics).GetPodSandboxId)
	image := c.status(t).ImageId
	images, err := e.images.StreamImages(ctx, &cri.StreamImagesRequest{})
	streamed(t, "images", image, images, err, (*cri.StreamImagesResponse).GetImages, (*cri.Image).GetId)
}

// streamed wants a streamed list to have an item, each item once, and an end. The peers do
// not have all of them yet.
func streamed[R, I any](t *testing.T, what, want string, in grpc.ServerStreamingClient[R], err error, items func(*R) []I, id func(I) string) {
	t.Helper()
	seen := map[string]int{}
	for err == nil {
		var piece *R
		if piece, err = in.Recv(); err != nil {
			break
		}
		for _, i := range items(piece) {
			seen[id(i)]++
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		if seen[want] == 0 {
			t.Errorf("%s: %s is not among %v", what, want, seen)
		}
		for id, n := range seen {
			if n > 1 {
				t.Errorf("%s: %s comes %d times", what, id, n)
			}
		}
	case !ours() && status.Code(err) == codes.Unimplemented:
		t.Logf("%s: %v", what, err)
	default:
		t.Errorf("%s: %v", what, err)
	}
}
