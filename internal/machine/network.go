package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/guest"
	"gantry/internal/pod"
)

const (
	// podInterface is the one that CNI makes.
	podInterface = "eth0"
	// Tap is the end of the machine's network in the pod's network namespace.
	Tap = "tap0"
)

// networkFile, below the pod's directory, is there when the pod has its network.
const networkFile = "network-up"

// Networked tells whoever waits for a machine that its pod has its network.
func Networked(podDir string) error {
	return os.WriteFile(filepath.Join(podDir, networkFile), nil, 0o600)
}

// networked waits for that.
func networked(ctx context.Context, podDir string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, NetworkTime, fmt.Errorf("it is not there within %s", NetworkTime))
	defer cancel()
	const often = 10 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for !disk.Exists(filepath.Join(podDir, networkFile)) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// NetworkTime is how long a machine waits for its pod's network: longer than the engine works
// at a pod (its opTime).
const NetworkTime = 5 * time.Minute

// inNetwork does something in the network namespace of a pod. The thread that enters it is
// left behind.
func inNetwork(run string, do func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f, openErr := os.Open(filepath.Join(run, "net"))
		if openErr != nil {
			err = openErr
			return
		}
		defer f.Close()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err == nil {
			err = do()
		}
	}()
	<-done
	return err
}

// makeTap makes the end of the machine's network, which leads nowhere yet.
func makeTap() error {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: Tap},
		Mode:      netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI,
	}
	if err := netlink.LinkAdd(tap); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", Tap, err)
	}
	return nil
}

// connect sends all that comes on the tap out of the pod's interface, and the other way
// round, in the network namespace that it is called in: the machine has the pod's
// addresses, and CNI need not know of it. It returns what the machine's interface is to be.
func connect() (*guest.Interface, error) {
	pod, err := netlink.LinkByName(podInterface)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", podInterface, err)
	}
	if err := noOther(); err != nil {
		return nil, err
	}
	if err := noRules(); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(Tap)
	if err == nil {
		err = netlink.LinkSetMTU(link, pod.Attrs().MTU)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("set %s up: %w", Tap, err)
	}
	for _, way := range [][2]netlink.Link{{pod, link}, {link, pod}} {
		if err := redirect(way[0], way[1]); err != nil {
			return nil, fmt.Errorf("redirect %s to %s: %w", way[0].Attrs().Name, way[1].Attrs().Name, err)
		}
	}
	return interfaceOf(pod)
}

// noRules refuses a pod that CNI gave rules by which routes are chosen, or tables of them
// beside the main one, which no packet gets to without: its machine would not have them.
func noRules() error {
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list rules of routing: %w", err)
	}
	for _, r := range rules {
		if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT {
			return fmt.Errorf("rule of routing to table %d: %w in a machine", r.Table, pod.ErrUnsupported)
		}
	}
	return nil
}

// noOther refuses a pod that CNI gave another interface, which its machine would not have.
func noOther() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if name == podInterface || name == Tap || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		if slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return !madeByKernel(a.IP) }) {
			return fmt.Errorf("interface %s beside %s: %w in a machine", name, podInterface, pod.ErrUnsupported)
		}
	}
	return nil
}

func redirect(from, to netlink.Link) error {
	at := netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}
	if err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: at}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("take what comes in: %w", err)
	}
	return netlink.FilterReplace(&netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: at.LinkIndex, Parent: at.Handle, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index,
		}},
	})
}

// interfaceOf reads the addresses and routes that CNI gave an interface.
func interfaceOf(link netlink.Link) (*guest.Interface, error) {
	out := &guest.Interface{Name: podInterface, MAC: link.Attrs().HardwareAddr.String(), MTU: link.Attrs().MTU}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		// The machine's kernel makes its own, and those that a router announces.
		if !madeByKernel(a.IP) && a.Flags&unix.IFA_F_PERMANENT != 0 {
			out.Addresses = append(out.Addresses, a.IPNet.String())
		}
	}
	// All of them: one by several gateways is of no single interface.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && madeByKernel(r.Dst.IP) || r.Protocol == unix.RTPROT_RA {
			continue // the machine's kernel makes it, or gets it from a router
		}
		if len(r.MultiPath) > 0 || r.Via != nil {
			return nil, fmt.Errorf("route to %v by several gateways, or one of another family: %w in a machine", r.Dst, pod.ErrUnsupported)
		}
		if r.LinkIndex == link.Attrs().Index {
			out.Routes = append(out.Routes, route(r))
		}
	}
	// A gateway has to be reachable before it is one.
	rank := func(r guest.Route) int { return min(len(r.Via), 1) }
	slices.SortStableFunc(out.Routes, func(a, b guest.Route) int { return rank(a) - rank(b) })
	out.Neighbours, err = neighboursOf(link)
	return out, err
}

// madeByKernel tells of IPv6 addresses that each interface makes for itself. Those of IPv4 that
// look alike are given, as gateways often.
func madeByKernel(ip net.IP) bool { return ip.To4() == nil && ip.IsLinkLocalUnicast() }

// neighboursOf are those that were made known for good: nobody answers who asks for them.
func neighboursOf(link netlink.Link) (out []guest.Neighbour, err error) {
	known, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range known {
		if n.State == netlink.NUD_PERMANENT {
			out = append(out, guest.Neighbour{IP: n.IP.String(), MAC: n.HardwareAddr.String()})
		}
	}
	return out, nil
}

func route(r netlink.Route) guest.Route {
	out := guest.Route{OnLink: r.Flags&unix.RTNH_F_ONLINK != 0, Metric: r.Priority, MTU: r.MTU}
	if r.Src != nil {
		out.Source = r.Src.String()
	}
	if r.Gw != nil {
		out.Via = r.Gw.String()
	}
	switch {
	case r.Dst != nil:
		out.To = r.Dst.String()
	case r.Gw.To4() != nil || r.Family == unix.AF_INET:
		out.To = (&net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}).String()
	default:
		out.To = (&net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}).String()
	}
	return out
}
