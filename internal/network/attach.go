package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"gantry/internal/pod"
)

// Add brings up the pod's loopback interface and attaches the pod to the network.
// If it fails, what was done is undone before it returns; what could not be
// undone stays in the journal, for Del and GC. What an earlier Add of the same
// pod left is taken down first.
func (n *Network) Add(ctx context.Context, a Attachment) (Result, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	r, err := n.add(ctx, a)
	return r, failed("add", start, err)
}

func (n *Network) timeUp() error {
	return fmt.Errorf("took longer than %s: %w", n.cfg.Timeout, context.DeadlineExceeded)
}

func (n *Network) add(ctx context.Context, a Attachment) (Result, error) {
	if err := checkID(a.Pod); err != nil {
		return Result{}, err
	}
	st := n.load(ctx)
	if st.list == nil {
		return Result{}, st.unready(ctx)
	}
	cidrs := n.cidrs()
	if err := cidrsReady(st, cidrs); err != nil {
		return Result{}, err
	}
	caps, err := capabilities(a, cidrs)
	if err != nil {
		return Result{}, err
	}
	if u := unheard(st.list, caps); len(u) > 0 {
		n.log.Warn("no plugin of the network takes what the pod asks for", "pod", a.Pod, "file", st.file, "capabilities", u)
	}
	if n.readRecord(a.Pod) != nil {
		if err := n.del(ctx, a, nil); err != nil {
			return Result{}, fmt.Errorf("undo an earlier attempt: %w", err)
		}
	}
	if err := n.sys.loopbackUp(a.NetNS); err != nil {
		return Result{}, err
	}
	rec := record{Pod: a.Pod, NetNS: a.NetNS, Boot: n.boot, Args: cniArgs(a), Capabilities: caps, ConfList: st.list.Bytes}
	if err := n.beginRecord(ctx, rec); err != nil {
		return Result{}, err
	}
	c := &call{n: n, op: "add", pod: a.Pod, lock: a.Lock}
	got, err := c.addList(ctx, st.list, rec)
	var res Result
	if err == nil {
		res, err = result(st.list, got)
	}
	if err == nil {
		rec.Raw, res.Boot = res.Raw, n.boot
		err = n.writeRecord(rec)
	}
	if err != nil {
		return Result{}, n.undo(ctx, a, st.list, rec, got, err)
	}
	return res, nil
}

// undo takes down what a failed Add left. The caller's context may be over: the
// time for it is its own.
func (n *Network) undo(ctx context.Context, a Attachment, list *libcni.NetworkConfigList, rec record, got types.Result, why error) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), n.cfg.Timeout/2,
		fmt.Errorf("took longer than %s: %w", n.cfg.Timeout/2, context.DeadlineExceeded))
	defer cancel()
	if err := n.recordPart(list, rec, got); err != nil {
		n.log.Warn("journal of an attachment stays without what was achieved", "pod", a.Pod, "err", err)
	}
	c := &call{n: n, op: "del", pod: a.Pod, lock: a.Lock}
	if err := c.detach(ctx, list, rec, got); err != nil {
		return fmt.Errorf("%w; and undo: %w", why, err)
	}
	if err := n.removeRecord(a.Pod); err != nil {
		return fmt.Errorf("%w; and undo: %w", why, err)
	}
	return why
}

// recordPart notes how far an Add got. Should the undoing be cut off when leases
// and interface are gone already, only this tells the addresses of which firewall
// rules are left.
func (n *Network) recordPart(list *libcni.NetworkConfigList, rec record, got types.Result) error {
	if got == nil {
		return nil
	}
	part, err := result(list, got)
	if err != nil {
		return err
	}
	rec.Raw = part.Raw
	return n.writeRecord(rec)
}

// Del takes the pod off the network. It is idempotent and needs neither the
// network namespace nor the journal nor saved, but what it has of them makes it
// thorough.
func (n *Network) Del(ctx context.Context, a Attachment, saved *Result) error {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	if err := checkID(a.Pod); err != nil {
		return failed("del", start, err)
	}
	done, unlock, err := n.alone(ctx, a.Pod)
	if err != nil || done {
		return failed("del", start, err)
	}
	defer unlock()
	return failed("del", start, n.del(ctx, a, saved))
}

