package cli

import (
	"bytes"
	"errors"
	"testing"

	"gantry/internal/pod"
)

// TestErrorBesideACode: that an app's code is passed on is no reason to be silent of what
// went wrong with its pod.
func TestErrorBesideACode(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	r := &runner{env: &Env{Stderr: &said}, created: &created{pod: &pod.Pod{Name: "p"}}}
	err := r.also(&codeError{42}, errors.New("it stays"))
	if code := report(&said, nil, err); code != 42 || said.String() != "gantry: run pod p: it stays\n" {
		t.Errorf("%d, %q", code, said.String())
	}
	said.Reset()
	if code := report(&said, nil, r.also(errors.New("first"), errors.New("second"))); code != exitError || said.String() != "gantry: first; second\n" {
		t.Errorf("%d, %q", code, said.String())
	}
	if err := r.also(nil, nil); err != nil {
		t.Error(err)
	}
}
