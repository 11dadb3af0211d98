package config

import (
	"strings"
	"testing"
	"time"
)

func TestMachines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "config.toml", "[isolator]\ndefault = \"kvm\"\n[kvm]\nmemory = \"512MiB\"\noverhead = \"200MiB\"\ndisk = 0\nprocessors = 2\nboot-time = \"1m\"\nemulate = true")
	got, _, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.KVMMemory != 512<<20 || got.KVMOverhead != 200<<20 || got.KVMDisk != 0 || got.KVMProcessors != 2 || got.KVMBootTime != time.Minute || !got.KVMEmulate {
		t.Errorf("%+v", got)
	}
	if d := Default(); d.KVMMemory != 0 || d.KVMOverhead != 96<<20 || d.KVMDisk != 10<<30 || d.KVMProcessors != 1 || d.KVMBootTime != 30*time.Second || d.KVMEmulate {
		t.Errorf("by default: %+v", d)
	}
}

// TestMachinesThatCannotBe are found out before a pod is made.
func TestMachinesThatCannotBe(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[isolator]\ndefault = \"kvm\"":                    "isolator.default: kvm is switched off: give kvm.memory a size",
		"[kvm]\nmemory = \"64MiB\"":                        "kvm.memory: 64MiB: a machine needs at least 128MiB; 0 switches kvm off",
		"[kvm]\nmemory = 1":                                "kvm.memory: 1: a machine needs",
		"[kvm]\nmemory = \"1GiB\"\ndisk = \"1MiB\"":        "kvm.disk: 1MiB: want at least 64MiB, or 0 for none",
		"[kvm]\nmemory = \"1GiB\"\nboot-time = \"4m\"":     "kvm.boot-time: 4m0s: want at most 3m0s",
		"[kvm]\nmemory = \"1GB\"":                          "kvm.memory: \"1GB\": want a size such as",
		"[kvm]\nprocessors = 0":                            "kvm.processors: 0: want 1 to 255",
		"[kvm]\nboot-time = \"10ms\"":                      "kvm.boot-time: 10ms: want at least 1s",
		"[kvm]\nmemory = \"128MiB\"\nboot-time = \"180s\"": "",
		"[kvm]\ndisk = \"1MiB\"":                           "", // nobody uses it
	} {
		dir := t.TempDir()
		write(t, dir, "config.toml", text)
		_, _, err := Load(dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}
