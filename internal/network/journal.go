package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// record is the journal of one attachment: written before the first plugin runs
// and removed after DEL, so that an Add whose caller was killed can be undone
// with the very configuration it used. It is not fsynced: after a power loss the
// rules and interfaces are gone with the kernel, and leases that survived are
// found by GC in host-local's own files.
type record struct {
	Version      int             `json:"version"`
	Pod          pod.ID          `json:"pod"`
	NetNS        string          `json:"netns"`
	Boot         string          `json:"boot,omitempty"`
	Args         [][2]string     `json:"args"`
	Capabilities map[string]any  `json:"capabilities,omitempty"`
	ConfList     json.RawMessage `json:"confList"`
	Raw          json.RawMessage `json:"raw,omitempty"` // the result, once there is one
}

const recordVersion = 1

func (n *Network) recordDir() string { return filepath.Join(n.cfg.CacheDir, "attachments") }

func (n *Network) recordPath(id pod.ID) string {
	return filepath.Join(n.recordDir(), string(id)+".json")
}

// checkID keeps an ID from meaning anything to a path or a plugin.
func checkID(id pod.ID) error {
	if err := utils.ValidateContainerID(string(id)); err != nil {
		return fmt.Errorf("pod id %q: %s: %w", id, err.Msg, pod.ErrInvalid)
	}
	return nil
}

func (n *Network) writeRecord(r record) error {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := writeFile(n.recordPath(r.Pod), data); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// beginRecord writes the record of an Add that begins. It waits for a garbage
// collection by the plugins, which would not know this pod.
func (n *Network) beginRecord(ctx context.Context, r record) error {
	unlock, err := n.lockGC(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	return n.writeRecord(r)
}

// readRecord returns nil if there is none, or none that can be read.
func (n *Network) readRecord(id pod.ID) *record {
	data, err := os.ReadFile(n.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r := &record{}
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err == nil && (r.Version != recordVersion || r.Pod != id) {
		err = fmt.Errorf("version %d of pod %q", r.Version, r.Pod)
	}
	if err != nil {
		n.log.Warn("journal of an attachment cannot be read", "pod", id, "err", err)
		return nil
	}
	return r
}

// Attached tells whether anything of a pod's attachment may be there: an Add that
// began and was not undone whole has left a record.
func (n *Network) Attached(id pod.ID) bool {
	_, err := os.Lstat(n.recordPath(id))
	return !errors.Is(err, fs.ErrNotExist)
}

// alone keeps two Dels of one pod apart: the end of its unit gives the network back as
// well as who stops the pod, neither waits for the other, and plugins are not made for
// two at a time. The lock is on the record. It tells that the other one has done all.
func (n *Network) alone(ctx context.Context, id pod.ID) (done bool, unlock func(), err error) {
	for waited := false; ; waited = true {
		f, err := os.Open(n.recordPath(id))
		if errors.Is(err, fs.ErrNotExist) {
			return waited, func() {}, nil
		}
		if err != nil {
			return false, nil, fmt.Errorf("lock the attachment: %w", err)
		}
		unlock, at, err := flockOpen(ctx, f, unix.LOCK_EX)
		if err != nil {
			return false, nil, fmt.Errorf("lock the attachment: %w", err)
		}
		now, err := os.Stat(n.recordPath(id))
		if err == nil && os.SameFile(at, now) {
			return false, unlock, nil
		}
		unlock() // it was replaced or removed meanwhile
	}
}

func (n *Network) removeRecord(id pod.ID) error {
	if err := os.Remove(n.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal: %w", err)
	}
	return nil
}

// records lists the pods that have one.
func (n *Network) records() ([]pod.ID, error) {
	entries, err := os.ReadDir(n.recordDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	var ids []pod.ID
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && checkID(pod.ID(id)) == nil {
			ids = append(ids, pod.ID(id))
		}
	}
	return ids, nil
}

// newFile is the pattern of files that are being written.
const newFile = ".new-*"

// writeFile replaces a file in one step. Configurations may hold tokens, so only
// root reads what is made here.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), newFile) // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
