package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	busybox = "registry.k8s.io/busybox:1.37"
	// slice stands in for the one that kubelet makes for a pod.
	slice = "bench.slice"
	// payload is what idle pods run: an argument that nothing else has.
	payload = "sleep 86400123"
	idle    = "echo started; exec " + payload
)

// pod is a sandbox with one container.
type pod struct {
	e       *engine
	config  *cri.PodSandboxConfig
	handler string
	id      string
	app     string // the container
	log     *logFile
	started time.Time
}

// newPod describes a pod with a network of its own, or the host's. Its log
// directory is there, as kubelet would have made it.
func (b *bench) newPod(e *engine, host bool, handler string) (*pod, error) {
	uid := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	p := &pod{e: e, handler: handler, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: uid, Namespace: "bench", Uid: uid},
		LogDirectory: filepath.Join(b.scratch, uid),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.88.0.1"}},
		Labels:       map[string]string{"bench": "true"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    slice,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}}
	if host {
		p.config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	} else {
		p.config.Hostname = "bench"
	}
	var err error
	p.log, err = watchLog(filepath.Join(p.config.LogDirectory, "app"), "0.log")
	return p, err
}

// run starts the pod and its container with a shell script. The time is taken from
// here on.
func (p *pod) run(ctx context.Context, image, script string) error {
	p.started = time.Now()
	sandbox, err := p.e.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.handler})
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	p.id = sandbox.PodSandboxId
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app"},
		Image:    &cri.ImageSpec{Image: image, UserSpecifiedImage: image},
		Command:  []string{"sh", "-c", script},
		LogPath:  "app/0.log",
		Labels:   map[string]string{"bench": "true"},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: p.config.Linux.SecurityContext.NamespaceOptions.Network, Pid: cri.NamespaceMode_CONTAINER,
			}},
		},
	}
	c, err := p.e.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	p.app = c.ContainerId
	if _, err := p.e.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.app}); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return nil
}

// startOne starts an idle pod and waits for its first log line.
func (b *bench) startOne(ctx context.Context, e *engine, host bool, handler string) (*pod, error) {
	p, err := b.newPod(e, host, handler)
	if err != nil {
		return nil, err
	}
	if err := p.run(ctx, busybox, idle); err != nil {
		return p, err
	}
	text, err := p.log.await(ctx, func(text string) bool { return strings.HasSuffix(text, "\n") })
	if err == nil && !strings.HasSuffix(text, " stdout F started\n") {
		err = fmt.Errorf("the log of pod %s says %q", p.id, text)
	}
	return p, err
}

// start starts so many idle pods, some at a time.
func (b *bench) start(ctx context.Context, e *engine, pods, atATime int) error {
	var g errgroup.Group
	g.SetLimit(atATime)
	for range pods {
		g.Go(func() error {
			_, err := b.startOne(ctx, e, false, "")
			return err
		})
	}
	return g.Wait()
}

func (p *pod) stop(ctx context.Context) error {
	if _, err := p.e.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	return nil
}

func (p *pod) remove(ctx context.Context) error {
	defer p.log.close()
	if _, err := p.e.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return os.RemoveAll(p.config.LogDirectory)
}

// removeAll removes all pods of the run, eight at a time.
func (b *bench) removeAll(ctx context.Context, e *engine) error {
	list, err := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"bench": "true"}}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, s := range list.Items {
		g.Go(func() error {
			if _, err := e.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				return fmt.Errorf("stop pod: %w", err)
			}
			if _, err := e.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				return fmt.Errorf("remove pod: %w", err)
			}
			return os.RemoveAll(filepath.Join(b.scratch, s.Metadata.Uid))
		})
	}
	return g.Wait()
}

// checkGone makes sure that nothing is left of what was measured: an engine that
// says "removed" before it did the work would look fast.
func (b *bench) checkGone(ctx context.Context, e *engine) error {
	pods, podErr := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	apps, appErr := e.ListContainers(ctx, &cri.ListContainersRequest{})
	if err := errors.Join(podErr, appErr); err != nil {
		return err
	}
	running, err := payloads()
	if err != nil {
		return err
	}
	if n, m := len(pods.Items), len(apps.Containers); n+m+running > 0 {
		return fmt.Errorf("%d pods, %d containers and %d processes of theirs are left after their removal", n, m, running)
	}
	return nil
}

// exec runs a program in the container and returns what it printed.
func (p *pod) exec(ctx context.Context, argv ...string) (string, error) {
	resp, err := p.e.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.app, Cmd: argv})
	if err != nil {
		return "", fmt.Errorf("exec %q: %w", argv, err)
	}
	if resp.ExitCode != 0 {
		return "", fmt.Errorf("exec %q: exit code %d: %s", argv, resp.ExitCode, resp.Stderr)
	}
	return string(resp.Stdout), nil
}
