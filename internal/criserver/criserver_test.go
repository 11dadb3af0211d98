package criserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/engine/enginetest"
	"gantry/internal/image"
	"gantry/internal/network"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		// A closed connection waits a while for its streams, without a way to hurry it.
		goleak.IgnoreAnyFunction("github.com/moby/spdystream.(*Connection).shutdown"),
		// A timer of the test's own connection may fire while the test ends.
		goleak.IgnoreAnyFunction("google.golang.org/grpc/test/bufconn.(*conn).SetReadDeadline.func1"))
}

const imageA = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// imagesFake is an image store in memory.
type imagesFake struct {
	mu     sync.Mutex
	images []*image.Image
	pull   func(ref string, o image.PullOptions) (*image.Image, error)
	lacks  error // of every image
}

func (f *imagesFake) Whole(*image.Image) error { return f.lacks }

func (f *imagesFake) Pull(_ context.Context, ref string, o image.PullOptions) (*image.Image, error) {
	return f.pull(ref, o)
}

func (f *imagesFake) Image(name string) (*image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.images {
		if i.ID == name || slices.Contains(i.Tags, name) {
			return i, nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", name, pod.ErrNotFound)
}

func (f *imagesFake) Images() ([]*image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.images), nil
}

func (f *imagesFake) Remove(_ context.Context, name string) error {
	img, err := f.Image(name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = slices.DeleteFunc(f.images, func(i *image.Image) bool { return i == img })
	return nil
}

func (f *imagesFake) Mountpoint() string { return "/var/lib/gantry" }

func (f *imagesFake) Info() (image.FsInfo, error) {
	return image.FsInfo{Mountpoint: "/var/lib/gantry", UsedBytes: 10, Inodes: 3}, nil
}

type networkFake struct {
	mu    sync.Mutex
	err   error
	cidrs []string
}

func (f *networkFake) Status(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *networkFake) Info(context.Context) network.Info {
	return network.Info{File: "10-net.conflist", Network: "net", Rejected: []network.Rejected{{File: "05-bad.conflist", Reason: "no plugins"}}}
}

func (f *networkFake) SetPodCIDRs(c []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cidrs = c
}

// syncBuffer collects the log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// bench is a server with fakes below it and clients above.
type bench struct {
	runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
	engine  *enginetest.Fake
	images  *imagesFake
	network *networkFake
	log     *syncBuffer
	server  *Server
	stop    context.CancelFunc
	stopped chan error
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchWith(t, func(*Config) {})
}

func newTracedBench(t *testing.T, tracer trace.TracerProvider) *bench {
	t.Helper()
	return newBenchWith(t, func(c *Config) { c.Tracer = tracer })
}

func newBenchWith(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	b := &bench{engine: &enginetest.Fake{}, images: &imagesFake{}, network: &networkFake{}, log: &syncBuffer{}, stopped: make(chan error, 1)}
	var err error
	cfg := Config{
		Engine: b.engine, Images: b.images, Network: b.network, Version: "1.2.3", MountOptions: true,
		Handlers: []Handler{{Name: "oci", RecursiveReadOnly: true, UserNamespaces: true}, {Name: "fly"}},
		Slow:     50 * time.Millisecond,
		Log:      slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	change(&cfg)
	if b.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	b.stop = cancel
	go func() { b.stopped <- b.server.Serve(ctx, l, 2*time.Second) }()
	conn, err := grpc.NewClient("passthrough:bench", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	b.RuntimeServiceClient, b.image = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-b.stopped; err != nil {
			t.Error(err)
		}
	})
	return b
}

func sandboxConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"},
		LogDirectory: "/var/log/pods/" + name,
		Labels:       map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func (b *bench) run(t *testing.T, name string) string {
	t.Helper()
	r, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig(name)})
	if err != nil {
		t.Fatal(err)
	}
	return r.PodSandboxId
}

func (b *bench) create(t *testing.T, sandbox string, change func(*runtimeapi.ContainerConfig)) string {
	t.Helper()
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: imageA, UserSpecifiedImage: "web:1"},
		Command:  []string{"/bin/web"}, LogPath: "web/0.log",
	}
	if change != nil {
		change(c)
	}
	r, err := b.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c})
	if err != nil {
		t.Fatal(err)
	}
	return r.ContainerId
}