func (n *Network) del(ctx context.Context, a Attachment, saved *Result) error {
	list, rec, prev, err := n.recall(ctx, a, saved)
	if err != nil {
		return err
	}
	if list != nil {
		c := &call{n: n, op: "del", pod: a.Pod, lock: a.Lock}
		if err := c.detach(ctx, list, rec, prev); err != nil {
			return err
		}
	}
	return n.removeRecord(a.Pod)
}

// DelUnrecorded is Del for a pod of which no record tells that it was attached: it
// never was, or was detached before, or its records are lost. While its namespace is
// there the present network takes away what it knows of it. That is all that can be
// done: a configuration that is broken now must not keep a pod from being removed.
func (n *Network) DelUnrecorded(ctx context.Context, a Attachment) {
	if n.liveNetNS(a.NetNS) == "" {
		return
	}
	if err := n.Del(ctx, a, nil); err != nil {
		n.log.Warn("a network that no record tells of is not given back", "pod", a.Pod, "err", err)
	}
}

// recall finds out how the pod was attached. A nil list means that nobody knows
// of any network.
func (n *Network) recall(ctx context.Context, a Attachment, saved *Result) (*libcni.NetworkConfigList, record, types.Result, error) {
	rec := record{Pod: a.Pod, NetNS: a.NetNS, Args: cniArgs(a)}
	journal := n.readRecord(a.Pod)
	switch {
	case journal != nil:
		rec = *journal
		if a.NetNS != "" {
			rec.NetNS = a.NetNS
		}
	default:
		// A broken annotation must not stand in the way of a teardown.
		if caps, err := capabilities(a, n.cidrs()); err == nil {
			rec.Capabilities = caps
		}
	}
	if saved != nil && len(saved.ConfList) > 0 {
		rec.ConfList, rec.Raw, rec.Boot = saved.ConfList, saved.Raw, saved.Boot
	}
	if len(rec.ConfList) == 0 {
		st := n.load(ctx)
		if st.list == nil && len(st.rejected) > 0 {
			return nil, rec, nil, st.unready(ctx) // there is a network, but not now
		}
		return st.list, rec, nil, st.err
	}
	list, err := parseSaved(rec.ConfList)
	if err != nil {
		return nil, rec, nil, fmt.Errorf("read saved configuration: %w", err)
	}
	prev, err := parseResult(list, rec.Raw)
	if err != nil {
		n.log.Warn("saved result is not handed to the plugins", "pod", a.Pod, "err", err)
	}
	return list, rec, prev, nil
}

// Check finds out whether the attachment is as Add left it: first with our own
// eyes, then with those of the plugins, if they know CHECK (CNI 0.4).
//
// What we see ourselves (the namespace, the interface, its addresses) is a
// pod.ErrState: the pod has no network. What only a plugin complains about is not,
// and no reason to take a pod down.
func (n *Network) Check(ctx context.Context, a Attachment, saved *Result) error {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	return failed("check", start, n.check(ctx, a, saved))
}

func (n *Network) check(ctx context.Context, a Attachment, saved *Result) error {
	if err := checkID(a.Pod); err != nil {
		return err
	}
	if saved == nil && n.readRecord(a.Pod) == nil {
		return fmt.Errorf("pod %s is not attached: %w", a.Pod, pod.ErrState)
	}
	if n.liveNetNS(a.NetNS) == "" {
		return fmt.Errorf("network namespace %s is gone: %w", a.NetNS, pod.ErrState)
	}
	list, rec, prev, err := n.recall(ctx, a, saved)
	if err != nil {
		return err
	}
	if prev == nil {
		return fmt.Errorf("pod %s has no result of its attachment: %w", a.Pod, pod.ErrState)
	}
	res, err := result(list, prev)
	if err != nil {
		return err
	}
	if err := n.sys.checkLink(a.NetNS, res); err != nil {
		return fmt.Errorf("%w: %w", err, pod.ErrState)
	}
	if list.DisableCheck || !knows(list, "0.4.0") {
		return nil
	}
	c := &call{n: n, op: "check", pod: a.Pod, lock: a.Lock}
	for _, p := range list.Plugins {
		if blind(p, rec, res) {
			continue
		}
		if _, err := c.plugin(ctx, "CHECK", list, p, rec, prev, a.NetNS); err != nil {
			return err
		}
	}
	return nil
}

