package initproc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shellRuntime is a runtime of which a shell script plays the part. $1 is --log or
// the subcommand.
func shellRuntime(t *testing.T, script string) ociRuntime {
	t.Helper()
	return ociRuntime{[]string{"/bin/sh", "-c", script, "sh"}, filepath.Join(t.TempDir(), "runtime.log")}
}

func TestRuntimeIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		want   string // of the error, "" for none
	}{
		"works":            {`test "$3" = create`, ""},
		"fails":            {`echo why >&2; exit 3`, "sh create: exit status 3 (after "},
		"says why":         {`echo " the  reason" >"$2"; exit 3`, "): the reason"},
		"dies":             {`kill -9 $$`, "sh create: signal: killed (after "},
		"hangs":            {`sleep 1000`, "sh create: killed: it took longer than 200ms (after "},
		"hangs as a group": {`sleep 1000 & sleep 1000; wait`, "sh create: killed: it took longer than "},
		"leaves a daemon":  {`sleep 3 & exit 0`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limit := 200 * time.Millisecond
			if c.want == "" || !strings.Contains(c.want, "longer") {
				limit = time.Minute
			}
			began := time.Now()
			err := shellRuntime(t, c.script).run(limit, nil, "create")
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(began); took > 2500*time.Millisecond {
				t.Errorf("took %s", took)
			}
		})
	}
}

// TestRuntimeHasTheAppsFiles: what is to become the app's stdio reaches the
// runtime, and NOTIFY_SOCKET does not.
func TestRuntimeHasTheAppsFiles(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.OpenFile(out, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := shellRuntime(t, `echo "out $NOTIFY_SOCKET"; echo err >&2`).run(time.Minute, []*os.File{f, f, f}, "create"); err != nil {
		t.Fatal(err)
	}
	if said, err := os.ReadFile(out); err != nil || string(said) != "out \nerr\n" {
		t.Errorf("the app's files have %q, %v", said, err)
	}
}

func TestAtMost(t *testing.T) {
	t.Parallel()
	for ms, want := range map[int64]time.Duration{0: startTime, 5: 5 * time.Millisecond, 1 << 40: startTime} {
		if got := (Start{RuntimeMS: ms}).atMost(startTime); got != want {
			t.Errorf("%d ms: %s, want %s", ms, got, want)
		}
	}
}
