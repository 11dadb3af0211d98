package network

import (
	"testing"

	"gantry/internal/pod"
)

func TestQuantity(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"10M": 10_000_000, "10Mi": 10 << 20, "1k": 1000, "1.5G": 1_500_000_000, "100e3": 100_000, "2E6": 2_000_000,
		"12345": 12345, "1500m": 2, "0": 0, "+5k": 5000, ".5k": 500, "1P": 1_000_000_000_000_000, "-1": -1, "1E": 1_000_000_000_000_000_000, "1e-3": 1,
	} {
		if got, err := parseQuantity(s); err != nil || got != want {
			t.Errorf("parseQuantity(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "M", "10MB", "10 M", "1/2", "0x10", "1e", "1e999999999", "10Q", "1_000", "--1", "1-1", "99999999999E", "NaN", "Inf", "1.2.3"} {
		if got, err := parseQuantity(s); err == nil {
			t.Errorf("parseQuantity(%q) = %d", s, got)
		}
	}
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"10M", "1.5Gi", "1e3", "-5", "1/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseQuantity(s) })
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	got, err := bandwidthOf(map[string]string{ingressAnnotation: "1M"})
	if err != nil || got.IngressRate != 1_000_000 || got.IngressBurst == 0 || got.EgressRate != 0 || got.EgressBurst != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, s := range []string{"1", "10P", "fast", "-1M"} {
		_, err := bandwidthOf(map[string]string{egressAnnotation: s})
		wants(t, err, pod.ErrInvalid, "annotation kubernetes.io/egress-bandwidth")
	}
}

func TestCNIArgs(t *testing.T) {
	t.Parallel()
	if got := cniArgs(Attachment{Pod: testPod, Name: "x"}); len(got) != 1 {
		t.Errorf("a pod without a namespace: %v", got)
	}
	got := cniArgs(Attachment{Pod: testPod, Namespace: "ns", Name: "x;K8S_POD_UID=evil"})
	for _, kv := range got {
		if kv[0] == "K8S_POD_NAME" {
			t.Errorf("%v", got)
		}
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for _, p := range []pod.Port{{PodPort: 80, HostPort: -1}, {PodPort: 80, HostPort: 70000}, {PodPort: 0, HostPort: 80}} {
		_, err := portMappings([]pod.Port{p})
		wants(t, err, pod.ErrInvalid)
	}
}
