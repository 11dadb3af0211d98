package criserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/cri/critest"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/pod"
)

// unset are the places where answers never have a field that they have elsewhere, or
// that requests have, and why.
func unset() map[string]string {
	const (
		requestOnly = "it is for requests"
		noHandler   = "images are the same for all handlers"
		zero        = "the value that is meant is the zero one"
	)
	return map[string]string{
		"Namespace.options.target_id":                  "a pod joins no container's namespace",
		"NamespaceOption.userns_options.mode":          zero, // POD: a pod without a mapping has no options
		"UserNamespace.uids.container_id":              zero, // root is mapped
		"UserNamespace.gids.container_id":              zero,
		"LinuxRuntimeConfiguration.cgroup_driver":      zero, // SYSTEMD
		"RuntimeFeatures.user_namespaces_host_network": zero, // such a pod is refused
		"Container.image.annotations":                  requestOnly,
		"Container.image.runtime_handler":              noHandler,
		"Container.image.image_ref":                    "the container has it itself",
		"ContainerStatus.image.annotations":            requestOnly,
		"ContainerStatus.image.runtime_handler":        noHandler,
		"ContainerStatus.image.image_ref":              "the container has it itself",
		"Mount.image.annotations":                      requestOnly,
		"Mount.image.runtime_handler":                  noHandler,
		"Image.spec.user_specified_image":              "users may have called it by several names, which are repo_tags",
		"Image.spec.runtime_handler":                   noHandler,
		"Image.spec.image_ref":                         "repo_digests has it",
		"PodSandboxMetrics.metrics.metric_type":        zero, // COUNTER, all of them
		"ContainerStats.cpu.usage_nano_cores":          "kubelet makes it of two readings, for containers",
	}
}

// seen are the places of fields in answers that had a value once.
type seen struct {
	t      *testing.T
	places map[string]bool
	table  map[string]cri.Field
	unset  map[string]string
	met    map[string]bool // of unset
}

// keep looks at an answer.
func (s *seen) keep(m proto.Message, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	s.walk(string(m.ProtoReflect().Descriptor().Name()), m.ProtoReflect())
}

func (s *seen) walk(at string, m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		place := at + "." + string(fd.Name())
		s.places[place] = true
		switch {
		case fd.Kind() != protoreflect.MessageKind || fd.IsMap():
		case fd.IsList():
			for i := range v.List().Len() {
				s.walk(place, v.List().Get(i).Message())
			}
		default:
			s.walk(place, v.Message())
		}
		return true
	})
}

// TestEveryFieldOfAnAnswer fills all that a server tells of, asks for everything, and
// wants a value in each place that answers have, but for those that are empty for a reason.
func TestEveryFieldOfAnAnswer(t *testing.T) {
	t.Parallel()
	s := &seen{t: t, places: map[string]bool{}, table: cri.Fields(), unset: unset(), met: map[string]bool{}}
	newBench(t).askEverything(t, s)
	services := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			if m := services.Get(i).Methods().Get(j); m.Name() != "CheckpointPod" && m.Name() != "RestorePod" {
				s.compare(string(m.Output().Name()), m.Output(), "")
			}
		}
	}
	for place := range s.unset {
		if !s.met[place] {
			t.Errorf("answers have no %s", place)
		}
	}
}

// compare looks at the places of a message, which is a field of another: message.field.
func (s *seen) compare(at string, m protoreflect.MessageDescriptor, field string) {
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		name := "." + string(fd.Name())
		own := string(m.Name()) + name
		f, _ := cri.Lookup(s.table, fd)
		why, empty := f.Why, f.Disposition == cri.Empty
		for _, place := range []string{own, field + name} {
			if reason, ok := s.unset[place]; ok {
				why, empty, s.met[place] = reason, true, true
			}
		}
		switch has := s.places[at+name]; {
		case empty && has:
			s.t.Errorf("%s has a value, and should not: %s", at+name, why)
		case !empty && !has:
			s.t.Errorf("%s has no value", at+name)
		}
		if fd.Kind() == protoreflect.MessageKind && !fd.IsMap() && !empty && !strings.HasSuffix(string(fd.Message().Name()), "64Value") {
			s.compare(at+name, fd.Message(), own)
		}
	}
}

// askEverything makes things of every kind and keeps all answers.
func (b *bench) askEverything(t *testing.T, s *seen) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.engine.Programs = programs()
	b.engine.Stats = func(s *engine.Stats) {
		line := engine.PressureLine{Total: 1, Avg10: 2, Avg60: 3, Avg300: 4}
		p := &engine.Pressure{Some: line, Full: line}
		s.CPUPressure, s.MemoryPressure, s.IOPressure = p, p, p
		s.MemoryLimit, s.SwapLimit, s.SwapUsage, s.PageFaults, s.MajorPageFaults = 8<<20, 8<<20, 1, 5, 6
	}
	events, err := b.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = events.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	b.askOfTheNode(t, s)
	b.askOfImages(t, s)
	full, host := b.runFully(t, s)
	running := b.startFully(t, s, full)
	b.askOfPods(t, s, full, running)
	for _, id := range []string{full, host} {
		s.keep(b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}))
	}
	b.askOfPods(t, s, full, running)
	s.keep(b.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: running}))
	for _, id := range []string{host, full} {
		s.keep(b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}))
	}
	for last := false; !last; {
		ev, err := events.Recv()
		s.keep(ev, err)
		last = ev.ContainerId == full && ev.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	}
}

