package external

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/isolator/contract"
)

// example is the isolator that docs/isolators.md shows.
func example(t *testing.T) *External {
	t.Helper()
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed, which the example needs; the VM has it")
	}
	path, err := filepath.Abs("../../../docs/examples/isolators/unshare")
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(path, config())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestExamplePasses(t *testing.T) {
	t.Parallel()
	for _, c := range Checks(example(t)) {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestExamplePlan(t *testing.T) {
	t.Parallel()
	x := example(t)
	in := contract.Input(x)
	p, err := x.App(in)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "example", p.Text())
	sandbox, err := x.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
	if err != nil || len(sandbox.Units) == 0 {
		t.Errorf("plan of the pod: %v, %v", sandbox, err)
	}
}

// TestExampleIsShort: it is read before it is copied.
func TestExampleIsShort(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../docs/examples/isolators/unshare")
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(data, []byte("\n")); lines >= 100 {
		t.Errorf("it has %d lines, want less than 100", lines)
	}
}