func (b *bench) start(t *testing.T, sandbox string, change func(*runtimeapi.ContainerConfig)) string {
	t.Helper()
	id := b.create(t, sandbox, change)
	if _, err := b.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}

func TestNodeMethods(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	v, err := b.Version(t.Context(), &runtimeapi.VersionRequest{Version: "any"})
	if err != nil || v.Version != "0.1.0" || v.RuntimeName != "gantry" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version: %v, %v", v, err)
	}
	c, err := b.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.Linux == nil || c.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("runtime config: %v, %v", c, err)
	}
	s, err := b.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || len(s.Status.Conditions) != 2 || !s.Status.Conditions[0].Status || !s.Status.Conditions[1].Status || len(s.Info) == 0 {
		t.Errorf("status: %v, %v", s, err)
	}
	if info := s.Info["gantry"]; !strings.Contains(info, `"file":"10-net.conflist"`) || !strings.Contains(info, `"reason":"no plugins"`) {
		t.Errorf("nothing of the network in %s", info)
	}
	var names []string
	for _, h := range s.RuntimeHandlers {
		names = append(names, fmt.Sprintf("%s=%t", h.Name, h.Features.UserNamespaces))
	}
	if got := strings.Join(names, " "); got != "=true oci=true fly=false" || !s.Features.SupplementalGroupsPolicy || !s.Features.MountOptions {
		t.Errorf("handlers %q, features %v", got, s.Features)
	}
	b.network.err = errors.New("no configuration in /etc/cni/net.d")
	s, err = b.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !s.Status.Conditions[0].Status || s.Status.Conditions[1].Status || s.Status.Conditions[1].Reason != "NetworkNotReady" || len(s.Info) != 0 {
		t.Errorf("status without a network: %v, %v", s, err)
	}
	update := func(cidr string) error {
		_, err := b.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	if err := update("10.1.0.0/24,fd00::/64"); err != nil || !slices.Equal(b.network.cidrs, []string{"10.1.0.0/24", "fd00::/64"}) {
		t.Errorf("pod CIDRs: %v, %v", b.network.cidrs, err)
	}
	wantCode(t, update("nonsense"), codes.InvalidArgument)
	if err := update(""); err != nil {
		t.Error(err)
	}
}

func TestLifeOfAContainer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox := b.run(t, "web")
	if again := b.run(t, "web"); again != sandbox {
		t.Errorf("the same request made a second sandbox: %s, %s", sandbox, again)
	}
	id := b.create(t, sandbox, func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"x": "y"} })
	state := func() *runtimeapi.ContainerStatus {
		t.Helper()
		r, err := b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if s := state(); s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.LogPath != "/var/log/pods/web/web/0.log" || s.ImageId != imageA {
		t.Errorf("created: %v", s)
	}
	if _, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id[:8]}); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt <= s.CreatedAt {
		t.Errorf("running: %v", s)
	}
	_, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition)
	list, err := b.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"x": "y"}}})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != id {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := b.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9 << 20}}); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.Resources.Linux.MemoryLimitInBytes != 9<<20 {
		t.Errorf("updated: %v", s.Resources)
	}
	for range 2 {
		if _, err := b.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 3}); err != nil {
			t.Fatal(err)
		}
	}
	if s := state(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 143 || s.FinishedAt <= s.StartedAt || s.Reason != "Error" {
		t.Errorf("exited: %v", s)
	}
	if !slices.Contains(b.engine.Calls(), "StopApp "+id+" 3s") {
		t.Errorf("the grace got lost: %q", b.engine.Calls())
	}
	for range 2 {
		for _, err := range []error{
			second(b.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})),
			second(b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})),
			second(b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})),
			second(b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})),
			second(b.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	wantCode(t, second(b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})), codes.NotFound)
	wantCode(t, second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})), codes.NotFound)
}

func second[T any](_ T, err error) error { return err }

