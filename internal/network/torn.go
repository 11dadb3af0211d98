package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// After a power loss a lease of host-local may be there without its content, for
// host-local syncs nothing. Nobody can release it then, since it is found by its
// content: the address would be lost for ever. A lease without content that is
// older than this boot belongs to nobody, whoever made it.

// gcTorn removes such leases of the networks that we know.
func (n *Network) gcTorn(ctx context.Context, dirs []string, networks map[string]bool) error {
	booted, err := bootTime()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		for name := range networks {
			if dir := filepath.Join(d, name); len(tornLeases(dir, booted)) > 0 {
				errs = append(errs, n.removeTorn(ctx, dir, booted))
			}
		}
	}
	return errors.Join(errs...)
}

// removeTorn looks again under host-local's own lock, and removes.
func (n *Network) removeTorn(ctx context.Context, dir string, booted time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	unlock, err := flock(ctx, filepath.Join(dir, "lock"), unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("lock leases: %w", err)
	}
	defer unlock()
	var errs []error
	for _, path := range tornLeases(dir, booted) {
		n.log.Info("lease that a power loss left empty is removed", "path", path)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove empty lease: %w", err))
		}
	}
	return errors.Join(errs...)
}

// tornLeases lists the leases in a directory that say nothing and are older.
func tornLeases(dir string, than time.Time) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no such network has leases
	}
	var torn []string
	for _, entry := range entries {
		if _, err := netip.ParseAddr(entry.Name()); err != nil {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || !info.ModTime().Before(than) {
			continue
		}
		// Some file systems leave zeros where data was not written yet.
		if data, err := readRegular(path); err == nil && len(bytes.Trim(data, "\x00 \r\n")) == 0 {
			torn = append(torn, path)
		}
	}
	return torn
}

// bootTime is when the kernel was started, by the clock of now.
func bootTime() (time.Time, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("read boot time: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("read boot time: %w", err)
			}
			return time.Unix(seconds, 0), nil
		}
	}
	return time.Time{}, errors.New("read boot time: /proc/stat has no btime")
}
