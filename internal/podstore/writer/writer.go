// Package writer changes the records of pods on disk. Every change is one rename:
// a directory is made whole in prepare/ and moved into place, and moved into
// garbage/ before it is deleted, so a crash at any moment leaves nothing torn.
package writer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/podstore"
)

// Writer changes records. It may be used by many processes at once: exclusion is
// by flock on a pod's directory.
type Writer struct{ podstore.Reader }

// Open makes the state directory if it is not there and checks its version.
func Open(root string) (*Writer, error) {
	w := &Writer{podstore.Reader{Layout: podstore.Layout{Root: root}}}
	for _, dir := range []string{root, w.Pods(), w.Prepare(), w.Garbage()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("open state directory: %w", err)
		}
	}
	if err := w.CheckVersion(); err != nil {
		return nil, err
	}
	if disk.Exists(w.VersionFile()) {
		return w, nil
	}
	version := strconv.Itoa(podstore.Version) + "\n"
	if err := disk.WriteFile(w.VersionFile(), []byte(version), 0o644); err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return w, nil
}

// Lock takes a pod for oneself. A pod that was removed while one waited is not
// found.
func (w *Writer) Lock(ctx context.Context, id pod.ID) (*disk.Lock, error) {
	lock, err := disk.AcquireLock(ctx, w.Pod(id))
	return w.locked(lock, id, err)
}

// TryLock takes a pod for oneself, or returns disk.ErrLocked at once.
func (w *Writer) TryLock(id pod.ID) (*disk.Lock, error) {
	lock, err := disk.TryLock(w.Pod(id))
	return w.locked(lock, id, err)
}

func (w *Writer) locked(lock *disk.Lock, id pod.ID, err error) (*disk.Lock, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pod %s: %w", id, pod.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if err := w.stillThere(lock, id); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return lock, nil
}

func (w *Writer) stillThere(lock *disk.Lock, id pod.ID) error {
	held, err := lock.File().Stat()
	if err != nil {
		return fmt.Errorf("lock pod %s: %w", id, err)
	}
	now, err := os.Stat(w.Pod(id))
	if err != nil || !os.SameFile(held, now) {
		return fmt.Errorf("pod %s: %w", id, pod.ErrNotFound)
	}
	return nil
}

// File is a file of a directory that is being made.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// CreatePod puts a pod in place and returns it locked.
func (w *Writer) CreatePod(p *pod.Pod, files []File) (*disk.Lock, error) {
	p.Version = podstore.Version
	shown := *p
	shown.Annotations = nil
	record, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", p.ID, err)
	}
	files = append(files, File{podstore.PodFile, record, 0o644})
	if files, err = withAnnotations(files, p.Annotations); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", p.ID, err)
	}
	lock, err := w.create(string(p.ID), w.Pod(p.ID), []dir{{"apps", 0o755}}, files)
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", p.ID, err)
	}
	return lock, nil
}

// withAnnotations adds the file of the annotations: only root may read what is in
// there.
func withAnnotations(files []File, annotations map[string]string) ([]File, error) {
	if len(annotations) == 0 {
		return files, nil
	}
	data, err := json.Marshal(annotations)
	return append(files, File{podstore.AnnotationsFile, data, 0o600}), err
}

// CreateApp puts an app in place, in a pod that the caller has locked.
func (w *Writer) CreateApp(a *pod.App, secret pod.Secret) error {
	a.Version = podstore.Version
	shown := *a
	shown.Annotations = nil
	record, err := json.Marshal(shown)
	if err != nil {
		return fmt.Errorf("create app %s: %w", a.ID, err)
	}
	hidden, err := json.Marshal(secret)
	if err != nil {
		return fmt.Errorf("create app %s: %w", a.ID, err)
	}
	dirs := []dir{
		{podstore.WritableDir, 0o700},
		{podstore.WritableDir + "/upper", 0o755},
		{podstore.WritableDir + "/work", 0o700},
	}
	files := []File{{podstore.AppFile, record, 0o644}, {podstore.SecretFile, hidden, 0o600}}
	if files, err = withAnnotations(files, a.Annotations); err != nil {
		return fmt.Errorf("create app %s: %w", a.ID, err)
	}
	lock, err := w.create(string(a.ID), w.App(a.Pod, a.ID), dirs, files)
	if err != nil {
		return fmt.Errorf("create app %s: %w", a.ID, err)
	}
	return lock.Unlock()
}

type dir struct {
	path string
	mode fs.FileMode
}

// create makes a directory in prepare/, locked so that no gc takes it, and moves
// it into place.
func (w *Writer) create(name, target string, dirs []dir, files []File) (*disk.Lock, error) {
	tmp := filepath.Join(w.Prepare(), name)
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return nil, err
	}
	lock, err := disk.TryLock(tmp)
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	if err := fillAndMove(tmp, target, dirs, files); err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp), lock.Unlock())
	}
	return lock, nil
}

