package criserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           cri.KubeletAPIVersion,
		RuntimeName:       cri.RuntimeName,
		RuntimeVersion:    s.cfg.Version,
		RuntimeApiVersion: cri.APIVersion,
	}, nil
}

func (s *runtimeService) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "", nil), // whoever is not, does not answer
			condition(runtimeapi.NetworkReady, "NetworkNotReady", s.cfg.Network.Status(ctx)),
		}},
		RuntimeHandlers: s.handlers(),
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true,
			MountOptions:             s.cfg.MountOptions,
		},
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	info, err := s.info(ctx)
	resp.Info = info
	return resp, err
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// handlers lists the default one twice: kubelet looks for it under the empty name.
func (s *Server) handlers() []*runtimeapi.RuntimeHandler {
	var out []*runtimeapi.RuntimeHandler
	for i, h := range s.cfg.Handlers {
		features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces}
		if i == 0 {
			out = append(out, &runtimeapi.RuntimeHandler{Features: features})
		}
		out = append(out, &runtimeapi.RuntimeHandler{Name: h.Name, Features: features})
	}
	return out
}

// knows checks the name of a handler in a request.
func (s *Server) knows(field, handler string) error {
	if handler == "" {
		return nil
	}
	names := make([]string, len(s.cfg.Handlers))
	for i, h := range s.cfg.Handlers {
		if names[i] = h.Name; h.Name == handler {
			return nil
		}
	}
	if why := s.cfg.Off[handler]; why != nil {
		return fmt.Errorf("%s: isolator %s: %w", field, handler, why)
	}
	return fmt.Errorf("%s: no runtime handler %q, there is %s: %w", field, handler, strings.Join(names, ", "), pod.ErrInvalid)
}

// info is for people who ask with crictl info.
func (s *Server) info(ctx context.Context) (map[string]string, error) {
	b, err := json.Marshal(map[string]any{
		"network":       s.cfg.Network.Info(ctx),
		"version":       s.cfg.Version,
		"streamAddress": s.stream.address,
		"requests":      s.active.Load(),
		"pulls":         s.pulls.list(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode info: %w", err)
	}
	return map[string]string{"gantry": string(b)}, nil
}

func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_SYSTEMD},
	}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDRs for network configurations that
// are made from a template.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	list := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if list == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	var cidrs []string
	for c := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(c))
		if err != nil {
			return nil, fmt.Errorf("runtime_config.network_config.pod_cidr: %q is not an address range: %w", c, pod.ErrInvalid)
		}
		cidrs = append(cidrs, p.String())
	}
	s.cfg.Network.SetPodCIDRs(cidrs)
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