func (b *bench) askOfTheNode(t *testing.T, s *seen) {
	t.Helper()
	ctx := t.Context()
	s.keep(b.Version(ctx, &runtimeapi.VersionRequest{}))
	s.keep(b.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}))
	s.keep(b.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{}))
	b.network.err = errors.New("no configuration")
	s.keep(b.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}))
}

func (b *bench) askOfImages(t *testing.T, s *seen) {
	t.Helper()
	ctx := t.Context()
	b.images.pull = func(ref string, _ image.PullOptions) (*image.Image, error) {
		img := &image.Image{
			ID: imageA, Tags: []string{ref}, Digests: []string{"web@sha256:9"}, Size: 7, Pinned: true,
			Annotations: map[string]string{"a": "b"}, Config: image.ImageConfig{User: ref},
		}
		b.images.images = append(b.images.images, img)
		return img, nil
	}
	for _, name := range []string{"33", "www"} { // its user, too: by number and by name
		spec := &runtimeapi.ImageSpec{Image: name}
		s.keep(b.image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}))
		s.keep(b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec, Verbose: true}))
	}
	s.keep(b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{}))
	in, err := b.image.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	drain(t, in, err, func(m *runtimeapi.StreamImagesResponse) { s.keep(m, nil) })
	s.keep(b.image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}))
}

// runFully makes a pod with all that it may have, and one with all that is the host's.
func (b *bench) runFully(t *testing.T, s *seen) (full, host string) {
	t.Helper()
	first, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: critest.Sandbox(), RuntimeHandler: "oci"})
	s.keep(first, err)
	config := critest.Sandbox()
	config.Metadata.Name, config.Hostname, config.PortMappings, config.Linux.Sysctls = "host", "", nil, nil
	config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
	}
	second, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "oci"})
	s.keep(second, err)
	b.endOne(t, second.PodSandboxId) // its end is told of with the namespaces of its pod
	return first.PodSandboxId, second.PodSandboxId
}

func (b *bench) endOne(t *testing.T, sandbox string) {
	t.Helper()
	b.engine.End(pod.ID(b.start(t, sandbox, nil)), 1, 0, pod.ReasonError)
}

// startFully makes containers with all that they may have: one that runs, one that was
// killed and one that was only created.
func (b *bench) startFully(t *testing.T, s *seen, sandbox string) (running string) {
	t.Helper()
	ctx := t.Context()
	for i, change := range []func(){
		func() {},
		func() {
			_, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: running})
			s.keep(&runtimeapi.StartContainerResponse{}, err)
			b.engine.End(pod.ID(running), 137, 9, pod.ReasonError)
		},
		func() { s.keep(b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: running})) },
	} {
		c := critest.Container()
		c.Metadata.Name = fmt.Sprint("c", i)
		c.Mounts[0].UidMappings[0].ContainerId, c.Mounts[0].GidMappings[0].ContainerId = 1, 1
		c.Mounts[0].SelinuxRelabel, c.Mounts[0].RecursiveReadOnly = true, true
		c.Mounts = append(c.Mounts,
			&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/a", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			&runtimeapi.Mount{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: imageA, UserSpecifiedImage: "v:1"}, ImageSubPath: "sub"})
		made, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c})
		s.keep(made, err)
		running = made.ContainerId
		change()
	}
	s.keep(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{"fail"}}))
	b.engine.Programs["both"] = func(_ context.Context, _ []string, s engine.Streams) (int, error) {
		_, err := fmt.Fprint(s.Stdout, "out")
		_, more := fmt.Fprint(s.Stderr, "err")
		return 0, errors.Join(err, more)
	}
	s.keep(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{"both"}}))
	s.keep(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: running, Cmd: []string{"both"}, Stdout: true}))
	s.keep(b.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: running, Stdout: true}))
	s.keep(b.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: sandbox}))
	s.keep(b.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: running}))
	s.keep(b.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandbox}))
	return running
}

func (b *bench) askOfPods(t *testing.T, s *seen, sandbox, app string) {
	t.Helper()
	ctx := t.Context()
	s.keep(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true}))
	pods, err := b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	s.keep(pods, err)
	for _, p := range pods.Items {
		s.keep(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id}))
	}
	s.keep(b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: app, Verbose: true}))
	s.keep(b.ListContainers(ctx, &runtimeapi.ListContainersRequest{}))
	s.keep(b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}))
	s.keep(b.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}))
	s.keep(b.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{}))
	s.keep(b.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}))
	sandboxes, err := b.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	drain(t, sandboxes, err, func(m *runtimeapi.StreamPodSandboxesResponse) { s.keep(m, nil) })
	containers, err := b.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	drain(t, containers, err, func(m *runtimeapi.StreamContainersResponse) { s.keep(m, nil) })
	stats, err := b.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
	drain(t, stats, err, func(m *runtimeapi.StreamContainerStatsResponse) { s.keep(m, nil) })
	podStats, err := b.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	drain(t, podStats, err, func(m *runtimeapi.StreamPodSandboxStatsResponse) { s.keep(m, nil) })
	metrics, err := b.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	drain(t, metrics, err, func(m *runtimeapi.StreamPodSandboxMetricsResponse) { s.keep(m, nil) })
}
