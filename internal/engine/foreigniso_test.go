package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// file is an isolator that is a file of somebody else's.
type file struct {
	likeness
	broken error
}

func (f file) Source() string { return "/isolators/" + f.name }
func (f file) Usable() error  { return f.broken }

// TestBrokenIsolators: nobody gets one, nor another in its place; nor is anything taken
// for as strong as a default that is broken.
func TestBrokenIsolators(t *testing.T) {
	t.Parallel()
	sorry := fmt.Errorf("sorry: %w", pod.ErrUnavailable)
	for usual, refused := range map[string]map[string]bool{
		"oci": {"": false, "good": false, "bad": true, "oci": false},
		"bad": {"": true, "good": true, "bad": true, "oci": true},
	} {
		cfg := newBench(t, false, nil).cfg
		oci := cfg.Isolators[0]
		cfg.Isolator, cfg.Isolators = usual, []isolator.Isolator{
			oci,
			file{likeness{oci, "good", isolator.IsolationMachine}, nil},
			file{likeness{oci, "bad", isolator.IsolationMachine}, sorry},
			file{likeness{oci, "oci", isolator.IsolationMachine}, sorry}, // its name is taken
		}
		e, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		for handler, want := range refused {
			_, err := e.choose(&pod.Pod{Handler: handler})
			if want != errors.Is(err, pod.ErrUnavailable) || !want && err != nil {
				t.Errorf("default %s, handler %q: %v", usual, handler, err)
			}
		}
		var list []string
		for _, f := range e.Features() {
			list = append(list, fmt.Sprintf("%s:%s:%t", f.Name, f.Source, f.Broken != nil))
		}
		want := "oci::false good:/isolators/good:false bad:/isolators/bad:true oci:/isolators/oci:true"
		if usual == "bad" {
			want = "bad:/isolators/bad:true oci::false good:/isolators/good:false oci:/isolators/oci:true"
		}
		if got := strings.Join(list, " "); got != want {
			t.Errorf("default %s: got %s, want %s", usual, got, want)
		}
	}
}

// TestSignalProcess: only a process of the unit gets a signal.
func TestSignalProcess(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{})
	e.cfg.Proc = t.TempDir()
	const name = "gantry-app-a.service"
	for group, want := range map[string]bool{"0::/gantry.slice/" + name + "/x\n": true, "0::/user.slice/other.service\n": false, "": false} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(e.cfg.Proc, strconv.Itoa(cmd.Process.Pid))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "cgroup"), []byte(group), 0o644)); err != nil {
			t.Fatal(err)
		}
		if err := e.signalProcess(cmd.Process.Pid, name, int(syscall.SIGUSR1)); err != nil {
			t.Errorf("%q: %v", group, err)
		}
		if !want { // it would be the first that it gets
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Wait() // it fails: it was killed
		if got := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGUSR1; got != want {
			t.Errorf("%q: signalled %t, want %t", group, got, want)
		}
		if err := e.signalProcess(cmd.Process.Pid, name, int(syscall.SIGUSR1)); err != nil {
			t.Errorf("a process that is gone: %v", err)
		}
	}
}
