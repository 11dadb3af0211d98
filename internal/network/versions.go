package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/version"
)

// Asking a plugin which versions of the protocol it speaks costs a process, and a
// one-shot program would pay for it on every run: the answers are kept on disk
// with the identity of the binary.

const (
	versionTimeout = 10 * time.Second
	// versionRetry keeps a plugin that answers nothing from being asked, and waited
	// for, by every caller.
	versionRetry = 30 * time.Second
)

// supported is what one binary answered.
type supported struct {
	Size     int64    `json:"size"`
	Inode    uint64   `json:"inode"`
	MTime    int64    `json:"mtime"`
	Versions []string `json:"versions"`

	err   error
	asked time.Time
}

// chooseVersion finds the best of the wanted versions that every binary speaks.
func (n *Network) chooseVersion(ctx context.Context, wanted, binaries []string) (string, error) {
	var why error
	for _, v := range slices.Backward(wanted) {
		ok := true
		for _, b := range binaries {
			s, err := n.supports(ctx, b)
			if err != nil {
				return "", err
			}
			if !slices.Contains(s, v) {
				ok = false
				why = errors.Join(why, fmt.Errorf("plugin %s speaks cniVersion %s, not %s", filepath.Base(b), strings.Join(s, " "), v))
				break
			}
		}
		if ok {
			return v, nil
		}
	}
	return "", why
}

func (n *Network) supports(ctx context.Context, binary string) ([]string, error) {
	st, err := os.Stat(binary)
	if err != nil {
		return nil, err
	}
	id := supported{Size: st.Size(), MTime: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		id.Inode = sys.Ino
	}
	same := func(s supported) bool { return s.Size == id.Size && s.MTime == id.MTime && s.Inode == id.Inode }

	n.mu.Lock()
	if len(n.versions) == 0 {
		n.versions = readVersions(n.versionsPath())
	}
	s, ok := n.versions[binary]
	n.mu.Unlock()
	if ok && same(s) && (s.err == nil || time.Since(s.asked) < versionRetry) {
		return s.Versions, s.err
	}

	id.Versions, id.err = n.askVersion(ctx, binary)
	id.asked = time.Now()
	if ctx.Err() != nil {
		return nil, id.err // says nothing about the plugin
	}
	n.mu.Lock()
	n.versions[binary] = id
	data, err := json.Marshal(answered(n.versions))
	n.mu.Unlock()
	if err == nil && id.err == nil {
		err = writeFile(n.versionsPath(), data)
	}
	if err != nil {
		n.log.Debug("versions of plugins are not kept", "err", err)
	}
	return id.Versions, id.err
}

func (n *Network) askVersion(ctx context.Context, binary string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	c := call{n: n, op: "version"}
	// Very old plugins insist on these, whatever the command.
	env := c.env("VERSION", "dummy", "dummy", nil)
	out, err := c.ExecPlugin(ctx, binary, []byte(`{"cniVersion":"`+version.Current()+`"}`), env)
	var pe *pluginError
	if errors.As(err, &pe) && pe.msg == "unknown CNI_COMMAND: VERSION" {
		return []string{"0.1.0"}, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := (&version.PluginDecoder{}).Decode(out)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: answer to VERSION: %w", filepath.Base(binary), err)
	}
	return info.SupportedVersions(), nil
}

func (n *Network) versionsPath() string { return filepath.Join(n.cfg.CacheDir, "versions.json") }

func answered(all map[string]supported) map[string]supported {
	ok := make(map[string]supported, len(all))
	for k, v := range all {
		if v.err == nil {
			ok[k] = v
		}
	}
	return ok
}

// readVersions never fails: it is a cache.
func readVersions(path string) map[string]supported {
	m := map[string]supported{}
	if data, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(data, &m) != nil || m == nil {
			return map[string]supported{}
		}
	}
	return m
}
