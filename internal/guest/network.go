package guest

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// apply makes the machine's network the pod's.
func (c Connection) apply() error {
	loopback, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(loopback)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if c.Network != nil {
		if err := c.Network.apply(); err != nil {
			return err
		}
	}
	for name, value := range c.Sysctls {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := writeFile(path, value); err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil
}

// apply gives the machine its addresses and routes. They were checked where CNI gave
// them: nothing is tried again here.
func (i *Interface) apply() error {
	link, err := i.find()
	if err != nil {
		return err
	}
	if err := i.configure(link); err != nil {
		return fmt.Errorf("interface %s: %w", i.Name, err)
	}
	for _, n := range i.Neighbours {
		if err := n.add(link); err != nil {
			return fmt.Errorf("neighbour %s: %w", n.IP, err)
		}
	}
	for _, r := range i.Routes {
		if err := r.add(link); err != nil {
			return fmt.Errorf("route to %s by %q: %w", r.To, r.Via, err)
		}
	}
	return nil
}

// find returns the machine's network card: its only interface of that kind.
func (i *Interface) find() (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Type() == "device" && l.Attrs().EncapType == "ether" {
			return l, nil
		}
	}
	return nil, errors.New("there is no network card")
}

func (i *Interface) configure(link netlink.Link) error {
	address, err := net.ParseMAC(i.MAC)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, address); err != nil {
		return fmt.Errorf("hardware address %s: %w", i.MAC, err)
	}
	if i.Name != link.Attrs().Name {
		if err := netlink.LinkSetName(link, i.Name); err != nil {
			return err
		}
	}
	if i.MTU > 0 {
		if err := netlink.LinkSetMTU(link, i.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", i.MTU, err)
		}
	}
	for _, a := range i.Addresses {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		address.Flags = unix.IFA_F_NOPREFIXROUTE // all routes are told
		if address.IP.To4() == nil {             // the host has seen to it that nobody else has it
			address.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func (r Route) add(link netlink.Link) error {
	_, to, err := net.ParseCIDR(r.To)
	if err != nil {
		return err
	}
	route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: net.ParseIP(r.Via), Src: net.ParseIP(r.Source), Priority: r.Metric, MTU: r.MTU}
	if r.OnLink {
		route.Flags = unix.RTNH_F_ONLINK
	}
	if route.Gw == nil {
		if r.Via != "" {
			return fmt.Errorf("%q is no address", r.Via)
		}
		route.Scope = netlink.SCOPE_LINK
	}
	return netlink.RouteReplace(&route)
}

func (n Neighbour) add(link netlink.Link) error {
	address, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	ip := net.ParseIP(n.IP)
	if ip == nil {
		return fmt.Errorf("%q is no address", n.IP)
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip, HardwareAddr: address, State: netlink.NUD_PERMANENT})
}