func TestSandboxStatusAndLists(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	a, c := b.run(t, "a"), b.run(t, "c")
	app := b.create(t, a, nil)
	r, err := b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: a, Verbose: true})
	if err != nil || r.Status.Network.Ip != "10.0.0.2" || r.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY ||
		r.Status.Linux.Namespaces.Options.Pid != runtimeapi.NamespaceMode_CONTAINER || len(r.Info) == 0 {
		t.Errorf("got %v, %v", r, err)
	}
	if r.Timestamp == 0 || len(r.ContainersStatuses) != 1 || r.ContainersStatuses[0].Id != app {
		t.Errorf("at %d the containers are %v, want %s", r.Timestamp, r.ContainersStatuses, app)
	}
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: a}); err != nil {
		t.Fatal(err)
	}
	ready := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{}}
	list, err := b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: ready})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != c {
		t.Errorf("ready ones: %v, %v", list, err)
	}
	wantCode(t, second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "zzzzzzzz"})), codes.NotFound)
	wantCode(t, second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{})), codes.NotFound)
	wantCode(t, second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "../../etc"})), codes.NotFound)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox := b.run(t, "a")
	create := func(change func(*runtimeapi.ContainerConfig)) error {
		c := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: imageA}}
		change(c)
		return second(b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c}))
	}
	for want, err := range map[string]error{
		"config: must": second(b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})),
		"config.metadata.name": second(b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{
			Config: &runtimeapi.PodSandboxConfig{},
		})),
		"runtime_handler: no runtime handler \"kata\", there is oci, fly": second(b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{
			Config: sandboxConfig("b"), RuntimeHandler: "kata",
		})),
		"config.windows": second(b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{
			Config: &runtimeapi.PodSandboxConfig{Windows: &runtimeapi.WindowsPodSandboxConfig{}},
		})),
		"config: must not":             second(b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox})),
		"config.metadata.name: must":   create(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }),
		"config.image.image":           create(func(c *runtimeapi.ContainerConfig) { c.Image = nil }),
		"config.image.runtime_handler": create(func(c *runtimeapi.ContainerConfig) { c.Image.RuntimeHandler = "x" }),
		"config.mounts[0].image.runtime_handler": create(func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", Readonly: true, Image: &runtimeapi.ImageSpec{Image: imageA, RuntimeHandler: "x"}}}
		}),
		"image.runtime_handler": second(b.image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "a", RuntimeHandler: "x"}})),
		"filter.image.runtime_handler": second(b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{
			Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{RuntimeHandler: "x"}},
		})),
		"config.working_dir": create(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "a" }),
		"config.log_path":    create(func(c *runtimeapi.ContainerConfig) { c.LogPath = "/a" }),
		"config.linux.security_context.privileged": create(func(c *runtimeapi.ContainerConfig) {
			c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true}}
		}),
		"container_id: contains a NUL byte": second(b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "a\x00"})),
		"filter.state.state: 7 is no PodSandboxState": second(b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
			Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: 7}},
		})),
		"timeout":           second(b.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "x", Timeout: -1})),
		"windows":           second(b.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{Windows: &runtimeapi.WindowsContainerResources{}})),
		"image.image: must": second(b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{})),
	} {
		wantCode(t, err, codes.InvalidArgument)
		if !strings.HasPrefix(status.Convert(err).Message(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
	in, err := b.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "\x00"}})
	if err == nil {
		_, err = in.Recv()
	}
	wantCode(t, err, codes.InvalidArgument)
	wantCode(t, second(b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "aaaaaaaaaaaaaaaaaaaaaaaa", Config: &runtimeapi.ContainerConfig{}})), codes.NotFound)
}

