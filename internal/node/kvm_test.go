package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/config"
	"gantry/internal/pod"
)

// TestMachinesOfTheConfiguration: what an operator says of machines arrives.
func TestMachinesOfTheConfiguration(t *testing.T) {
	t.Parallel()
	c := config.Default()
	k, err := FromConfig(c).machines(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Missing(); !k.Off() || !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "kvm.memory in the configuration switches it on") {
		t.Errorf("by default: %v, %v", k.Off(), err)
	}
	c.KVMMemory, c.KVMBootTime, c.KVMEmulate = 256<<20, 1500*1e6, true
	o := FromConfig(c)
	if want := (Machines{Emulate: true, Memory: 256 << 20, Overhead: 96 << 20, Disk: 10 << 30, CPUs: 1, BootSeconds: 2}); o.Machines != want {
		t.Errorf("%+v, want %+v", o.Machines, want)
	}
	if k, err = o.machines(false); err != nil || k.Off() {
		t.Errorf("switched on: %v, %v", k.Off(), err)
	}
	// Gantry's own program is where no test puts it.
	if err := k.Missing(); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "this node lacks ") {
		t.Errorf("without what it needs: %v", err)
	}
}

// TestRuntimeClasses: those that we ship name isolators that there are, and announce the
// overhead that machines have unless told otherwise, on both sides.
func TestRuntimeClasses(t *testing.T) {
	t.Parallel()
	const dir = "../../dist/kubernetes"
	for _, name := range []string{"oci", "fly", "kvm"} {
		text, err := os.ReadFile(filepath.Join(dir, "runtimeclass-"+name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: " + name + "\n", "\nhandler: " + name + "\n"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: want %q in\n%s", name, want, text)
			}
		}
		const inMachine = 64 << 20 // for its kernel and agent: docs/isolators.md has the measure
		memory := fmt.Sprintf("\n    memory: %dMi\n", (config.Default().KVMOverhead+inMachine)>>20)
		if strings.Contains(string(text), memory) != (name == "kvm") {
			t.Errorf("%s: %q in\n%s", name, memory, text)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Errorf("%v, %v", files, err)
	}
}