// blind tells a plugin whose CHECK says nothing about this pod. Of version 1.1.1,
// portmap looks for the IPv4 rules in the IPv6 tables and so finds fault with every
// dual-stack pod that has a host port, and bandwidth panics where no limit was asked
// for. For a pod without host ports portmap has nothing to look at.
func blind(p *libcni.PluginConfig, rec record, res Result) bool {
	switch p.Network.Type {
	case "portmap":
		return idle(p, rec) || dualStack(res)
	case "bandwidth":
		_, asked := rec.Capabilities["bandwidth"]
		return !asked
	}
	return false
}

func dualStack(res Result) bool {
	isSix := func(ip string) bool { return strings.Contains(ip, ":") }
	isFour := func(ip string) bool { return !isSix(ip) }
	return slices.ContainsFunc(res.IPs, isSix) && slices.ContainsFunc(res.IPs, isFour)
}

func (n *Network) liveNetNS(path string) string {
	if path == "" || !n.sys.isNetNS(path) {
		return ""
	}
	return path
}

// addList runs the plugins in order. On an error it returns the result of the
// last one that succeeded.
func (c *call) addList(ctx context.Context, list *libcni.NetworkConfigList, rec record) (types.Result, error) {
	var got types.Result
	for _, p := range list.Plugins {
		if got != nil && idle(p, rec) {
			continue
		}
		r, err := c.plugin(ctx, "ADD", list, p, rec, got, rec.NetNS)
		if err != nil {
			return got, err
		}
		got = r
	}
	return got, nil
}

// delList runs the plugins in reverse. It stops at the first that fails: an
// address must not be free again while rules for it are left.
func (c *call) delList(ctx context.Context, list *libcni.NetworkConfigList, rec record, prev types.Result, netns string) error {
	if !knows(list, "0.4.0") {
		prev = nil
	}
	for i := len(list.Plugins) - 1; i >= 0; i-- {
		if rec.Version > 0 && idle(list.Plugins[i], rec) {
			continue // the journal tells that Add did not run it either
		}
		if _, err := c.plugin(ctx, "DEL", list, list.Plugins[i], rec, prev, netns); err != nil {
			return err
		}
	}
	return nil
}

// idle tells of a plugin that has nothing to do for a pod: portmap, where the pod
// has no host port, answers ADD with the result it was given, in every release.
// Starting it for that costs more than all that we do ourselves.
func idle(p *libcni.PluginConfig, rec record) bool {
	const ports = "portMappings"
	_, asked := rec.Capabilities[ports]
	return p.Network.Type == "portmap" && p.Network.Capabilities[ports] && !asked
}

// plugin runs one plugin with its part of the configuration.
func (c *call) plugin(ctx context.Context, command string, list *libcni.NetworkConfigList, p *libcni.PluginConfig, rec record, prev types.Result, netns string) (types.Result, error) {
	name := p.Network.Type
	start := time.Now()
	r, err := c.run(ctx, command, list, p, rec, prev, netns)
	var pe *pluginError
	if err != nil && !errors.As(err, &pe) {
		err = &pluginError{plugin: name, after: time.Since(start), cause: err}
	}
	return r, err
}

func (c *call) run(ctx context.Context, command string, list *libcni.NetworkConfigList, p *libcni.PluginConfig, rec record, prev types.Result, netns string) (types.Result, error) {
	path, err := findPlugin(p.Network.Type, c.n.cfg.BinDirs)
	if err != nil {
		return nil, err
	}
	inject := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if prev != nil {
		inject["prevResult"] = prev
	}
	runtime := map[string]any{}
	for capability, takes := range p.Network.Capabilities {
		if v, ok := rec.Capabilities[capability]; ok && takes {
			runtime[capability] = v
		}
	}
	if len(runtime) > 0 {
		inject["runtimeConfig"] = runtime
	}
	conf, err := libcni.InjectConf(p, inject)
	if err != nil {
		return nil, err
	}
	env := environment(c.env(command, netns, InterfaceName, rec.Args))
	if command == "ADD" {
		return invoke.ExecPluginWithResult(ctx, path, conf.Bytes, env, c)
	}
	return nil, invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, env, c)
}

// environment implements invoke.CNIArgs.
type environment []string

func (e environment) AsEnv() []string { return e }
