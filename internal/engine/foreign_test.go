package engine

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/pod"
	"gantry/internal/podstore"
)

// TestImagesOfForeignPods: kubelet asks for its images often. The answer has those of
// apps that the command line has just made, asks PID 1 nothing, and reads no record twice.
func TestImagesOfForeignPods(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	cri := w.pod()
	w.app(cri)
	cli := w.podOf(pod.OwnerCLI)
	old := w.app(cli)
	w.load()
	if err := w.store.RemoveApp(old); err != nil { // of which nothing tells
		t.Fatal(err)
	}
	w.manager.looked = func() { t.Error("PID 1 was asked") }
	want := func(want map[string]bool) {
		t.Helper()
		got, err := w.ImagesOf(pod.OwnerCLI)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("the command line's images are %v (%v), want %v", got, err, want)
		}
	}
	want(map[string]bool{})
	a := &pod.App{
		ID: pod.NewID(), Pod: cli.ID, Name: "late", Created: time.Now(), Image: pod.Image{ID: "sha256:a"},
		Mounts: []pod.Mount{{Path: "/v", Image: &pod.Image{ID: "sha256:b"}}},
	}
	if err := w.store.CreateApp(a, pod.Secret{}); err != nil {
		t.Fatal(err)
	}
	want(map[string]bool{"sha256:a": true, "sha256:b": true})
	record := filepath.Join(w.store.App(cli.ID, a.ID), podstore.AppFile)
	if err := os.WriteFile(record, []byte("not read again"), 0o644); err != nil {
		t.Fatal(err)
	}
	want(map[string]bool{"sha256:a": true, "sha256:b": true})
	if err := w.store.RemoveApp(a); err != nil {
		t.Fatal(err)
	}
	want(map[string]bool{})
	w.manager.looked = nil
}
