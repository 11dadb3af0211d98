package pod

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckPorts(t *testing.T) {
	t.Parallel()
	at := func(ip string) Port { return Port{Protocol: TCP, PodPort: 80, HostPort: 8080, HostIP: ip} }
	udp := at("")
	udp.Protocol = UDP
	other := at("")
	other.HostPort = 8081
	for name, c := range map[string]struct {
		a, b Port
		bad  bool
	}{
		"the same":                     {at(""), at(""), true},
		"the same address":             {at("10.0.0.1"), at("10.0.0.1"), true},
		"the same, written otherwise":  {at("fd00::1"), at("fd00:0::0001"), true},
		"the same, IPv4 in IPv6":       {at("10.0.0.1"), at("::ffff:10.0.0.1"), true},
		"no protocol is TCP":           {Port{PodPort: 1, HostPort: 8080}, at(""), true},
		"all and one":                  {at(""), at("10.0.0.1"), true},
		"all and one of IPv6":          {at(""), at("fd00::1"), true},
		"all of IPv4 and one":          {at("0.0.0.0"), at("10.0.0.1"), true},
		"one and all of IPv6":          {at("fd00::1"), at("::"), true},
		"all and all of IPv6":          {at(""), at("::"), true},
		"all of IPv4 and one of IPv6":  {at("0.0.0.0"), at("fd00::1"), false},
		"all of IPv4 and all of IPv6":  {at("0.0.0.0"), at("::"), false},
		"two addresses":                {at("10.0.0.1"), at("10.0.0.2"), false},
		"two protocols":                {at(""), udp, false},
		"two ports":                    {at(""), other, false},
		"two that are not on the host": {Port{PodPort: 80}, Port{PodPort: 80}, false},
		"no port":                      {at(""), Port{PodPort: 0, HostPort: 1}, true},
		"too large a port":             {at(""), Port{PodPort: 80, HostPort: 1 << 16}, true},
		"no address":                   {other, at("localhost"), true},
	} {
		for _, ports := range [][]Port{{c.a, c.b}, {c.b, c.a}} {
			if err := CheckPorts(ports); (err != nil) != c.bad || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := CheckPorts([]Port{at("10.0.0.1"), at("")}); err == nil || !strings.Contains(err.Error(), "port 8080/tcp of the host is mapped twice") {
		t.Errorf("unclear: %v", err)
	}
}
