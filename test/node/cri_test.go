//go:build e2e

package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engine is a CRI server and what tests keep asking of it.
type engine struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	logs   string // log directory of the pods of this test
}

const (
	busybox = "registry.k8s.io/busybox:1.37"
	nginx   = "docker.io/library/nginx:latest"
	// slice stands in for the one that kubelet makes for a pod.
	slice = "e2e.slice"
)

// endpoint is the CRI socket under test: Gantry's, as its unit says, or another
// engine's that GANTRY_E2E_CRI names, to try the tests themselves.
func endpoint(t *testing.T) string {
	t.Helper()
	if v := os.Getenv("GANTRY_E2E_CRI"); v != "" {
		return v
	}
	out, err := exec.Command("systemctl", "show", "--value", "-p", "Listen", "gantry-cri.socket").Output()
	path, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || path == "" {
		notRun(t, "Gantry is not installed: there is no gantry-cri.socket")
	}
	return "unix://" + path
}

// needsGantry is for tests of what no other engine promises.
func needsGantry(t *testing.T) {
	t.Helper()
	if v := os.Getenv("GANTRY_E2E_CRI"); v != "" {
		notRun(t, "it is about Gantry, and %s is under test", v)
	}
	endpoint(t)
}

func dial(t *testing.T) engine {
	t.Helper()
	// Where kubelet would have it, and not below the test's own directory,
	// which is in memory.
	logs, err := os.MkdirTemp("/var/log", "trial-pod-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(logs) })
	return connect(t, logs)
}

// connect is dial with a directory for logs that may be there after the test.
func connect(t *testing.T, logs string) engine {
	t.Helper()
	conn, err := grpc.NewClient(endpoint(t), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as kubelet
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return engine{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), logs}
}

// pull makes sure that an image is there.
func (e engine) pull(t *testing.T, image string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(time.Minute))
	defer cancel()
	resp, err := e.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	return resp.ImageRef
}

// podConfig is a pod of this test's own, with a network of its own.
func (e engine) podConfig(t *testing.T, name string) *cri.PodSandboxConfig {
	t.Helper()
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: fmt.Sprintf("%s-%d", strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), time.Now().UnixNano())},
		Hostname:     name,
		LogDirectory: filepath.Join(e.logs, name),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.88.0.1"}, Searches: []string{"trial.example"}},
		Labels:       map[string]string{"e2e": "true"},
		Annotations:  map[string]string{"e2e.example/test": t.Name()},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    slice,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}},
		},
	}
}

// onHost puts a pod into the host's network.
func onHost(c *cri.PodSandboxConfig) *cri.PodSandboxConfig {
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	c.Hostname = ""
	return c
}

// pod is a running sandbox.
type pod struct {
	engine
	id     string
	config *cri.PodSandboxConfig
}

// run starts a sandbox, which the test's end removes.
func (e engine) run(t *testing.T, config *cri.PodSandboxConfig) pod {
	t.Helper()
	p := e.runLasting(t, config)
	t.Cleanup(func() { p.remove(t) })
	return p
}

// runLasting starts a sandbox that is there after the test.
func (e engine) runLasting(t *testing.T, config *cri.PodSandboxConfig) pod {
	t.Helper()
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	resp, err := e.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run pod %s: %v", config.Metadata.Name, err)
	}
	return pod{e, resp.PodSandboxId, config}
}

// remove stops and removes a pod. It may be gone.
func (p pod) remove(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(30*time.Second))
	defer cancel()
	if _, err := p.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop pod %s: %v", p.config.Metadata.Name, err)
	}
	if _, err := p.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove pod %s: %v", p.config.Metadata.Name, err)
	}
}

// status is the sandbox's.
func (p pod) status(t *testing.T) *cri.PodSandboxStatus {
	t.Helper()
	resp, err := p.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("status of pod %s: %v", p.config.Metadata.Name, err)
	}
	return resp.Status
}

// containerConfig is a container that runs a shell script.
func containerConfig(name, script string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: busybox, UserSpecifiedImage: busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"e2e": "true"},
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// container is a created one.
type container struct {
	pod
	id     string
	config *cri.ContainerConfig
}

// create makes a container from an image that it pulls if need be.
func (p pod) create(t *testing.T, config *cri.ContainerConfig) container {
	t.Helper()
	p.pull(t, config.Image.Image)
	if err := os.MkdirAll(filepath.Dir(filepath.Join(p.config.LogDirectory, config.LogPath)), 0o755); err != nil {
		t.Fatal(err)
	}
	config.Linux.SecurityContext.NamespaceOptions.Network = p.config.Linux.SecurityContext.NamespaceOptions.Network
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	resp, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Fatalf("create container %s: %v", config.Metadata.Name, err)
	}
	return container{p, resp.ContainerId, config}
}

func (c container) start(t *testing.T) container {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	if _, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("start container %s: %v", c.config.Metadata.Name, err)
	}
	return c
}

// runScript runs a shell script in a container of its own.
func (p pod) runScript(t *testing.T, name, script string) container {
	t.Helper()
	return p.create(t, containerConfig(name, script)).start(t)
}

func (c container) status(t *testing.T) *cri.ContainerStatus {
	t.Helper()
	resp, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("status of container %s: %v", c.config.Metadata.Name, err)
	}
	return resp.Status
}

// wait returns the status once the container has exited.
func (c container) wait(t *testing.T, limit time.Duration) *cri.ContainerStatus {
	t.Helper()
	var s *cri.ContainerStatus
	eventually(t, limit, "container "+c.config.Metadata.Name+" exited", func() bool {
		s = c.status(t)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

func (c container) stop(t *testing.T, grace int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	if _, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: grace}); err != nil {
		t.Fatalf("stop container %s: %v", c.config.Metadata.Name, err)
	}
}

// exec runs a program in the container and returns its output and exit code.
func (c container) exec(t *testing.T, argv ...string) (stdout, stderr string, code int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	resp, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: argv})
	if err != nil {
		t.Fatalf("exec %q in container %s: %v", argv, c.config.Metadata.Name, err)
	}
	return string(resp.Stdout), string(resp.Stderr), resp.ExitCode
}

// logFile reads the container's log as it is on disk.
func (c container) logFile(t *testing.T) []logLine {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.pod.config.LogDirectory, c.config.LogPath))
	if err != nil {
		t.Fatal(err)
	}
	return parseLog(t, string(text))
}

// logLine is one line of a log in CRI's format.
type logLine struct {
	time    time.Time
	stream  string
	partial bool
	text    string
}

func parseLog(t *testing.T, text string) []logLine {
	t.Helper()
	var lines []logLine
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("log line %q: not in CRI's format", line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		lines = append(lines, logLine{at, fields[1], fields[2] == "P", fields[3]})
	}
	return lines
}

// texts joins what a stream said.
func texts(lines []logLine, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if l.stream == stream {
			b.WriteString(l.text)
			if !l.partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}