// Pods of the command line are not the CRI's business.
func TestPodsOfOtherOwnersAreHidden(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	b.run(t, "mine")
	other, err := b.engine.CreatePod(ctx, pod.Pod{Owner: pod.OwnerCLI, Name: "theirs"})
	if err != nil {
		t.Fatal(err)
	}
	app, err := b.engine.CreateApp(ctx, other.ID, engine.AppSpec{Name: "x", Image: imageA})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.engine.StartApp(ctx, app.ID); err != nil {
		t.Fatal(err)
	}
	pods, err := b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 1 || pods.Items[0].Metadata.Name != "mine" {
		t.Errorf("pods: %v, %v", pods, err)
	}
	apps, err := b.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: string(app.ID)}})
	if err != nil || len(apps.Containers) != 0 {
		t.Errorf("containers: %v, %v", apps, err)
	}
	stats, err := b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(stats.Stats) != 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	p, a := string(other.ID), string(app.ID)
	for _, err := range []error{
		second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p})),
		second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p[:10]})),
		second(b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: a})),
		second(b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: a[:10]})),
		second(b.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: a})),
		second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: a, Cmd: []string{"true"}})),
		second(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: a, Cmd: []string{"true"}, Stdout: true})),
		second(b.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: a, Stdout: true})),
		second(b.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p})),
		second(b.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: a})),
		second(b.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: a})),
		second(b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: a})),
		second(b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p, Config: &runtimeapi.ContainerConfig{}})),
	} {
		wantCode(t, err, codes.NotFound)
	}
	for _, err := range []error{
		second(b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p})),
		second(b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p})),
		second(b.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: a})),
		second(b.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: a})),
	} {
		wantCode(t, err, codes.PermissionDenied)
	}
	b.images.images = []*image.Image{{ID: imageA, Size: 5}, {ID: "sha256:b", Size: 6}}
	images, err := b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(images.Images) != 2 || !images.Images[0].Pinned || images.Images[1].Pinned {
		t.Errorf("images: %v, %v", images, err)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox := b.run(t, "a")
	one, ended := b.start(t, sandbox, nil), b.start(t, sandbox, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "b" })
	b.engine.End(pod.ID(ended), 0, 0, pod.ReasonCompleted)
	list, err := b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != one {
		t.Fatalf("list: %v, %v", list, err)
	}
	got := list.Stats[0]
	if got.Cpu.UsageCoreNanoSeconds.Value != 5e9 || got.Memory.AvailableBytes.Value != 6<<20 || got.Cpu.Psi.Some.Total != 1000 ||
		got.WritableLayer.FsId.Mountpoint != "/var/lib/gantry" || got.Cpu.Timestamp == 0 || got.Swap.SwapAvailableBytes != nil || got.Memory.Psi != nil {
		t.Errorf("got %v", got)
	}
	b.engine.Fail = func(op string) error {
		if op == "AppStats" {
			return errors.New("cgroup is odd")
		}
		return nil
	}
	list, err = b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 0 || !strings.Contains(b.log.String(), "cgroup is odd") {
		t.Errorf("unreadable: %v, %v", list, err)
	}
	wantCode(t, second(b.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: one})), codes.Unknown)
}

func TestStatsFilters(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox, other := b.run(t, "a"), b.run(t, "b")
	one := b.start(t, sandbox, func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"x": "y"} })
	two := b.start(t, other, nil)
	for _, c := range []struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		{nil, []string{one, two}},
		{&runtimeapi.ContainerStatsFilter{Id: two}, []string{two}},
		{&runtimeapi.ContainerStatsFilter{PodSandboxId: sandbox}, []string{one}},
		{&runtimeapi.ContainerStatsFilter{PodSandboxId: sandbox, Id: two}, nil},
		{&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"x": "y"}}, []string{one}},
	} {
		list, err := b.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: c.filter})
		var got []string
		for _, s := range list.GetStats() {
			got = append(got, s.Attributes.Id)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, %v, want %q", c.filter, got, err, c.want)
		}
	}
	for _, c := range []struct {
		filter *runtimeapi.PodSandboxStatsFilter
		want   []string
	}{
		{&runtimeapi.PodSandboxStatsFilter{Id: other}, []string{other}},
		{&runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "a"}}, []string{sandbox}},
	} {
		list, err := b.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: c.filter})
		var got []string
		for _, s := range list.GetStats() {
			got = append(got, s.Attributes.Id)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, %v, want %q", c.filter, got, err, c.want)
		}
	}
}

// TestCheckpointRequest: all of it reaches the engine.
func TestCheckpointRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := b.start(t, b.run(t, "a"), nil)
	to := filepath.Join(t.TempDir(), "archive.tar")
	checkpoint := func(timeout int64) error {
		return second(b.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: to, Timeout: timeout}))
	}
	wantCode(t, checkpoint(-1), codes.InvalidArgument)
	if err := checkpoint(7); err != nil || !slices.Contains(b.engine.Calls(), "CheckpointApp "+id+" 7s") {
		t.Errorf("%v, calls %q", err, b.engine.Calls())
	}
	if _, err := os.Stat(to); err != nil {
		t.Error(err)
	}
}