func fillAndMove(tmp, target string, dirs []dir, files []File) error {
	for _, d := range dirs {
		path := filepath.Join(tmp, d.path)
		if err := os.Mkdir(path, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, d.mode); err != nil {
			return err
		}
	}
	all := make([]disk.File, len(files))
	for i, f := range files {
		all[i] = disk.File{Path: filepath.Join(tmp, f.Path), Data: f.Data, Mode: f.Mode}
		if err := os.MkdirAll(filepath.Dir(all[i].Path), 0o755); err != nil {
			return err
		}
	}
	if err := disk.WriteAllNew(all...); err != nil {
		return err
	}
	if err := disk.SyncDir(tmp); err != nil {
		return err
	}
	return disk.Move(tmp, target)
}

// WriteNetwork records what the network gave the pod: what everyone may know, and
// what only root may, which is written first.
func (w *Writer) WriteNetwork(id pod.ID, public, private any) error {
	hidden, err := json.Marshal(private)
	if err != nil {
		return fmt.Errorf("write network record: %w", err)
	}
	shown, err := json.Marshal(public)
	if err != nil {
		return fmt.Errorf("write network record: %w", err)
	}
	return disk.WriteFiles(
		disk.File{Path: filepath.Join(w.Pod(id), podstore.AttachmentFile), Data: hidden, Mode: 0o600},
		disk.File{Path: filepath.Join(w.Pod(id), podstore.NetworkFile), Data: shown, Mode: 0o644},
	)
}

// WriteAttachment records that there is a network to be given back, which is not the
// pod's yet.
func (w *Writer) WriteAttachment(id pod.ID, private any) error {
	hidden, err := json.Marshal(private)
	if err != nil {
		return fmt.Errorf("write network record: %w", err)
	}
	return disk.WriteFile(filepath.Join(w.Pod(id), podstore.AttachmentFile), hidden, 0o600)
}

// RemoveNetwork forgets it, once the network was given back.
func (w *Writer) RemoveNetwork(id pod.ID) error {
	for _, name := range []string{podstore.NetworkFile, podstore.AttachmentFile} {
		err := os.Remove(filepath.Join(w.Pod(id), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove network record: %w", err)
		}
	}
	return nil
}

// WriteResources records limits that replace those the app was created with.
func (w *Writer) WriteResources(a *pod.App, r pod.Resources) error {
	return w.writeJSON(filepath.Join(w.App(a.Pod, a.ID), podstore.ResourcesFile), r)
}

// WritePodResources records sizes that replace those the pod was created with.
func (w *Writer) WritePodResources(id pod.ID, r pod.PodResources) error {
	return w.writeJSON(filepath.Join(w.Pod(id), podstore.ResourcesFile), r)
}

// WriteExit records the end of an app of which systemd left no record, unless
// one is there.
func (w *Writer) WriteExit(a *pod.App, e *pod.Exit) error {
	path := filepath.Join(w.App(a.Pod, a.ID), podstore.ExitFile)
	if disk.Exists(path) {
		return nil
	}
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return disk.WriteOnce(path, data, 0o644)
}

func (w *Writer) writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return disk.WriteFile(path, data, 0o644)
}

// RemovePod takes a pod, with its apps, out of sight and deletes it. Removing
// what is not there is no error.
func (w *Writer) RemovePod(id pod.ID) error { return w.remove(w.Pod(id), "pod-"+string(id)) }

// RemoveApp does the same for one app.
func (w *Writer) RemoveApp(a *pod.App) error {
	return w.remove(w.App(a.Pod, a.ID), "app-"+string(a.ID))
}

func (w *Writer) remove(path, name string) error {
	out := filepath.Join(w.Garbage(), name)
	err := disk.Move(path, out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := os.RemoveAll(out); err != nil {
		return fmt.Errorf("remove %s (it is out of sight; gantry gc tries again): %w", name, err)
	}
	return nil
}

// Leftover is a directory in prepare/ or garbage/ that nobody works on.
type Leftover struct{ Path, Why string }

// Leftovers lists what a crash left behind. A directory that is locked is being
// made right now and is not one.
func (w *Writer) Leftovers() ([]Leftover, error) {
	var out []Leftover
	for _, d := range []struct{ path, why string }{
		{w.Prepare(), "half made: its creation was interrupted"},
		{w.Garbage(), "half deleted: its removal was interrupted"},
	} {
		entries, err := os.ReadDir(d.path)
		if err != nil {
			return nil, fmt.Errorf("list leftovers: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(d.path, e.Name())
			lock, err := disk.TryLock(path)
			if err != nil {
				continue
			}
			out = append(out, Leftover{path, d.why})
			lock.Unlock()
		}
	}
	return out, nil
}

// Sweep deletes a leftover.
func (w *Writer) Sweep(l Leftover) error {
	lock, err := disk.TryLock(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(l.Path), lock.Unlock())
}
