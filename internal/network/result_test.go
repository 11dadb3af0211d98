package network

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"
)

func readResult(t testing.TB, raw string) (Result, error) {
	t.Helper()
	list, err := parseSaved([]byte(twoPlugins))
	if err != nil {
		t.Fatal(err)
	}
	r, err := create.CreateFromBytes([]byte(raw))
	if err != nil {
		return Result{}, err
	}
	res, err := result(list, r)
	res.Raw, res.ConfList = nil, nil
	return res, err
}

const links = `"interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "02:00:00:00:00:0a", "sandbox": "/ns"}, {"name": "net1", "sandbox": "/ns"}]`

func TestResults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		raw  string
		want Result
	}{
		"dual stack": {
			`{"cniVersion": "1.0.0", ` + links + `, "ips": [{"interface": 1, "address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"interface": 1, "address": "fd00::2/64", "gateway": "fd00::1"}]}`,
			Result{IPs: []string{"10.1.0.2", "fd00::2"}, MAC: "02:00:00:00:00:0a", Gateways: []string{"10.1.0.1", "fd00::1"}},
		},
		"IPv6 first stays first": {
			`{"cniVersion": "1.0.0", "ips": [{"address": "fd00::2/64"}, {"address": "10.1.0.2/24"}]}`,
			Result{IPs: []string{"fd00::2", "10.1.0.2"}},
		},
		"another interface's address": {
			`{"cniVersion": "1.0.0", ` + links + `, "ips": [{"interface": 2, "address": "10.9.0.2/24"}, {"interface": 1, "address": "10.1.0.2/24"}]}`,
			Result{IPs: []string{"10.1.0.2"}, MAC: "02:00:00:00:00:0a"},
		},
		"old result": {
			`{"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}}`,
			Result{IPs: []string{"10.1.0.2"}, Gateways: []string{"10.1.0.1"}},
		},
		"a single address": {
			`{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/32"}]}`,
			Result{IPs: []string{"10.1.0.2"}},
		},
	} {
		c.want.Interface = "eth0"
		if got, err := readResult(t, c.raw); err != nil || !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v %s", name, err, cmp.Diff(c.want, got))
		}
	}
	for name, raw := range map[string]string{
		"none":              `{"cniVersion": "1.0.0", "ips": []}`,
		"loopback":          `{"cniVersion": "1.0.0", "ips": [{"address": "127.0.0.1/8"}]}`,
		"unspecified":       `{"cniVersion": "1.0.0", "ips": [{"address": "0.0.0.0/0"}]}`,
		"multicast":         `{"cniVersion": "1.0.0", "ips": [{"address": "224.0.0.1/24"}]}`,
		"broadcast":         `{"cniVersion": "1.0.0", "ips": [{"address": "255.255.255.255/32"}]}`,
		"empty mask":        `{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/0"}]}`,
		"twice":             `{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}, {"address": "10.0.0.1/16"}]}`,
		"no such interface": `{"cniVersion": "1.0.0", "ips": [{"interface": 7, "address": "10.0.0.1/24"}]}`,
		"null address":      `{"cniVersion": "1.0.0", "ips": [null]}`,
		"only another's":    `{"cniVersion": "1.0.0", ` + links + `, "ips": [{"interface": 0, "address": "10.0.0.1/24"}]}`,
		"bad MAC":           `{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/ns", "mac": "x"}], "ips": [{"address": "10.0.0.1/24"}]}`,
		"unknown version":   `{"cniVersion": "8.0.0", "ips": [{"address": "10.0.0.1/24"}]}`,
	} {
		if got, err := readResult(t, raw); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzResult(f *testing.F) {
	f.Add(`{"cniVersion": "1.0.0", ` + links + `, "ips": [{"interface": 1, "address": "10.1.0.2/24", "gateway": "10.1.0.1"}]}`)
	f.Add(`{"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24"}}`)
	f.Add(`{"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::2/64"}], "dns": {}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := readResult(t, raw)
		if err != nil {
			return
		}
		if len(r.IPs) == 0 {
			t.Fatal("no address and no error")
		}
		for _, s := range append(r.IPs, r.Gateways...) {
			if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
				t.Fatalf("address %q", s)
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSplit: what may hold a token is in the private part, and both together are
// the whole.
func TestSplit(t *testing.T) {
	t.Parallel()
	whole := Result{
		IPs: []string{"10.0.0.2"}, Interface: "eth0", MAC: "02:00:00:00:00:01", Gateways: []string{"10.0.0.1"}, Boot: "b",
		Raw: json.RawMessage(`{"a":1}`), ConfList: json.RawMessage(`{"token":"secret"}`),
	}
	public, private := whole.Split()
	var got Result
	for _, part := range []Result{public, private} {
		data, err := json.Marshal(part)
		if err == nil {
			err = json.Unmarshal(data, &got)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(whole, got); diff != "" {
		t.Error(diff)
	}
	if data, err := json.Marshal(public); err != nil || strings.Contains(string(data), "secret") {
		t.Errorf("the public part is %s, %v", data, err)
	}
}
