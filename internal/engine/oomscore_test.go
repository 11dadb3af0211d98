package engine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRescore: processes of a cgroup and of one below it, one of which has chosen its
// score, and one that has ended.
func TestRescore(t *testing.T) {
	t.Parallel()
	cgroup := t.TempDir()
	below := filepath.Join(cgroup, "exec-1")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	const was, chosen, now = 400, 900, 500 // who is not root may only raise it
	one, own, deep := scored(t, was), scored(t, chosen), scored(t, was)
	list := func(dir string, pids ...int) {
		text := strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", "\n"), "[]") + "\n"
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list(cgroup, one, own, 1<<30)
	list(below, deep)
	for range 2 { // a second time there is nothing to do
		if err := rescore(cgroup, was, now); err != nil {
			t.Fatal(err)
		}
	}
	for pid, want := range map[int]int{one: now, own: chosen, deep: now} {
		if got := score(t, pid); got != fmt.Sprint(want) {
			t.Errorf("process %d has %s, want %d", pid, got, want)
		}
	}
	if err := rescore(filepath.Join(cgroup, "none"), was, now); err != nil {
		t.Errorf("an app that has ended: %v", err)
	}
}

// scored starts a process with a score, which the test's end kills.
func scored(t *testing.T, score int) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if err := os.WriteFile(scoreFile(cmd.Process.Pid), []byte(fmt.Sprint(score)), 0); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func scoreFile(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }

func score(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(scoreFile(pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
