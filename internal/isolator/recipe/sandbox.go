package recipe

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// The pod's files, below its directory.
const (
	HostnameFile = "files/hostname"
	ResolvFile   = "files/resolv.conf"
	HostsFile    = "files/hosts"
)

// podStopTime bounds the teardown of a pod: CNI plugins may hang.
const podStopTime = time.Minute

// Sandbox plans a pod: the files that its apps see, the slice if no kubelet made
// one, the holder of a shared PID namespace, and the pod's unit.
func (r Recipe) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	if err := r.checkSandbox(in); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	units, err := r.podUnits(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	plan := isolator.Plan{Files: podFiles(in.Pod), Units: units}
	return plan, Valid(plan.Units)
}

// Valid refuses units that systemd would not take.
func Valid(units []unit.Unit) error {
	for _, u := range units {
		if err := u.Validate(); err != nil {
			return fmt.Errorf("%w: %w", err, pod.ErrInvalid)
		}
	}
	return nil
}

func (r Recipe) checkSandbox(in isolator.Sandbox) error {
	if in.Pod == nil {
		return Invalid("no pod")
	}
	p := in.Pod
	if _, err := pod.ParseID(string(p.ID)); err != nil {
		return err
	}
	for _, dir := range []string{in.Dir.Pod, in.Dir.Run} {
		if err := CheckPath(dir); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	if err := r.Features.CheckPod(p); err != nil {
		return err
	}
	return r.checkPod(p)
}

// checkPod checks what a pod's and an app's plan both rest on.
func (r Recipe) checkPod(p *pod.Pod) error {
	if err := unit.ValidName(p.Slice); err != nil || !strings.HasSuffix(p.Slice, ".slice") {
		return Invalid("slice %q is no slice unit", p.Slice)
	}
	if err := checkNamespaces(p.Namespaces); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	if err := r.checkSysctls(p); err != nil {
		return err
	}
	for _, f := range []struct{ field, text string }{{"hostname", p.Hostname}, {"name", p.Name}, {"namespace", p.Namespace}} {
		if strings.ContainsFunc(f.text, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return Invalid("%s %q has blanks or control characters", f.field, f.text)
		}
	}
	return checkDNS(p.DNS)
}

func checkDNS(d *pod.DNS) error {
	if d == nil {
		return nil
	}
	for _, s := range d.Servers {
		if _, err := netip.ParseAddr(s); err != nil {
			return Invalid("dns server %q is no address", s)
		}
	}
	for _, s := range slices.Concat(d.Searches, d.Options) {
		if s == "" || strings.ContainsAny(s, " \t\n\r\x00") {
			return Invalid("dns word %q is empty or has blanks", s)
		}
	}
	return nil
}

func checkNamespaces(n pod.Namespaces) error {
	for _, f := range []struct {
		field string
		mode  pod.NamespaceMode
	}{{"network", n.Network}, {"ipc", n.IPC}} {
		if f.mode != pod.NamespacePod && f.mode != pod.NamespaceNode {
			return Invalid("%s %q: want pod or node", f.field, f.mode)
		}
	}
	if n.PID != pod.NamespacePod && n.PID != pod.NamespaceNode && n.PID != pod.NamespaceApp {
		return Invalid("pid %q: want pod, app or node", n.PID)
	}
	if n.User == nil {
		return nil
	}
	if n.Network == pod.NamespaceNode || n.IPC == pod.NamespaceNode || n.PID == pod.NamespaceNode {
		return fmt.Errorf("a user namespace with a host's network, pid or ipc namespace: %w", pod.ErrUnsupported)
	}
	return errors.Join(checkUserMaps("uids", n.User.UIDs), checkUserMaps("gids", n.User.GIDs))
}

func checkUserMaps(field string, ms []pod.IDMap) error {
	if err := CheckMaps(ms); err != nil {
		return fmt.Errorf("user: %s: %w", field, err)
	}
	if !Mapped(ms, 0) {
		return Invalid("user: %s: 0 is not mapped", field)
	}
	return nil
}

// CheckMaps refuses what the kernel would.
func CheckMaps(ms []pod.IDMap) error {
	for _, m := range ms {
		end := max(uint64(m.Container), uint64(m.Host)) + uint64(m.Length)
		if m.Length == 0 || end >= 1<<32 {
			return Invalid("mapping %d %d %d is empty or too large", m.Container, m.Host, m.Length)
		}
	}
	return nil
}

// Mapped tells whether maps have an ID of the pod.
func Mapped(ms []pod.IDMap, id uint32) bool {
	return slices.ContainsFunc(ms, func(m pod.IDMap) bool {
		return id >= m.Container && uint64(id) < uint64(m.Container)+uint64(m.Length)
	})
}

// checkSysctls refuses what would change the host. The engine sets the rest when it makes
// the namespaces, but in a kernel of the pod's own, which it may change as it likes.
func (r Recipe) checkSysctls(p *pod.Pod) error {
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		node := false
		switch {
		case strings.ContainsAny(name, "/\x00\n ") || strings.Contains(name, ".."):
			return Invalid("sysctl %q: want a name with dots", name)
		case strings.HasPrefix(name, "net."):
			node = p.Namespaces.Network == pod.NamespaceNode
		case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"),
			strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
			node = p.Namespaces.IPC == pod.NamespaceNode
		case !r.Features.OwnKernel:
			return Invalid("sysctl %s: is not of a namespace", name)
		}
		if node {
			return Invalid("sysctl %s: the pod uses the node's namespace", name)
		}
		if strings.ContainsRune(p.Sysctls[name], 0) {
			return Invalid("sysctl %s: value has a NUL", name)
		}
	}
	return nil
}

