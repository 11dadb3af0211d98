package engine

import (
	"testing"

	"gantry/internal/unit"
)

// TestRemovalEndsTheRecorder: an app's failure started the unit that records it
// from outside, and the app is removed before that one is over.
func TestRemovalEndsTheRecorder(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	recorder := unit.Exit(string(a.ID))
	w.start(recorder)
	w.load()
	if err := w.Engine.run(t.Context(), w.appRemoval(p, a)); err != nil {
		t.Fatal(err)
	}
	if s, err := w.manager.State(t.Context(), recorder); err != nil || s.Loaded() {
		t.Errorf("the recorder is still there: %+v, %v", s, err)
	}
}
