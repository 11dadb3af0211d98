package pod

import (
	"fmt"
	"net/netip"
)

// CheckPorts refuses mappings that cannot all hold: what is no port or no address,
// and a port of the host that is mapped twice. No plugin sees that: one of the two
// would never be reached.
func CheckPorts(ports []Port) error {
	const last = 1<<16 - 1
	for i, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		if p.HostPort < 0 || p.HostPort > last || p.PodPort <= 0 || p.PodPort > last {
			return fmt.Errorf("port mapping %d to %d: not a port: %w", p.HostPort, p.PodPort, ErrInvalid)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return fmt.Errorf("port mapping %d to %d: host address %q: not an address: %w", p.HostPort, p.PodPort, p.HostIP, ErrInvalid)
		}
		for _, other := range ports[:i] {
			if p.Clashes(other) {
				return fmt.Errorf("port %s of the host is mapped twice, to ports %d and %d of the pod: %w", p.host(), other.PodPort, p.PodPort, ErrInvalid)
			}
		}
	}
	return nil
}

// Clashes tells whether two mappings want the same port of the host.
func (p Port) Clashes(other Port) bool {
	return p.HostPort != 0 && p.HostPort == other.HostPort && p.protocol() == other.protocol() && sameAddress(p.HostIP, other.HostIP)
}

// sameAddress tells whether a packet can be for both addresses: the same one, or
// one that stands for all, of both families ("") or of the other's family.
func sameAddress(a, b string) bool {
	x, y := address(a), address(b)
	switch {
	case !x.IsValid() || !y.IsValid() || x == y:
		return true
	case x.Is4() != y.Is4():
		return false
	}
	return x.IsUnspecified() || y.IsUnspecified()
}

// address is invalid for "": every address of both families.
func address(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

func (p Port) protocol() Protocol {
	if p.Protocol == "" {
		return TCP
	}
	return p.Protocol
}

func (p Port) host() string {
	s := fmt.Sprintf("%d/%s", p.HostPort, p.protocol())
	if p.HostIP != "" {
		s += " at " + p.HostIP
	}
	return s
}