func TestPodStats(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox, down := b.run(t, "a"), b.run(t, "down")
	one, ended := b.start(t, sandbox, nil), b.start(t, sandbox, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "b" })
	b.engine.End(pod.ID(ended), 0, 0, pod.ReasonCompleted)
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: down}); err != nil {
		t.Fatal(err)
	}
	list, err := b.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.Stats) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	got := list.Stats[0]
	if a := got.Attributes; a.Id != sandbox || a.Metadata.Name != "a" || a.Metadata.Uid != "uid-a" || a.Labels["app"] != "a" {
		t.Errorf("attributes: %v", a)
	}
	l := got.Linux
	if l.Cpu.UsageCoreNanoSeconds.Value != 6e9 || l.Cpu.UsageNanoCores == nil || l.Memory.WorkingSetBytes.Value != 3<<20 || l.Process.ProcessCount.Value != 3 ||
		l.Io.Psi.Full.Total != 2000 || l.Process.Timestamp == 0 || len(l.Containers) != 1 || l.Containers[0].Attributes.Id != one {
		t.Errorf("got %v", l)
	}
	if d := l.Network.DefaultInterface; d.Name != "eth0" || d.RxBytes.Value != 10 || d.RxErrors.Value != 3 || d.TxBytes.Value != 50 || d.TxErrors.Value != 7 {
		t.Errorf("default interface: %v", d)
	}
	if more := l.Network.Interfaces; l.Network.Timestamp == 0 || len(more) != 2 || more[0].Name != "net1" || more[1].Name != "lo" {
		t.Errorf("network: %v", l.Network)
	}
	renamed := networkUsage(engine.PodStats{Interfaces: []network.InterfaceUsage{{Name: "x"}, {Name: "y"}}})
	if renamed.DefaultInterface.GetName() != "x" || len(renamed.Interfaces) != 1 {
		t.Errorf("without eth0: %v", renamed)
	}
	if alone := networkUsage(engine.PodStats{Interfaces: []network.InterfaceUsage{{Name: "lo"}}}); alone != nil {
		t.Errorf("with a loopback alone: %v", alone)
	}
	filtered := &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "other"}}}
	if list, err := b.ListPodSandboxStats(ctx, filtered); err != nil || len(list.Stats) != 0 {
		t.Errorf("filtered: %v, %v", list, err)
	}
	wantCode(t, second(b.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: ""})), codes.NotFound)

	config := sandboxConfig("host")
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	host, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: host.PodSandboxId})
	if err != nil || s.Stats.Linux.Network != nil || s.Stats.Linux.Cpu == nil {
		t.Errorf("a pod of the host's network: %v, %v", s, err)
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox := b.run(t, "a")
	if _, err := b.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sandbox,
		Resources:    &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9 << 20},
		Overhead:     &runtimeapi.LinuxContainerResources{CpuShares: 100},
	}); err != nil {
		t.Fatal(err)
	}
	p, err := b.engine.Pod(pod.ID(sandbox))
	if err != nil || p.Resources.Memory != 9<<20 || p.Overhead.CPUShares != 100 {
		t.Errorf("got %+v, %v", p.PodResources, err)
	}
	// What kubelet makes of a pod without limits that has overhead.
	if _, err := b.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sandbox, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -67108865, CpuQuota: -25001},
	}); err != nil {
		t.Errorf("no limits less the overhead: %v", err)
	}
	_, err = b.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sandbox, Resources: &runtimeapi.LinuxContainerResources{OomScoreAdj: 5000},
	})
	if wantCode(t, err, codes.InvalidArgument); !strings.Contains(err.Error(), "resources.oom_score_adj") {
		t.Errorf("got %v", err)
	}
	_, err = b.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "aaaaaaaaaaaaaaaaaaaaaaaa"})
	wantCode(t, err, codes.NotFound)
}

