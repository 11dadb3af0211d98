package network

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// result reads what the last plugin answered. Nothing in it is believed unseen:
// it becomes the pod's status.
func result(list *libcni.NetworkConfigList, r types.Result) (Result, error) {
	if r == nil {
		return Result{}, fmt.Errorf("no result")
	}
	same, err := r.GetAsVersion(list.CNIVersion)
	if err != nil {
		return Result{}, fmt.Errorf("convert result: %w", err)
	}
	raw, err := json.Marshal(same)
	if err != nil {
		return Result{}, fmt.Errorf("write result: %w", err)
	}
	cur, err := types100.NewResultFromResult(r)
	if err != nil {
		return Result{}, fmt.Errorf("convert result: %w", err)
	}
	res := Result{Interface: InterfaceName, Raw: raw, ConfList: list.Bytes}
	if err := res.readInterfaces(cur); err != nil {
		return Result{}, err
	}
	err = res.readIPs(cur)
	return res, err
}

func (r *Result) readInterfaces(cur *types100.Result) error {
	for _, i := range cur.Interfaces {
		if i == nil || i.Sandbox == "" || i.Name != InterfaceName || i.Mac == "" {
			continue
		}
		mac, err := net.ParseMAC(i.Mac)
		if err != nil {
			return fmt.Errorf("result: MAC of %s: %q is none", InterfaceName, i.Mac)
		}
		r.MAC = mac.String()
	}
	return nil
}

// readIPs takes the addresses of the pod's interface: an address may belong to
// another one, by an index into the interfaces.
func (r *Result) readIPs(cur *types100.Result) error {
	seen := map[netip.Addr]bool{}
	for _, ip := range cur.IPs {
		if ip == nil {
			return fmt.Errorf("result: an address is null")
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(cur.Interfaces) || cur.Interfaces[*i] == nil {
				return fmt.Errorf("result: address %s is of interface %d, which there is not", ip.Address.IP, *i)
			}
			if on := cur.Interfaces[*i]; on.Sandbox == "" || on.Name != InterfaceName {
				continue
			}
		}
		addr, err := podAddress(ip.Address)
		if err != nil {
			return err
		}
		if seen[addr] {
			return fmt.Errorf("result: address %s twice", addr)
		}
		seen[addr] = true
		r.IPs = append(r.IPs, addr.String())
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && !gw.IsUnspecified() {
			r.Gateways = append(r.Gateways, gw.Unmap().String())
		}
	}
	if len(r.IPs) == 0 {
		return fmt.Errorf("result: no address for interface %s", InterfaceName)
	}
	return nil
}

func podAddress(n net.IPNet) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(n.IP)
	addr = addr.Unmap()
	if !ok || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return addr, fmt.Errorf("result: %s cannot be a pod's address", n.IP)
	}
	if ones, bits := n.Mask.Size(); bits != addr.BitLen() || ones == 0 {
		return addr, fmt.Errorf("result: address %s has the mask %s", addr, n.Mask)
	}
	return addr, nil
}

// parseResult reads a stored result, to hand it to plugins again.
func parseResult(list *libcni.NetworkConfigList, raw json.RawMessage) (types.Result, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	r, err := create.CreateFromBytes(raw)
	if err != nil {
		return nil, fmt.Errorf("read saved result: %w", err)
	}
	r, err = r.GetAsVersion(list.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("read saved result: %w", err)
	}
	return r, nil
}
