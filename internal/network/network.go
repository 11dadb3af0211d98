// Package network attaches pods to networks with CNI plugins, and takes them off
// again, whatever happened in between.
//
// The order of belief for a teardown is: the Result that the caller saved, the
// journal that Add wrote before it ran the first plugin, the configuration of
// now. A teardown never needs the network namespace: DEL is then called with an
// empty CNI_NETNS, which still releases addresses and host rules.
//
// Plugins are run so that they may outlive us: a plugin that is cut off in the
// middle leaves rules and leases that nobody can name. A killed caller's plugin
// goes on, keeps the caller's lock (Attachment.Lock) until it ends, and
// KillStale ends it when its time is over. While the caller lives, a plugin that
// exceeds its time is killed with everything it started.
package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gantry/internal/pod"
)

// DefaultTimeout bounds one operation over all plugins of a network. A failed Add
// may take it one and a half times: the DEL that follows gets half of it. Both
// together stay below the two minutes that kubelet waits.
const DefaultTimeout = 60 * time.Second

// InterfaceName is the name of the pod's interface, which kubelet expects.
const InterfaceName = "eth0"

// Config says where things are. Empty fields have the defaults named there.
type Config struct {
	ConfDir  string        // /etc/cni/net.d
	BinDirs  []string      // /opt/cni/bin, /usr/lib/cni
	CacheDir string        // /var/lib/gantry/cni
	Timeout  time.Duration // DefaultTimeout
	Log      *slog.Logger

	// Exists tells whether a pod is (still) on disk. GC asks it right before it
	// releases what seems left over, so that a pod made after GC's keep list was
	// taken is safe: its directory is there before its first plugin runs. Nil: the
	// keep list alone decides.
	Exists func(pod.ID) bool
}

// Network runs the plugins of the node's one pod network.
type Network struct {
	cfg      Config
	log      *slog.Logger
	sys      system
	leaseDir string // of host-local, unless a configuration names another
	boot     string // ID of this boot, "" if unknown

	mu       sync.Mutex // guards what follows
	podCIDRs []string
	state    *state               // as last loaded
	watching bool                 // state is kept fresh by Watch
	versions map[string]supported // plugin binary -> what it answered to VERSION
	status   statusAnswer         // last answer of the plugins to STATUS
	last     string               // what was last logged about the configuration
	stop     chan struct{}
	stopped  bool
}

// Attachment names a pod's attachment to the network and what it asks for.
type Attachment struct {
	Pod                  pod.ID
	Name, Namespace, UID string
	NetNS                string // path; may be gone for Del
	Ports                []pod.Port
	DNS                  *pod.DNS
	Annotations          map[string]string

	// Lock, if not nil, is inherited by the plugins: an flock on it stays held until
	// the last of them is gone, also when the caller is killed. Release it with
	// LOCK_UN, not by closing alone: a daemon that a plugin left behind has it too.
	Lock *os.File
}

// Result is what Add achieved. The caller stores it until Del succeeded.
type Result struct {
	IPs       []string `json:"ips,omitempty"` // the first is primary; no masks
	Interface string   `json:"interface,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	Gateways  []string `json:"gateways,omitempty"`
	// Raw is the CNI result and ConfList the configuration that gave it, with every
	// plugin in line: DEL and CHECK use the same.
	Raw      json.RawMessage `json:"raw,omitempty"`
	ConfList json.RawMessage `json:"confList,omitempty"`
	// Boot is the boot in which it was made: what the kernel had of it is gone in
	// another.
	Boot string `json:"boot,omitempty"`
}

// Split parts a Result into what everyone may know and what only root may: a
// configuration may hold tokens. Decoded one over the other they are whole again.
func (r Result) Split() (public, private Result) {
	private = Result{Raw: r.Raw, ConfList: r.ConfList}
	r.Raw, r.ConfList = nil, nil
	return r, private
}

// New returns a Network. It touches nothing yet but reads the pod CIDRs that an
// earlier SetPodCIDRs left.
func New(cfg Config) (*Network, error) {
	if cfg.ConfDir == "" {
		cfg.ConfDir = "/etc/cni/net.d"
	}
	if len(cfg.BinDirs) == 0 {
		cfg.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	if cfg.CacheDir == "" {
		cfg.CacheDir = "/var/lib/gantry/cni"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range append([]string{cfg.ConfDir, cfg.CacheDir}, cfg.BinDirs...) {
		if !filepath.IsAbs(d) {
			return nil, fmt.Errorf("network: directory %q is not absolute: %w", d, pod.ErrInvalid)
		}
	}
	n := &Network{
		cfg: cfg, log: cfg.Log, leaseDir: defaultLeaseDir, boot: bootID(),
		sys:      system{isNetNS: isNetNS, loopbackUp: loopbackUp, checkLink: checkLink, standIn: standIn},
		versions: map[string]supported{}, stop: make(chan struct{}),
	}
	cidrs, err := readPodCIDRs(cfg.CacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Kubelet sends them again when they change; a torn file must not keep the
		// engine down.
		n.log.Warn("pod CIDRs are forgotten", "err", err)
	}
	n.podCIDRs = cidrs
	return n, nil
}

// Close ends Watch. Plugins that run are left alone.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.stopped {
		n.stopped = true
		close(n.stop)
	}
}

// bootID is "" where the kernel does not tell.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
