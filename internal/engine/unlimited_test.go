package engine

import (
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// TestUnlimited: what kubelet has limited its slice tells, not the sum of what it says.
func TestUnlimited(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.cfg.Cgroups = t.TempDir()
	given := &pod.Pod{CgroupParent: "/kubepods.slice/kubepods-podu_1.slice", Slice: "kubepods-podu_1.slice"}
	dir := filepath.Join(w.cfg.Cgroups, "kubepods.slice", given.Slice)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		memory, cpu string
		want        isolator.Unlimited
	}{
		{"max\n", "max 100000\n", isolator.Unlimited{Memory: true, CPU: true}},
		{"67108864\n", "max 100000\n", isolator.Unlimited{CPU: true}},
		{"67108864\n", "5000 100000\n", isolator.Unlimited{}},
	} {
		for name, text := range map[string]string{"memory.max": c.memory, "cpu.max": c.cpu} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.unlimited(given); got != c.want {
			t.Errorf("%q, %q: %+v, want %+v", c.memory, c.cpu, got, c.want)
		}
	}
	if got := w.unlimited(&pod.Pod{Slice: given.Slice}); got != (isolator.Unlimited{}) {
		t.Errorf("a slice of ours: %+v", got)
	}
}
