// Package podstore reads the records of pods on disk. It never writes and needs
// no privilege: the read-only programs use it, and package writer builds on it.
//
//	<root>/version                   format of everything below, "1"
//	<root>/pods/<id>/pod.json        what was asked for; immutable
//	<root>/pods/<id>/annotations.json 0600: its annotations, which may hold anything
//	<root>/pods/<id>/network.json    what CNI gave; there until CNI took it back
//	<root>/pods/<id>/attachment.json 0600: what CNI needs for that
//	<root>/pods/<id>/apps/<id>/      app.json, run.json, exit.json, resources.json,
//	                                 annotations.json and secret.json (0600), rw/ (0700)
//	<root>/prepare/                  half-made directories
//	<root>/garbage/                  directories on their way out
package podstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gantry/internal/pod"
)

// Version of the format on disk.
const Version = 1

// Layout tells where things are below the state directory.
type Layout struct{ Root string }

// Pods is the directory of all pods.
func (l Layout) Pods() string { return filepath.Join(l.Root, "pods") }

// Pod is the directory of one pod.
func (l Layout) Pod(id pod.ID) string { return filepath.Join(l.Root, "pods", string(id)) }

// Apps is the directory of a pod's apps.
func (l Layout) Apps(id pod.ID) string { return filepath.Join(l.Pod(id), "apps") }

// App is the directory of one app.
func (l Layout) App(p, app pod.ID) string { return filepath.Join(l.Apps(p), string(app)) }

// Prepare is where directories are made before they are moved into place.
func (l Layout) Prepare() string { return filepath.Join(l.Root, "prepare") }

// Garbage is where directories are moved before they are deleted.
func (l Layout) Garbage() string { return filepath.Join(l.Root, "garbage") }

// VersionFile says which format the state directory has.
func (l Layout) VersionFile() string { return filepath.Join(l.Root, "version") }

// The files of an app's directory.
const (
	AppFile       = "app.json"
	SecretFile    = "secret.json"
	RunFile       = "run.json"
	ExitFile      = "exit.json"
	ResourcesFile = "resources.json"
	PodFile       = "pod.json"
	NetworkFile   = "network.json"
	// AnnotationsFile has the annotations of a pod or an app, if it has any. kubectl
	// puts a copy of all that it was given into one, environment and all.
	AnnotationsFile = "annotations.json"
	// AttachmentFile has the network's configuration, which may hold tokens.
	AttachmentFile = "attachment.json"
	// WritableDir holds the overlay's upper and work directories. It is closed to
	// other users: a setuid file inside must not be reachable from the host.
	WritableDir = "rw"
)

// Reader reads records.
type Reader struct{ Layout }

// Record is an app's directory as read.
type Record struct {
	App     *pod.App
	Run     *pod.Run
	Exit    *pod.Exit
	Updated *pod.Resources
}

// IDs lists the pods that are in place, in no order. Names that are no ID are
// left alone: they are not ours.
func (r Reader) IDs() ([]pod.ID, error) { return ids(r.Pods()) }

// AppIDs lists the apps of a pod.
func (r Reader) AppIDs(p pod.ID) ([]pod.ID, error) { return ids(r.Apps(p)) }

func ids(dir string) ([]pod.ID, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var out []pod.ID
	for _, e := range entries {
		if id, err := pod.ParseID(e.Name()); err == nil && e.IsDir() {
			out = append(out, id)
		}
	}
	return out, nil
}

// ReadPod reads one pod.
func (r Reader) ReadPod(id pod.ID) (*pod.Pod, error) {
	var p pod.Pod
	if err := readMain(r.Pod(id), PodFile, &p); err != nil {
		return nil, fmt.Errorf("read pod %s: %w", id, err)
	}
	if p.Version != Version || p.ID != id {
		return nil, fmt.Errorf("read pod %s: record has version %d and id %q: %w", id, p.Version, p.ID, pod.ErrInvalid)
	}
	if err := r.readAnnotations(r.Pod(id), &p.Annotations); err != nil {
		return nil, fmt.Errorf("read pod %s: %w", id, err)
	}
	updated, err := optional[pod.PodResources](filepath.Join(r.Pod(id), ResourcesFile))
	if err != nil {
		return nil, fmt.Errorf("read pod %s: %w", id, err)
	}
	if updated != nil {
		p.PodResources = *updated
	}
	return &p, nil
}

