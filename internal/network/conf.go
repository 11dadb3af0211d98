package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

const maxConfBytes = 1 << 20

// Rejected is a configuration file that was passed over, and why.
type Rejected struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// state is the configuration directory as it was read once.
type state struct {
	dir      string
	file     string                    // of the list that is used
	list     *libcni.NetworkConfigList // nil: no file is valid
	rejected []Rejected
	err      error // the directory could not be read
}

// unready says why there is no network, in one line.
func (s *state) unready(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("read configuration: %w", context.Cause(ctx))
	case s.err != nil:
		return fmt.Errorf("%w: %w", s.err, pod.ErrUnavailable)
	case len(s.rejected) == 0:
		return fmt.Errorf("no network configuration in %s: %w", s.dir, pod.ErrUnavailable)
	}
	why := make([]string, len(s.rejected))
	for i, r := range s.rejected {
		why[i] = r.File + ": " + r.Reason
	}
	return fmt.Errorf("no valid network configuration in %s: %s: %w", s.dir, strings.Join(why, "; "), pod.ErrUnavailable)
}

// load reads the configuration directory: the first valid file in lexical order
// is the network.
func (n *Network) load(ctx context.Context) *state {
	s := &state{dir: n.cfg.ConfDir}
	names, err := confNames(n.cfg.ConfDir)
	if err != nil {
		s.err = err
	}
	for _, name := range names {
		list, err := n.loadFile(ctx, filepath.Join(n.cfg.ConfDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			if _, lerr := os.Lstat(filepath.Join(n.cfg.ConfDir, name)); lerr != nil {
				continue // removed since the directory was listed
			}
		}
		if err != nil {
			s.rejected = append(s.rejected, Rejected{File: name, Reason: err.Error()})
			continue
		}
		s.file, s.list = name, list
		break
	}
	if ctx.Err() == nil { // else a plugin was not even waited for
		n.keep(s)
	}
	return s
}

// keep remembers a state and logs it once if it says something new.
func (n *Network) keep(s *state) {
	line := s.file
	for _, r := range s.rejected {
		line += "\n" + r.File + ": " + r.Reason
	}
	n.mu.Lock()
	changed := line != n.last
	n.state, n.last = s, line
	n.mu.Unlock()
	if !changed {
		return
	}
	for _, r := range s.rejected {
		n.log.Warn("network configuration is passed over", "file", r.File, "reason", r.Reason)
	}
	if s.list != nil {
		n.log.Info("network configuration", "file", s.file, "network", s.list.Name,
			"cniVersion", s.list.CNIVersion, "plugins", pluginTypes(s.list), "statusAndGC", knows(s.list, "1.1.0"))
	}
}

func confNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read network configurations: %w", err)
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

func (n *Network) loadFile(ctx context.Context, path string) (*libcni.NetworkConfigList, error) {
	data, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	c, err := parseConf(data, filepath.Ext(path) == ".conflist")
	if err != nil {
		return nil, err
	}
	if !c.inlineOnly {
		// Since CNI 1.1 a list may be completed by files in a directory of its name.
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), c.name)
		if err != nil {
			return nil, err
		}
		for _, m := range more {
			c.plugins = append(c.plugins, m.Bytes)
		}
	}
	binaries, err := n.findPlugins(c)
	if err != nil {
		return nil, err
	}
	if c.version, err = n.chooseVersion(ctx, c.versions, binaries); err != nil {
		return nil, err
	}
	return c.list()
}

// readRegular reads a small file and refuses what could block or be endless.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxConfBytes)
	}
	return data, nil
}

// conf is a configuration on its way to a list.
type conf struct {
	name       string
	versions   []string // wanted, best last
	version    string   // chosen
	raw        map[string]json.RawMessage
	plugins    []json.RawMessage
	inlineOnly bool
}

// parseConf reads a list, or a single plugin's configuration as a list of one.
func parseConf(data []byte, isList bool) (*conf, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	if _, ok := raw["plugins"]; !ok && !isList {
		single := map[string]json.RawMessage{"plugins": json.RawMessage("[" + string(data) + "]"), "loadOnlyInlinedPlugins": json.RawMessage("true")}
		for _, k := range []string{"name", "cniVersion", "cniVersions"} {
			if v, ok := raw[k]; ok {
				single[k] = v
			}
		}
		raw = single
	}
	whole, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	list, err := libcni.NetworkConfFromBytes(whole) // checks the types of everything
	if err != nil {
		return nil, err
	}
	if verr := utils.ValidateNetworkName(list.Name); verr != nil {
		return nil, fmt.Errorf("network name %q: %s", list.Name, verr.Msg)
	}
	c := &conf{name: list.Name, raw: raw, inlineOnly: list.LoadOnlyInlinedPlugins}
	for _, p := range list.Plugins {
		c.plugins = append(c.plugins, p.Bytes)
	}
	c.versions, err = wantedVersions(raw)
	return c, err
}