// podFiles are what apps see in /etc. Who made the pod decides about /etc/hosts:
// kubelet keeps its own.
func podFiles(p *pod.Pod) []isolator.File {
	var files []isolator.File
	add := func(path, text string) {
		files = append(files, isolator.File{Path: path, Mode: 0o644, Data: []byte(text)})
	}
	if p.Hostname != "" {
		add(HostnameFile, p.Hostname+"\n")
	}
	if HasHosts(p) {
		add(HostsFile, hosts(p.Hostname))
	}
	if p.DNS != nil {
		add(ResolvFile, resolvConf(p.DNS))
	}
	return files
}

// HasHosts tells whether the pod gets an /etc/hosts of ours.
func HasHosts(p *pod.Pod) bool { return p.Owner == pod.OwnerCLI && !p.HostNetwork() }

// hosts names the pod by a loopback address: the plan is made before the network
// gives it another one.
func hosts(hostname string) string {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if hostname != "" {
		text += "127.0.1.1\t" + hostname + "\n"
	}
	return text
}

func resolvConf(d *pod.DNS) string {
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String()
}

func (r Recipe) podUnits(in isolator.Sandbox) ([]unit.Unit, error) {
	p := in.Pod
	var units []unit.Unit
	if p.CgroupParent == "" {
		slice, err := podSlice(p)
		if err != nil {
			return nil, err
		}
		units = append(units, slice)
	}
	if p.Namespaces.PID == pod.NamespacePod && !r.Features.OwnKernel {
		units = append(units, r.holder(in))
	}
	var needs unit.Strings
	for _, u := range units {
		needs = append(needs, u.Name)
	}
	return append(units, r.podUnit(in, needs)), nil
}

// podSlice is the slice of a pod that no kubelet made one for. It goes away with
// the last unit that needs it, or when the pod is forgotten.
func podSlice(p *pod.Pod) (unit.Unit, error) {
	u := unit.Unit{Name: p.Slice, Properties: []unit.Property{
		{Name: "Description", Value: unit.String("Pod " + Describe(p.Namespace, p.Name))},
		{Name: "StopWhenUnneeded", Value: unit.Bool(true)},
		{Name: "IgnoreOnIsolate", Value: unit.Bool(true)},
	}}
	if p.Resources == nil {
		return u, nil
	}
	props, files, err := Resources(*p.Resources)
	if err != nil {
		return u, err
	}
	for _, f := range files {
		if f.Name != "cpu.max" { // the property is as good, to a hundredth of a CPU
			return u, fmt.Errorf("pod resources: %s, which systemd has no property for: %w", f.Name, pod.ErrUnsupported)
		}
	}
	u.Properties = append(u.Properties, props...)
	return u, nil
}

