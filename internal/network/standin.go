package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridge and ptp (1.1.1 and others) take the masquerading of a pod's addresses
// down only for the addresses that they find on its interface: without the
// namespace, or the interface, or an address, a firewall chain stays for ever.
// They are shown a stand-in then: a namespace for the time of the call, with an
// interface of the right name that has the address.

// detach runs DEL over the list, and once more with a stand-in for each address
// that the masquerading plugins could not see.
func (c *call) detach(ctx context.Context, list *libcni.NetworkConfigList, rec record, prev types.Result) error {
	netns := c.n.liveNetNS(rec.NetNS)
	lost := c.lostAddresses(list, rec, prev, netns) // DEL releases the leases
	if err := c.delList(ctx, list, rec, prev, netns); err != nil {
		return err
	}
	for _, addr := range lost {
		// The rules may be gone already, and 1.1.1 then fails: an error says little. One
		// address at a time, so that one that is done does not hold the next.
		if err := c.unmasquerade(ctx, list, rec, prev, addr); err != nil {
			c.n.log.Info("masquerading of a pod's address is gone already, or stays", "pod", c.pod, "address", addr, "err", err)
		}
	}
	return nil
}

func (c *call) lostAddresses(list *libcni.NetworkConfigList, rec record, prev types.Result, netns string) []string {
	if !slices.ContainsFunc(list.Plugins, masquerades) || rec.Boot != "" && rec.Boot != c.n.boot {
		return nil // no rule outlives the kernel
	}
	addrs := c.n.addressesOf(list, rec, prev)
	if netns != "" && c.n.sys.checkLink(netns, Result{Interface: InterfaceName, IPs: addrs}) == nil {
		return nil
	}
	return addrs
}

func (c *call) unmasquerade(ctx context.Context, list *libcni.NetworkConfigList, rec record, prev types.Result, addr string) error {
	netns, remove, err := c.n.sys.standIn(InterfaceName, addr)
	if err != nil {
		return err
	}
	defer remove()
	for _, p := range slices.Backward(list.Plugins) {
		if masquerades(p) {
			if _, err := c.plugin(ctx, "DEL", list, p, rec, prev, netns); err != nil {
				return err
			}
		}
	}
	return nil
}

func masquerades(p *libcni.PluginConfig) bool {
	var c struct {
		IPMasq bool `json:"ipMasq"`
	}
	return json.Unmarshal(p.Bytes, &c) == nil && c.IPMasq
}

// addressesOf a pod, as its result or else host-local's files have them.
func (n *Network) addressesOf(list *libcni.NetworkConfigList, rec record, prev types.Result) []string {
	if prev != nil {
		if r, err := result(list, prev); err == nil {
			return r.IPs
		}
	}
	all, err := leases(leaseDirs(n.leaseDir, list), list.Name)
	if err != nil {
		n.log.Warn("not all addresses of a pod may be known", "pod", rec.Pod, "err", err)
	}
	var addrs []string
	for _, l := range all {
		if l.id == string(rec.Pod) {
			addrs = append(addrs, l.addr)
		}
	}
	return addrs
}

// standIn makes the namespace and returns its path. It belongs to a thread that ends with remove, or
// with this process.
func standIn(ifname, addr string) (path string, remove func(), err error) {
	made, done := make(chan error), make(chan struct{})
	onThread(func() { // never unlocked: the thread ends with it
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = standInLink(ifname, addr)
		}
		made <- err
		if err == nil {
			<-done
		}
	})
	if err := <-made; err != nil {
		return "", nil, fmt.Errorf("make a stand-in for a network namespace: %w", err)
	}
	return path, func() { close(done) }, nil
}

// standInLink gives the thread's namespace an interface with the address.
func standInLink(ifname, addr string) error {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	ip, err := netlink.ParseIPNet(netip.PrefixFrom(a, a.BitLen()).String())
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: ifname}, PeerName: "standin"}); err != nil {
		return fmt.Errorf("interface %s: %w", ifname, err)
	}
	link, err := h.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("interface %s: %w", ifname, err)
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	return nil
}