// wantedVersions of the CNI protocol, those that we can speak, best last.
func wantedVersions(raw map[string]json.RawMessage) ([]string, error) {
	var head struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
	}
	for k, into := range map[string]any{"cniVersion": &head.CNIVersion, "cniVersions": &head.CNIVersions} {
		if v, ok := raw[k]; ok {
			if err := json.Unmarshal(v, into); err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
		}
	}
	if head.CNIVersion == "" && len(head.CNIVersions) == 0 {
		head.CNIVersion = "0.1.0" // by the specification
	}
	all := version.All.SupportedVersions()
	var can, cannot []string
	for _, v := range append(head.CNIVersions, head.CNIVersion) {
		switch {
		case v == "":
		case slices.Contains(all, v):
			can = append(can, v)
		default:
			cannot = append(cannot, v)
		}
	}
	if len(can) == 0 {
		return nil, fmt.Errorf("cniVersion %s is not supported, only %s", strings.Join(cannot, ", "), strings.Join(all, ", "))
	}
	slices.SortFunc(can, func(a, b string) int { return slices.Index(all, a) - slices.Index(all, b) })
	return slices.Compact(can), nil
}

// list makes the configuration whole: every plugin in line and one version, so
// that it means the same when it is read back years later.
func (c *conf) list() (*libcni.NetworkConfigList, error) {
	var err error
	delete(c.raw, "cniVersions")
	for k, v := range map[string]any{"cniVersion": c.version, "plugins": c.plugins, "loadOnlyInlinedPlugins": true} {
		if c.raw[k], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	data, err := json.Marshal(c.raw)
	if err != nil {
		return nil, err
	}
	return parseSaved(data)
}

// parseSaved reads a list that conf.list made.
func parseSaved(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if verr := utils.ValidateNetworkName(list.Name); verr != nil {
		return nil, fmt.Errorf("network name %q: %s", list.Name, verr.Msg)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("network %s has no plugins", list.Name)
	}
	return list, nil
}

// findPlugins finds the binaries of every plugin and of the address plugins that
// they name.
func (n *Network) findPlugins(c *conf) ([]string, error) {
	var paths []string
	loopback := true
	for _, data := range c.plugins {
		var p types.PluginConf
		if err := json.Unmarshal(data, &p); err != nil {
			return nil, fmt.Errorf("parse plugin: %w", err)
		}
		loopback = loopback && p.Type == "loopback"
		for _, t := range []string{p.Type, p.IPAM.Type} {
			if t == "" {
				continue
			}
			path, err := findPlugin(t, n.cfg.BinDirs)
			if err != nil {
				return nil, err
			}
			paths = append(paths, path)
		}
	}
	switch {
	case len(c.plugins) == 0:
		return nil, fmt.Errorf("no plugins")
	case loopback:
		return nil, fmt.Errorf("only brings up the loopback interface, which every pod has anyway")
	}
	return paths, nil
}

func findPlugin(name string, dirs []string) (string, error) {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("plugin type %q is not a file name", name)
	}
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("plugin %s is not in %s", name, strings.Join(dirs, ", "))
}

func pluginTypes(l *libcni.NetworkConfigList) []string {
	var t []string
	for _, p := range l.Plugins {
		t = append(t, p.Network.Type)
	}
	return t
}

// knows tells whether the list speaks at least this version of the protocol.
func knows(l *libcni.NetworkConfigList, v string) bool {
	ok, err := version.GreaterThanOrEqualTo(l.CNIVersion, v)
	return err == nil && ok
}

// capable tells whether any plugin of the list takes a capability.
func capable(l *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(l.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// wantsPodCIDRs tells whether addresses can only be given once the pod CIDRs are
// known: host-local takes them as a capability and has no ranges of its own.
func wantsPodCIDRs(l *libcni.NetworkConfigList) bool {
	for _, p := range l.Plugins {
		if !p.Network.Capabilities["ipRanges"] || p.Network.IPAM.Type != "host-local" {
			continue
		}
		var c struct {
			IPAM struct {
				Subnet string            `json:"subnet"`
				Ranges []json.RawMessage `json:"ranges"`
			} `json:"ipam"`
		}
		if json.Unmarshal(p.Bytes, &c) == nil && c.IPAM.Subnet == "" && len(c.IPAM.Ranges) == 0 {
			return true
		}
	}
	return false
}