func TestImages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	var got image.PullOptions
	b.images.pull = func(ref string, o image.PullOptions) (*image.Image, error) {
		got = o
		b.images.images = append(b.images.images, &image.Image{
			ID: imageA, Tags: []string{ref}, Digests: []string{"web@sha256:9"}, Size: 7, Annotations: map[string]string{"a": "b"}, Config: image.ImageConfig{User: "33:44"},
		})
		return b.images.images[0], nil
	}
	web := &runtimeapi.ImageSpec{Image: "web:1"}
	r, err := b.image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: web, Auth: &runtimeapi.AuthConfig{
		Username: "u", Password: "secret-p", Auth: "secret-a", ServerAddress: "s", IdentityToken: "secret-i", RegistryToken: "secret-r",
	}})
	if err != nil || r.ImageRef != imageA {
		t.Fatalf("pull: %v, %v", r, err)
	}
	if want := (image.Auth{Username: "u", Password: "secret-p", Auth: "secret-a", ServerAddress: "s", IdentityToken: "secret-i", RegistryToken: "secret-r"}); *got.Auth != want {
		t.Errorf("auth: %+v", got.Auth)
	}
	if strings.Contains(b.log.String(), "secret") {
		t.Error("a password is in the log")
	}
	if _, err := b.image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: web, Auth: &runtimeapi.AuthConfig{ServerAddress: "x"}}); err != nil || got.Auth != nil {
		t.Errorf("empty auth: %+v, %v", got.Auth, err)
	}
	s, err := b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: web, Verbose: true})
	if err != nil || s.Image.Id != imageA || s.Image.Size != 7 || s.Image.Uid.GetValue() != 33 || s.Image.Username != "" || s.Image.Pinned || len(s.Info) == 0 || s.Image.Spec.GetAnnotations()["a"] != "b" {
		t.Errorf("status: %v, %v", s, err)
	}
	b.images.lacks = errors.New("a layer was lost")
	if s, err := b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: web}); err != nil || s.Image != nil {
		t.Errorf("status of what is damaged: %v, %v", s, err)
	}
	b.images.lacks = nil
	s, err = b.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "none"}})
	if err != nil || s.Image != nil {
		t.Errorf("status of nothing: %v, %v", s, err)
	}
	l, err := b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "none"}}})
	if err != nil || len(l.Images) != 0 {
		t.Errorf("list: %v, %v", l, err)
	}
	fs, err := b.image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || fs.ImageFilesystems[0].FsId.Mountpoint != "/var/lib/gantry" || fs.ImageFilesystems[0].UsedBytes.Value != 10 || fs.ContainerFilesystems[0].UsedBytes.Value != 20 || fs.ContainerFilesystems[0].InodesUsed.Value != 4 {
		t.Errorf("fs info: %v, %v", fs, err)
	}
	for range 3 {
		if _, err := b.image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: imageA}}); err != nil {
			t.Error(err)
		}
	}
}

// Kubelet finds these by how their text begins, and only if the code is Unknown.
func TestPullErrorsHaveNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		err  error
		code codes.Code
		want string
	}{
		{fmt.Errorf("dial tcp: %w", pod.ErrUnavailable), codes.Unknown, "RegistryUnavailable: dial tcp"},
		{fmt.Errorf("x: %w", image.ErrSignature), codes.Unknown, "SignatureValidationFailed: x"},
		{fmt.Errorf("manifest: %w", pod.ErrNotFound), codes.NotFound, "manifest"},
		{fmt.Errorf("name: %w", pod.ErrInvalid), codes.InvalidArgument, "name"},
	} {
		b.images.pull = func(string, image.PullOptions) (*image.Image, error) { return nil, c.err }
		_, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "a"}})
		wantCode(t, err, c.code)
		if got := status.Convert(err).Message(); !strings.HasPrefix(got, c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestUserOfAnImage(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]string{"": "nil ", "0": "0 ", "1000:5": "1000 ", "www": "nil www", "www:www": "nil www", "-1": "nil -1"} {
		img := fromImage(&image.Image{Config: image.ImageConfig{User: user}}, nil)
		got := "nil " + img.Username
		if img.Uid != nil {
			got = fmt.Sprint(img.Uid.Value, " ", img.Username)
		}
		if got != want || img.Size == 0 {
			t.Errorf("%q: got %q, want %q", user, got, want)
		}
	}
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox := b.run(t, "a")
	b.engine.SetReady(errors.New("reading the state"))
	for _, err := range []error{
		second(b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})),
		second(b.ListContainers(ctx, &runtimeapi.ListContainersRequest{})),
		second(b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})),
		second(b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})),
		second(b.image.ListImages(ctx, &runtimeapi.ListImagesRequest{})),
		second(b.Status(ctx, &runtimeapi.StatusRequest{})),
	} {
		wantCode(t, err, codes.Unavailable)
		if !strings.Contains(err.Error(), "reading the state") {
			t.Errorf("no reason: %v", err)
		}
	}
	b.engine.SetReady(nil)
	if err := second(b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})); err != nil {
		t.Error(err)
	}
}

