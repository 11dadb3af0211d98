package network

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"gantry/internal/pod"
)

// The annotations that limit a pod's traffic, in bits a second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// cniArgs is what goes into CNI_ARGS. A pod that no Kubernetes knows has none of
// the K8S_ arguments: plugins would look it up in the API.
func cniArgs(a Attachment) [][2]string {
	args := [][2]string{{"IgnoreUnknown", "1"}}
	if a.Namespace == "" {
		return args
	}
	for _, kv := range [][2]string{
		{"K8S_POD_NAMESPACE", a.Namespace},
		{"K8S_POD_NAME", a.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", string(a.Pod)},
		{"K8S_POD_UID", a.UID},
	} {
		// A separator in a value would make up arguments of its own.
		if kv[1] != "" && !strings.ContainsAny(kv[1], ";=\x00") {
			args = append(args, kv)
		}
	}
	return args
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type ipRange struct {
	Subnet string `json:"subnet"`
}

type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

type dnsArgs struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// capabilities is what the pod asks of plugins, by capability. A plugin sees only
// those that its configuration names.
func capabilities(a Attachment, podCIDRs []string) (map[string]any, error) {
	caps := map[string]any{}
	ports, err := portMappings(a.Ports)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	bw, err := bandwidthOf(a.Annotations)
	if err != nil {
		return nil, err
	}
	if bw != (bandwidth{}) {
		caps["bandwidth"] = bw
	}
	if len(podCIDRs) > 0 {
		// One range set for each CIDR: an address of each is given.
		sets := make([][]ipRange, len(podCIDRs))
		for i, c := range podCIDRs {
			sets[i] = []ipRange{{Subnet: c}}
		}
		caps["ipRanges"] = sets
	}
	if d := a.DNS; d != nil && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		caps["dns"] = dnsArgs{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	if len(a.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = a.Annotations
	}
	return caps, nil
}

func portMappings(ports []pod.Port) ([]portMapping, error) {
	if err := pod.CheckPorts(ports); err != nil {
		return nil, err
	}
	var maps []portMapping
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		proto := strings.ToLower(string(p.Protocol))
		if proto == "" {
			proto = string(pod.TCP)
		}
		maps = append(maps, portMapping{HostPort: p.HostPort, ContainerPort: p.PodPort, Protocol: proto, HostIP: p.HostIP})
	}
	return maps, nil
}

// unheard lists what the pod asks for and no plugin of the list takes. Some
// networks do these things on their own, so it is worth a word but no error.
func unheard(l *libcni.NetworkConfigList, caps map[string]any) []string {
	var u []string
	for _, c := range []string{"portMappings", "bandwidth"} {
		if _, ok := caps[c]; ok && !capable(l, c) {
			u = append(u, c)
		}
	}
	return u
}

// Limits that kubelet keeps too: a rate outside them is a slip of the pen.
const (
	minRate = 1_000
	maxRate = 1_000_000_000_000_000
)

func bandwidthOf(annotations map[string]string) (bandwidth, error) {
	var b bandwidth
	for _, a := range []struct {
		key         string
		rate, burst *uint64
	}{
		{ingressAnnotation, &b.IngressRate, &b.IngressBurst},
		{egressAnnotation, &b.EgressRate, &b.EgressBurst},
	} {
		text, ok := annotations[a.key]
		if !ok || text == "" {
			continue
		}
		rate, err := parseQuantity(text)
		if err == nil && (rate < minRate || rate > maxRate) {
			err = fmt.Errorf("outside 1k and 1P")
		}
		if err != nil {
			return b, fmt.Errorf("annotation %s: %q: %w: %w", a.key, text, err, pod.ErrInvalid)
		}
		*a.rate, *a.burst = uint64(rate), burst(uint64(rate))
	}
	return b, nil
}

// burst is how many bits may pass at once before a rate is kept: what 100 ms are
// worth, but a few of the largest packets at least, for the kernel hands down up
// to 64 KiB in one piece. The plugin refuses more than 32 bits of bytes.
func burst(rate uint64) uint64 {
	const (
		least = 8 * 4 * 64 << 10
		most  = math.MaxInt32
	)
	return min(max(rate/10, least), most)
}

// parseQuantity reads a number as Kubernetes writes them: 10M, 1.5Gi, 100e3. A
// fraction is rounded up.
func parseQuantity(s string) (int64, error) {
	num, suffix := s, ""
	if i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != '+' && r != '-' }); i >= 0 {
		num, suffix = s[:i], s[i:]
	}
	if num == "" || len(s) > 64 || strings.LastIndexAny(num, "+-") > 0 {
		return 0, fmt.Errorf("not a quantity")
	}
	v, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, fmt.Errorf("not a quantity")
	}
	scale, err := quantityScale(suffix)
	if err != nil {
		return 0, err
	}
	v.Mul(v, scale)
	q, rest := new(big.Int).QuoRem(v.Num(), v.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	if !q.IsInt64() {
		return 0, fmt.Errorf("too large")
	}
	return q.Int64(), nil
}

func quantityScale(suffix string) (*big.Rat, error) {
	exp := func(base, e int64) *big.Rat {
		p := new(big.Int).Exp(big.NewInt(base), big.NewInt(max(e, -e)), nil)
		if e < 0 {
			return new(big.Rat).SetFrac(big.NewInt(1), p)
		}
		return new(big.Rat).SetInt(p)
	}
	decimal := map[string]int64{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
	if e, ok := decimal[suffix]; ok {
		return exp(10, e), nil
	}
	binary := map[string]int64{"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
	if e, ok := binary[suffix]; ok {
		return exp(2, e), nil
	}
	if strings.HasPrefix(suffix, "e") || strings.HasPrefix(suffix, "E") {
		var e int64
		if _, err := fmt.Sscanf(suffix[1:], "%d", &e); err == nil && fmt.Sprint(e) == strings.TrimPrefix(suffix[1:], "+") && e >= -18 && e <= 18 {
			return exp(10, e), nil
		}
	}
	return nil, fmt.Errorf("unknown suffix %q", suffix)
}