// holder is the process that holds a shared PID namespace. It lives in the pod's
// slice: the kernel makes it part of the pod, so the pod pays for it.
func (r Recipe) holder(in isolator.Sandbox) unit.Unit {
	p := in.Pod
	return unit.Unit{Name: unit.Holder(string(p.ID)), Properties: []unit.Property{
		{Name: "Description", Value: unit.String("PID namespace of pod " + Describe(p.Namespace, p.Name))},
		{Name: "Slice", Value: unit.String(p.Slice)},
		// Forking: the holder must be a child of PID 1 before it becomes the main
		// process, or PID 1 does not see its end.
		{Name: "Type", Value: unit.String("forking")},
		{Name: "ExecStart", Value: unit.Commands{r.hold(in)}},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "StopWhenUnneeded", Value: unit.Bool(true)},
		{Name: "IgnoreOnIsolate", Value: unit.Bool(true)},
		{Name: "OOMScoreAdjust", Value: unit.Int32(holderOOMScore)},
		{Name: "TimeoutStopUSec", Value: unit.Duration(10 * time.Second)},
	}}
}

// hold starts the holder in the pod's other namespaces: an app that gets hold of it
// finds nothing there that it has not anyway.
func (r Recipe) hold(in isolator.Sandbox) unit.Command {
	n, hold := in.Pod.Namespaces, r.Run("hold")
	enter := []string{nsenter}
	add := func(kind, pin string) { enter = append(enter, "--"+kind+"="+path.Join(in.Dir.Run, pin)) }
	if n.User != nil {
		// The namespace must belong to the pod's own users, or their root could not
		// mount a /proc of it.
		add("user", UserPin)
	}
	if !in.Pod.HostNetwork() {
		add("net", NetPin)
		add("uts", UTSPin)
	}
	if n.IPC != pod.NamespaceNode {
		add("ipc", IPCPin)
	}
	if len(enter) == 1 {
		return hold
	}
	enter = append(enter, "--", hold.Path)
	return unit.Command{Path: nsenter, Args: append(enter, hold.Args[1:]...)}
}

// Where the pod's namespaces are pinned, below its run directory.
const UserPin, NetPin, UTSPin, IPCPin = "user", "net", "uts", "ipc"

// nsenter enters the pod's namespaces for the holder: a program with threads, as ours
// are, cannot do that with users.
const nsenter = "/usr/bin/nsenter"

// holderOOMScore is what kubelet gave the process that used to hold namespaces:
// killing it frees nothing and ends the pod.
const holderOOMScore = -998

func (r Recipe) podUnit(in isolator.Sandbox, needs unit.Strings) unit.Unit {
	p := in.Pod
	u := unit.Unit{Name: unit.Pod(string(p.ID)), Properties: []unit.Property{
		{Name: "Description", Value: unit.String("Network of pod " + Describe(p.Namespace, p.Name))},
		{Name: "Slice", Value: unit.String(unit.Slice)},
		{Name: "Type", Value: unit.String("oneshot")},
		{Name: "RemainAfterExit", Value: unit.Bool(true)},
		{Name: "ExecStop", Value: unit.Commands{r.Run("pod-down", in.Dir.Pod)}},
		{Name: "TimeoutStopUSec", Value: unit.Duration(podStopTime)},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "IgnoreOnIsolate", Value: unit.Bool(true)},
		{Name: "SyslogIdentifier", Value: unit.String(syslogName)},
		{Name: "After", Value: append(unit.Strings{"network.target", "dbus.socket"}, needs...)},
	}}
	if len(needs) > 0 {
		u.Properties = append(u.Properties, unit.Property{Name: "Requires", Value: needs})
	}
	return u
}

// syslogName is what our own messages in the journal are found by.
const syslogName = "gantry-init"

// Describe makes a title of names, without what a terminal or a unit file would
// take for more than text.
func Describe(names ...string) string {
	given := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" })
	return strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`\"'%$`, c) {
			return '?'
		}
		return c
	}, strings.Join(given, "/"))
}
