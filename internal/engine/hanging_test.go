package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Threads of /proc, by what the kernel does with them.
const (
	aliveStatus  = "Name:\tcat\nState:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"
	killedStatus = "Name:\tcat\nState:\tD (disk sleep)\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"
	groupStatus  = "Name:\tcat\nState:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"
	zombieStatus = "Name:\tcat\nState:\tZ (zombie)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"
	plainStat    = "7 (a) b (c) D 1 7 7 0 -1 4194560 0 0"
	exitingStat  = "7 (a) b (c) S 1 7 7 0 -1 4194564 0 0"
)

func TestThreadOf(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status, stat string
		want         thread
	}{
		"alive":             {aliveStatus, plainStat, thread{name: "cat"}},
		"killed":            {killedStatus, plainStat, thread{name: "cat", killed: true}},
		"its process is":    {groupStatus, plainStat, thread{name: "cat", killed: true}},
		"zombie":            {zombieStatus, plainStat, thread{name: "cat", dead: true}},
		"first of its kind": {aliveStatus, exitingStat, thread{name: "cat", killed: true}},
		"nothing":           {"", "", thread{}},
		"rubbish":           {"SigPnd:\txyz\nState", "7 (", thread{}},
	} {
		if got := threadOf([]byte(c.status), []byte(c.stat)); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// process puts one with these threads into a cgroup.
func (w *world) process(cgroup, pid string, statuses ...string) {
	w.t.Helper()
	for i, status := range statuses {
		dir := filepath.Join(w.cfg.Proc, pid, "task", string(rune('1'+i)))
		err := os.MkdirAll(dir, 0o755)
		for name, text := range map[string]string{"status": status, "stat": plainStat, "wchan": "nfs_wait"} {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	err := os.MkdirAll(cgroup, 0o755)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(filepath.Join(cgroup, "cgroup.procs"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	}
	if err == nil {
		_, err = f.WriteString(pid + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestHangingIn: an app is given up only if nothing of it can run any more.
func TestHangingIn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		processes map[string][]string // by cgroup below the app's
		want      int                 // how many hang; -1: one is alive
	}{
		"none":                     {nil, 0},
		"one":                      {map[string][]string{"": {killedStatus}}, 1},
		"in a group below":         {map[string][]string{"": {killedStatus}, "exec-1": {groupStatus}}, 2},
		"alive beside it":          {map[string][]string{"": {killedStatus}, "exec-1": {aliveStatus}}, -1},
		"a thread of it alive":     {map[string][]string{"": {killedStatus, aliveStatus}}, -1},
		"its first thread is dead": {map[string][]string{"": {zombieStatus, killedStatus}}, 1},
		"a zombie":                 {map[string][]string{"": {zombieStatus}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLiveWorld(t)
			w.cfg.Proc = t.TempDir()
			app := t.TempDir()
			pid := 100
			for dir, threads := range c.processes {
				pid++
				w.process(filepath.Join(app, dir), strings.Repeat("1", pid-100), threads...)
			}
			list, err := w.hangingIn(app)
			if (c.want < 0) != errors.Is(err, errAlive) || err == nil && len(list) != c.want {
				t.Errorf("%v, %v, want %d", list, err, c.want)
			}
		})
	}
}

// TestCodeOfAnAppThatHangs: one whose main process ended by itself keeps its code.
func TestCodeOfAnAppThatHangs(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	s := pod.AppStatus{App: w.app(p)}
	list := []hanging{{7, "cat", ""}, {8, "c\nat", "x"}, {1, "", ""}, {2, "", ""}, {3, "", ""}, {4, "", ""}}
	for _, c := range []struct {
		state        systemd.State
		code, signal int
	}{
		{systemd.State{MainPID: 7}, 137, 9},
		{systemd.State{ExecCode: 1, ExecStatus: 3}, 3, 0},
		{systemd.State{ExecCode: 2, ExecStatus: 9}, 137, 9},
	} {
		w.cfg.Systemd = &existing{w.manager.Fake, []systemd.State{c.state}}
		exit := w.hungExit(t.Context(), s, list)
		if exit.Code != c.code || exit.Signal != c.signal || exit.Reason != pod.ReasonUnkillable {
			t.Errorf("%+v: %+v", c.state, exit)
		}
		if want := `7 ("cat"), 8 ("c\nat", in x), 1 (""), 2 (""), 3 (""), 1 more`; !strings.HasSuffix(exit.Message, want) {
			t.Errorf("message %q", exit.Message)
		}
	}
}

// TestGivenUp: the end of an app that cannot die is recorded and told.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.cfg.Proc, w.cfg.Cgroups = t.TempDir(), t.TempDir()
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	w.process(filepath.Join(w.cfg.Cgroups, unit.CgroupOf(p.Slice), unit.App(string(a.ID))), "7", killedStatus)
	s, err := w.App(a.ID)
	if err != nil || s.Phase != pod.Running {
		t.Fatalf("the app is %s, %v", s.Phase, err)
	}
	if !w.appHangs(a) || !w.podHangs(p) {
		t.Error("it is not seen to hang")
	}
	cgroup := filepath.Join(w.cfg.Cgroups, unit.CgroupOf(p.Slice), unit.App(string(a.ID)))
	if err = w.giveUp(t.Context(), s, cgroup); err != nil {
		t.Fatal(err)
	}
	if s, err = w.WaitApp(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	const want = `killed, but the kernel does not let go of 7 ("cat", in nfs_wait)`
	if s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonUnkillable || s.Exit.Message != want {
		t.Errorf("its end is %+v", s.Exit)
	}
	later := &pod.App{ID: pod.NewID(), Pod: p.ID, Name: a.Name}
	whole, err := w.Pod(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.mayReplace(whole, later); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("the next attempt beside it: %v", err)
	}
	if err := w.store.RemoveApp(a); err != nil {
		t.Fatal(err)
	}
	if !w.podHangs(p) {
		t.Error("a pod whose app was removed and hangs is waited for")
	}
	if err := os.RemoveAll(filepath.Join(w.cfg.Proc, "7")); err != nil {
		t.Fatal(err)
	}
	if err := w.mayReplace(whole, later); err != nil {
		t.Errorf("the next attempt after it: %v", err)
	}
}