// readAnnotations leaves to alone where there is no such file (records had their
// annotations inside once), and for a reader who may not see them.
func (r Reader) readAnnotations(dir string, to *map[string]string) error {
	err := read(filepath.Join(dir, AnnotationsFile), to)
	if errors.Is(err, pod.ErrNotFound) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// ReadApp reads one app and what became of it.
func (r Reader) ReadApp(p, id pod.ID) (Record, error) {
	dir := r.App(p, id)
	rec := Record{App: new(pod.App)}
	if err := readMain(dir, AppFile, rec.App); err != nil {
		return Record{}, fmt.Errorf("read app %s: %w", id, err)
	}
	if rec.App.Version != Version || rec.App.ID != id || rec.App.Pod != p {
		return Record{}, fmt.Errorf("read app %s: record has version %d and id %q: %w", id, rec.App.Version, rec.App.ID, pod.ErrInvalid)
	}
	err := r.readAnnotations(dir, &rec.App.Annotations)
	if err != nil {
		return Record{}, fmt.Errorf("read app %s: %w", id, err)
	}
	if rec.Run, err = optional[pod.Run](filepath.Join(dir, RunFile)); err != nil {
		return Record{}, fmt.Errorf("read app %s: %w", id, err)
	}
	if rec.Exit, err = optional[pod.Exit](filepath.Join(dir, ExitFile)); err != nil {
		return Record{}, fmt.Errorf("read app %s: %w", id, err)
	}
	if rec.Updated, err = optional[pod.Resources](filepath.Join(dir, ResourcesFile)); err != nil {
		return Record{}, fmt.Errorf("read app %s: %w", id, err)
	}
	return rec, nil
}

// ReadSecret reads what only root may see of an app.
func (r Reader) ReadSecret(p, id pod.ID) (pod.Secret, error) {
	var s pod.Secret
	if err := read(filepath.Join(r.App(p, id), SecretFile), &s); err != nil {
		return pod.Secret{}, fmt.Errorf("read app %s: %w", id, err)
	}
	return s, nil
}

// ReadNetwork reads what the network gave the pod, and everyone may know, into v;
// false if it has none.
func (r Reader) ReadNetwork(id pod.ID, v any) (bool, error) {
	err := read(filepath.Join(r.Pod(id), NetworkFile), v)
	if errors.Is(err, pod.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read network of pod %s: %w", id, err)
	}
	return true, nil
}

// HasAttachment tells whether there is a network to be given back: alone, while the pod is
// being made, or if that was cut off.
func (r Reader) HasAttachment(id pod.ID) bool {
	_, err := os.Lstat(filepath.Join(r.Pod(id), AttachmentFile))
	return err == nil
}

// ReadAttachment adds to v what only root may know of the pod's network. It need
// not be there.
func (r Reader) ReadAttachment(id pod.ID, v any) error {
	err := read(filepath.Join(r.Pod(id), AttachmentFile), v)
	if err != nil && !errors.Is(err, pod.ErrNotFound) {
		return fmt.Errorf("read network of pod %s: %w", id, err)
	}
	return nil
}

// CheckVersion refuses a state directory that another format version wrote. A
// directory without a version file is new.
func (r Reader) CheckVersion() error {
	data, err := os.ReadFile(r.VersionFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state version: %w", err)
	}
	var v int
	if _, err := fmt.Sscanf(string(data), "%d", &v); err != nil || v != Version {
		return fmt.Errorf("state in %s has format %.20q, this program reads %d: use the version of Gantry that wrote it: %w",
			r.Root, data, Version, pod.ErrInvalid)
	}
	return nil
}

// readMain reads the record that a directory has from its first moment to its last: one
// that is there without it is damaged, and not gone.
func readMain(dir, name string, v any) error {
	err := read(filepath.Join(dir, name), v)
	if errors.Is(err, pod.ErrNotFound) {
		if _, gone := os.Lstat(dir); gone == nil {
			return fmt.Errorf("%s: it is missing: %w", name, pod.ErrInvalid)
		}
	}
	return err
}

func optional[T any](path string) (*T, error) {
	v := new(T)
	err := read(path, v)
	if errors.Is(err, pod.ErrNotFound) {
		return nil, nil
	}
	return v, err
}

func read(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(path), pod.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w: %w", filepath.Base(path), pod.ErrInvalid, err)
	}
	return nil
}