func TestErrorsBecomeCodes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	late := &engine.StageError{Op: "create pod", Stage: "network", Took: 93 * time.Second, Err: context.DeadlineExceeded}
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{fmt.Errorf("a: %w", pod.ErrNotFound), codes.NotFound},
		{fmt.Errorf("a: %w", pod.ErrExists), codes.AlreadyExists},
		{fmt.Errorf("a: %w", pod.ErrInvalid), codes.InvalidArgument},
		{fmt.Errorf("a: %w", pod.ErrState), codes.FailedPrecondition},
		{fmt.Errorf("a: %w", pod.ErrUnsupported), codes.Unimplemented},
		{fmt.Errorf("a: %w", pod.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("a: %w", pod.ErrExhausted), codes.ResourceExhausted},
		{fmt.Errorf("a: %w: b", pod.ErrInternal), codes.Internal},
		{fmt.Errorf("a: %w", pod.ErrNotOwner), codes.PermissionDenied},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("a: %w", context.Canceled), codes.Canceled},
		{io.ErrUnexpectedEOF, codes.Unknown},
		{&engine.StageError{Op: "create pod", Stage: "network", Took: 93 * time.Second, Err: pod.ErrUnavailable}, codes.Unavailable},
		{errors.Join(late, fmt.Errorf("undo record: %w", pod.ErrNotFound)), codes.DeadlineExceeded},
		{errors.Join(fmt.Errorf("undo unit: %w", pod.ErrExists), fmt.Errorf("pod x: %w", late)), codes.DeadlineExceeded},
		{errors.Join(&engine.StageError{Op: "create pod", Stage: "record", Err: io.ErrUnexpectedEOF}, pod.ErrInvalid), codes.Unknown},
	} {
		b.engine.Fail = func(string) error { return c.err }
		_, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("x")})
		wantCode(t, err, c.want)
		if got := status.Convert(err).Message(); got != c.err.Error() {
			t.Errorf("message: got %q, want %q", got, c.err)
		}
	}
	if log := b.log.String(); !strings.Contains(log, "method=RunPodSandbox") || !strings.Contains(log, "stage=network stageTook=1m33s") {
		t.Errorf("log:\n%s", log)
	}
}

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.engine.Fail = func(string) error { panic("ouch") }
	_, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("x")})
	wantCode(t, err, codes.Internal)
	if log := b.log.String(); !strings.Contains(log, "ouch") || !strings.Contains(log, "criserver_test.go") {
		t.Errorf("no stack in the log:\n%s", log)
	}
	b.engine.Fail = nil
	b.run(t, "x")
}

func TestSlowRequestsAreLogged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run(t, "quick")
	if log := b.log.String(); strings.Contains(log, "slow") {
		t.Errorf("log:\n%s", log)
	}
	b.engine.Fail = func(string) error {
		<-time.After(60 * time.Millisecond)
		return nil
	}
	b.run(t, "slow")
	if log := b.log.String(); strings.Count(log, "slow request") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// TestNewerFieldsAreLogged: in every request, once.
func TestNewerFieldsAreLogged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	newer := []byte{0x98, 0x06, 0x01} // field 99, varint 1
	c := sandboxConfig("x")
	c.ProtoReflect().SetUnknown(newer)
	list, stream, pull := &runtimeapi.ListContainersRequest{}, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{}}, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "a"}}
	list.ProtoReflect().SetUnknown(newer)
	stream.Filter.ProtoReflect().SetUnknown(newer)
	pull.Image.ProtoReflect().SetUnknown(newer)
	for range 2 {
		in, err := b.StreamContainers(ctx, stream)
		drain(t, in, err, func(*runtimeapi.StreamContainersResponse) {})
		for _, err := range []error{
			second(b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})),
			second(b.ListContainers(ctx, list)),
			second(b.image.ImageStatus(ctx, pull)),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	log := b.log.String()
	for _, want := range []string{
		"method=RunPodSandbox fields=[config.99]", "method=ListContainers fields=[99]",
		"method=StreamContainers fields=[filter.99]", "method=ImageStatus fields=[image.99]",
	} {
		if n := strings.Count(log, want); n != 1 {
			t.Errorf("%q is %d times in\n%s", want, n, log)
		}
	}
}

// What is running when the server is told to end may finish.
func TestStopWaitsForRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	b.engine.Fail = func(string) error {
		close(entered)
		<-leave
		return nil
	}
	result := make(chan error, 1)
	go func() {
		_, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandboxConfig("x")})
		result <- err
	}()
	<-entered
	b.stop()
	select {
	case err := <-result:
		t.Fatalf("cut off: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestUnimplementedMethods(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	wantCode(t, second(b.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{})), codes.Unimplemented)
}
