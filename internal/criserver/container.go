package criserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

func (s *runtimeService) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("config: must not be empty: %w", pod.ErrInvalid)
	}
	// r.SandboxConfig repeats what RunPodSandbox was given; the pod's record counts.
	p, err := s.findPod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if err := s.knowsHandlers(r.Config); err != nil {
		return nil, err
	}
	spec, err := appSpec(r.Config, p.Pod)
	if err != nil {
		return nil, err
	}
	app, err := s.cfg.Engine.CreateApp(ctx, p.ID, spec)
	if errors.Is(err, engine.ErrImageVolume) {
		err = &namedError{crierrors.ErrImageVolumeMountFailed, err}
	}
	if errors.Is(err, engine.ErrRecursiveReadOnly) {
		err = &namedError{crierrors.ErrRROUnsupported, err}
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: string(app.ID)}, nil
}

// knowsHandlers checks the handlers that images are asked for by. Images are the same
// for all of them.
func (s *Server) knowsHandlers(c *runtimeapi.ContainerConfig) error {
	if err := s.knows("config.image.runtime_handler", c.GetImage().GetRuntimeHandler()); err != nil {
		return err
	}
	for i, m := range c.Mounts {
		if err := s.knows(fmt.Sprintf("config.mounts[%d].image.runtime_handler", i), m.GetImage().GetRuntimeHandler()); err != nil {
			return err
		}
	}
	return nil
}

// appSpec translates the request for a container of a pod.
func appSpec(c *runtimeapi.ContainerConfig, p *pod.Pod) (engine.AppSpec, error) {
	switch {
	case c.GetMetadata().GetName() == "":
		return engine.AppSpec{}, fmt.Errorf("config.metadata.name: must not be empty: %w", pod.ErrInvalid)
	case c.GetImage().GetImage() == "":
		return engine.AppSpec{}, fmt.Errorf("config.image.image: must not be empty: %w", pod.ErrInvalid)
	}
	spec := engine.AppSpec{
		Name:        c.Metadata.Name,
		Attempt:     c.Metadata.Attempt,
		Image:       c.Image.Image,
		UserImage:   cri.ImageOf(c.Image).Name,
		Command:     c.Command,
		Args:        c.Args,
		WorkDir:     c.WorkingDir,
		Labels:      c.Labels,
		Annotations: c.Annotations,
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		TTY:         c.Tty,
	}
	sc := c.GetLinux().GetSecurityContext()
	const security = "config.linux.security_context"
	steps := []func() error{
		func() (err error) { spec.Env, err = cri.Env("config.envs", c.Envs); return err },
		func() (err error) { spec.Mounts, err = cri.Mounts("config.mounts", c.Mounts); return err },
		func() (err error) { spec.Devices, err = cri.Devices("config.devices", c.Devices); return err },
		func() (err error) {
			spec.LogPath, err = cri.LogPath("config.log_path", p.LogDirectory, c.LogPath)
			return err
		},
		func() (err error) {
			spec.Resources, err = cri.ContainerResources("config.linux.resources", c.GetLinux().GetResources())
			return err
		},
		func() (err error) {
			spec.Namespaces, err = cri.Namespaces(security+".namespace_options", sc.GetNamespaceOptions(), p.Namespaces)
			return err
		},
		func() (err error) { spec.Security, err = cri.Security(security, sc); return err },
	}
	for _, d := range c.CDIDevices {
		spec.CDI = append(spec.CDI, d.GetName())
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return engine.AppSpec{}, err
		}
	}
	if spec.Security.Privileged && !p.Security.Privileged {
		return engine.AppSpec{}, fmt.Errorf("%s.privileged: the sandbox was not made for privileged containers: %w", security, pod.ErrInvalid)
	}
	who, err := cri.RunAs(security, sc)
	if err != nil {
		return engine.AppSpec{}, err
	}
	spec.User, spec.Group, spec.Groups, spec.GroupsStrict = who.User, who.Group, who.Groups, who.GroupsStrict
	signal, err := cri.StopSignal("config.stop_signal", c.StopSignal)
	if err != nil {
		return engine.AppSpec{}, err
	}
	if signal != 0 {
		spec.StopSignal = strconv.Itoa(signal)
	}
	if spec.WorkDir != "" && spec.WorkDir[0] != '/' {
		return engine.AppSpec{}, fmt.Errorf("config.working_dir: %q is not an absolute path: %w", spec.WorkDir, pod.ErrInvalid)
	}
	return spec, nil
}

func (s *runtimeService) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Engine.StartApp(ctx, a.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (s *runtimeService) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	a, err := s.findApp(r.GetContainerId())
	if err == nil {
		err = s.cfg.Engine.StopApp(ctx, a.ID, grace)
	}
	if err := s.goneApp(err, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// seconds reads a duration of the CRI; more than a century is a century.
func seconds(field string, n int64) (time.Duration, error) {
	const century = 100 * 365 * 24 * 3600
	if n < 0 {
		return 0, fmt.Errorf("%s: %d seconds: %w", field, n, pod.ErrInvalid)
	}
	return time.Duration(min(n, century)) * time.Second, nil
}

func (s *runtimeService) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	a, err := s.findApp(r.GetContainerId())
	if err == nil {
		err = s.cfg.Engine.RemoveApp(ctx, a.ID)
	}
	if err := s.goneApp(err, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *runtimeService) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all, err := s.pods()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainersResponse{}
	for _, a := range cri.Apps(all, r.GetFilter()) {
		resp.Containers = append(resp.Containers, cri.FromApp(a))
	}
	return resp, nil
}

func (s *runtimeService) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: cri.FromAppStatus(a)}
	if r.Verbose {
		resp.Info, err = cri.AppInfo(a)
	}
	return resp, err
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	update, err := cri.Resources("linux", r.GetLinux())
	if err != nil {
		return nil, err
	}
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Engine.UpdateApp(ctx, a.ID, update); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Engine.ReopenLog(ctx, a.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// exitCode narrows an exit code; no process of Linux ends with another.
func exitCode(n int) int32 {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return -1
	}
	return int32(n)
}
