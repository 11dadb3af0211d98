package writer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/podstore"
)

type network struct {
	IPs   []string `json:"ips,omitempty"`
	Token string   `json:"token,omitempty"`
}

// TestNetworkRecord: everyone may read a pod's addresses, and only root what the
// network's configuration holds.
func TestNetworkRecord(t *testing.T) {
	t.Parallel()
	w, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &pod.Pod{ID: pod.NewID()}
	lock, err := w.CreatePod(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if err := w.WriteNetwork(p.ID, network{IPs: []string{"10.0.0.2"}}, network{Token: "secret"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{podstore.NetworkFile: 0o644, podstore.AttachmentFile: 0o600} {
		if s, err := os.Stat(filepath.Join(w.Pod(p.ID), name)); err != nil || s.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, s.Mode(), err, want)
		}
	}
	var got network
	if ok, err := w.ReadNetwork(p.ID, &got); !ok || err != nil || got.Token != "" {
		t.Errorf("the public part: %+v, %v, %v", got, ok, err)
	}
	if err := w.ReadAttachment(p.ID, &got); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(network{IPs: []string{"10.0.0.2"}, Token: "secret"}, got); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		if err := w.RemoveNetwork(p.ID); err != nil {
			t.Error(err)
		}
	}
	if ok, err := w.ReadNetwork(p.ID, &got); ok || err != nil {
		t.Errorf("after the removal: %v, %v", ok, err)
	}
	if disk.Exists(filepath.Join(w.Pod(p.ID), podstore.AttachmentFile)) {
		t.Error("the private part is left")
	}
}

// TestAnnotations: kubectl puts all that it was given into an annotation of a pod,
// values of the environment too. They come back as they were, to root alone.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	w, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const secret = "hunter2"
	want := map[string]string{"kubectl.kubernetes.io/last-applied-configuration": `{"env":[{"value":"` + secret + `"}]}`, "": ""}
	p := &pod.Pod{ID: pod.NewID(), Annotations: want}
	a := &pod.App{ID: pod.NewID(), Pod: p.ID, Annotations: want}
	lock, err := w.CreatePod(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if err := w.CreateApp(a, pod.Secret{Env: []string{"A=" + secret}}); err != nil {
		t.Fatal(err)
	}
	wantHidden(t, w.Root, secret)
	got, err := w.ReadPod(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := w.ReadApp(p.ID, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, have := range []map[string]string{got.Annotations, rec.App.Annotations, p.Annotations, a.Annotations} {
		if diff := cmp.Diff(want, have); diff != "" {
			t.Error(diff)
		}
	}
}

// wantHidden looks for text in all files that not only their owner may read.
func wantHidden(t *testing.T, root, text string) {
	t.Helper()
	hidden := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		s, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if has := strings.Contains(string(data), text); has && s.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v and says %s", path, s.Mode(), data)
		} else if has {
			hidden++
		}
		return err
	})
	if err != nil || hidden != 3 {
		t.Errorf("%d files have the text, want 3 (%v)", hidden, err)
	}
}

// TestAnnotationsInsideARecord: they were there before they had a file.
func TestAnnotationsInsideARecord(t *testing.T) {
	t.Parallel()
	w, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := pod.NewID()
	record := `{"version":1,"id":"` + string(id) + `","annotations":{"a":"b"}}`
	if err := errors.Join(os.Mkdir(w.Pod(id), 0o755), os.WriteFile(filepath.Join(w.Pod(id), podstore.PodFile), []byte(record), 0o644)); err != nil {
		t.Fatal(err)
	}
	p, err := w.ReadPod(id)
	if err != nil || p.Annotations["a"] != "b" {
		t.Errorf("read %+v, %v", p, err)
	}
}

func TestTryLock(t *testing.T) {
	t.Parallel()
	w, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &pod.Pod{ID: pod.NewID()}
	lock, err := w.CreatePod(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.TryLock(p.ID); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("a pod that is being made: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	lock, err = w.TryLock(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.RemovePod(p.ID), lock.Unlock()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.TryLock(p.ID); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a pod that is gone: %v", err)
	}
}
