package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// system is what is done to network namespaces without plugins. Tests without
// root put their own in.
type system struct {
	isNetNS    func(path string) bool
	loopbackUp func(path string) error
	checkLink  func(path string, r Result) error
	standIn    func(ifname, addr string) (path string, remove func(), err error)
}

// isNetNS tells whether a namespace is (still) pinned at path; after a reboot the
// file may be there and be nothing.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNetNS calls fn on a thread that is in the network namespace; "" stays where
// we are. If the thread cannot be brought back it ends with its goroutine.
func inNetNS(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	ns, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	done := make(chan error, 1)
	onThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		err := fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	})
	return <-done
}

// onThread starts fn on a locked thread other than the main one. A locked thread
// ends with its goroutine, and whatever namespace it was in is let go; the main
// thread cannot end, so it would keep the namespace for good, and /proc/<pid> would
// show it as that of the process.
func onThread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		// While this goroutine holds the main thread another one cannot get it.
		begun := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(begun)
			fn()
		}()
		<-begun
		runtime.UnlockOSThread()
	}()
}

// loopbackUp does what the loopback plugin does, without a process.
func loopbackUp(path string) error {
	if path == "" {
		return fmt.Errorf("no network namespace: %w", pod.ErrInvalid)
	}
	err := inNetNS(path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
	if err != nil {
		return fmt.Errorf("bring up loopback interface: %w", err)
	}
	return nil
}

// withLinks calls fn with a netlink socket of the namespace.
func withLinks(path string, fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := inNetNS(path, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE) // stays in the namespace it is made in
		return err
	})
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// checkLink sees whether the pod's interface is up and has its addresses.
func checkLink(path string, r Result) error {
	return withLinks(path, func(h *netlink.Handle) error {
		link, err := h.LinkByName(r.Interface)
		if err != nil {
			return fmt.Errorf("interface %s: %w", r.Interface, err)
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			return fmt.Errorf("interface %s is down", r.Interface)
		}
		addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("interface %s: list addresses: %w", r.Interface, err)
		}
		has := map[string]bool{}
		for _, a := range addrs {
			has[a.IP.String()] = true
		}
		for _, ip := range r.IPs {
			if !has[ip] {
				return fmt.Errorf("interface %s has lost the address %s", r.Interface, ip)
			}
		}
		return nil
	})
}

// LinkStat are the counters of one interface, seen from inside the namespace.
type LinkStat struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// LinkStats lists the interfaces of a network namespace, without lo; "" is our
// own namespace.
func LinkStats(netns string) ([]LinkStat, error) {
	var stats []LinkStat
	err := withLinks(netns, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
				continue
			}
			s := a.Statistics
			stats = append(stats, LinkStat{
				Name:    a.Name,
				RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
				TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("network stats: %w", err)
	}
	return stats, nil
}

// Dial connects to a TCP port on the loopback interface of a network namespace,
// by IPv4, then by IPv6; "" is our own namespace. The connection stays in the
// namespace; the caller's thread never enters it.
func Dial(ctx context.Context, netns string, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("network dial: %d is not a port: %w", port, pod.ErrInvalid)
	}
	var conn net.Conn
	err := inNetNS(netns, func() error {
		// A literal address is dialled on the goroutine's own thread, where the socket
		// takes the namespace from.
		d := net.Dialer{FallbackDelay: -1}
		var err4, err6 error
		if conn, err4 = d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err4 == nil {
			return nil
		}
		if conn, err6 = d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port))); err6 == nil {
			return nil
		}
		return fmt.Errorf("%w, %w", err4, err6)
	})
	if err != nil {
		return nil, fmt.Errorf("network dial: %w", err)
	}
	return conn, nil
}
