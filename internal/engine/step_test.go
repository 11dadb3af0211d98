package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gantry/internal/pod"
)

func TestRunUndoesInReverse(t *testing.T) {
	t.Parallel()
	var log []string
	note := func(s string, err error) func(context.Context) error {
		return func(context.Context) error { log = append(log, s); return err }
	}
	bad := errors.New("no space")
	e := &Engine{log: slog.New(slog.DiscardHandler)}
	err := e.run(t.Context(), operation{"create pod", []step{
		{"record", note("record", nil), note("-record", nil)},
		{"unit", note("unit", nil), nil},
		{"network", note("network", bad), note("-network", nil)},
		{"never", note("never", nil), note("-never", nil)},
	}})
	want := []string{"record", "unit", "network", "-network", "-record"}
	if !slices.Equal(log, want) {
		t.Errorf("ran %v, want %v", log, want)
	}
	var stage *StageError
	if !errors.As(err, &stage) || stage.Stage != "network" || !errors.Is(err, bad) {
		t.Errorf("error %v does not name the stage and the cause", err)
	}
}

// TestKindOfAFailure: it is that of what failed, whatever its undo meets. A remove
// that was late would read as "there is no such pod", and be taken for done.
func TestKindOfAFailure(t *testing.T) {
	t.Parallel()
	e := &Engine{log: slog.New(slog.DiscardHandler)}
	err := e.run(t.Context(), operation{"create pod", []step{{
		"network",
		func(context.Context) error { return context.DeadlineExceeded },
		func(context.Context) error { return fmt.Errorf("lock pod: %w", pod.ErrNotFound) },
	}}})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), "undo network: lock pod: not found") {
		t.Errorf("error %v: want the kind of the first, and the text of both", err)
	}
	if err := also(nil, nil, pod.ErrUnavailable); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("without a failure: %v", err)
	}
	if err := also(nil, nil); err != nil {
		t.Error(err)
	}
}

func TestUndoRunsWithoutTheCallersContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	e := &Engine{log: slog.New(slog.DiscardHandler)}
	undone := false
	err := e.run(ctx, operation{"op", []step{{
		"slow",
		func(ctx context.Context) error { cancel(); return ctx.Err() },
		func(ctx context.Context) error { undone = ctx.Err() == nil; return nil },
	}}})
	if !errors.Is(err, context.Canceled) || !undone {
		t.Errorf("err %v, undone with a living context: %v", err, undone)
	}
}

func TestFailpoints(t *testing.T) {
	t.Parallel()
	f, err := ParseFailpoints("create pod/network/after=error;stop pod/unit/before=sleep 1ms")
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{cfg: Config{Failpoints: f}, log: slog.New(slog.DiscardHandler)}
	undone := false
	err = e.run(t.Context(), operation{"create pod", []step{{
		"network",
		func(context.Context) error { return nil },
		func(context.Context) error { undone = true; return nil },
	}}})
	if !errors.Is(err, errFailpoint) || !undone {
		t.Errorf("failpoint: %v, undone %v", err, undone)
	}
	nothing := func(context.Context) error { return nil }
	if err := e.run(t.Context(), operation{"stop pod", []step{{name: "unit", do: nothing}}}); err != nil {
		t.Errorf("sleeping failpoint: %v", err)
	}
	for _, bad := range []string{"x", "a/b=kill", "a/b/c/d=kill", "create pod/netwrok/after=kill", "create pod/network/after=boom", "create pod/network/after=sleep long"} {
		if _, err := ParseFailpoints(bad); err == nil {
			t.Errorf("%q is taken for a failpoint", bad)
		}
	}
}

// TestJoinsRunOnce: the first caller gives up; the work goes on, and others who ask
// meanwhile get its result.
func TestJoinsRunOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := joins{log: slog.New(slog.DiscardHandler)}
		calls := 0
		work := func(ctx context.Context) (pod.ID, error) {
			calls++
			<-time.After(time.Second)
			return "id", ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if _, err := j.do(ctx, "k", work); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("first caller: %v", err)
		}
		for range 3 {
			go func() {
				if id, err := j.do(t.Context(), "k", work); id != "id" || err != nil {
					t.Errorf("a caller that joined got %q, %v", id, err)
				}
			}()
		}
		<-time.After(2 * time.Second)
		if calls != 1 {
			t.Errorf("the work was done %d times", calls)
		}
		if _, err := j.do(t.Context(), "k", work); err != nil || calls != 2 {
			t.Errorf("after its end: %v, %d calls", err, calls)
		}
	})
}

// TestPanicOfAnOperation: it runs in no request's goroutine, and must not end the
// program.
func TestPanicOfAnOperation(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	j := joins{log: slog.New(slog.NewTextHandler(&log, nil))}
	_, err := j.do(t.Context(), "create pod x", func(context.Context) (pod.ID, error) {
		panic("boom")
	})
	if !errors.Is(err, pod.ErrInternal) || !strings.Contains(err.Error(), "create pod x") {
		t.Errorf("the caller got %v", err)
	}
	if s := log.String(); !strings.Contains(s, "TestPanicOfAnOperation") || !strings.Contains(s, "boom") {
		t.Errorf("the log has no stack: %s", s)
	}
	id, err := j.do(t.Context(), "create pod x", func(context.Context) (pod.ID, error) { return "again", nil })
	if id != "again" || err != nil {
		t.Errorf("the next call got %q, %v", id, err)
	}
	wait := (&Engine{log: j.log}).begin("stop", func() error { panic("boom") })
	for range 2 {
		if err := wait(); !errors.Is(err, pod.ErrInternal) {
			t.Errorf("a part in the background: %v", err)
		}
	}
}

func TestParsePressure(t *testing.T) {
	t.Parallel()
	p := parsePressure([]byte("some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.10 total=7\n"))
	if p.Some.Avg10 != 1.5 || p.Some.Avg60 != 0.25 || p.Some.Total != 12000 || p.Full.Avg300 != 0.1 || p.Full.Total != 7000 {
		t.Errorf("got %+v", *p)
	}
}

func TestSignalOf(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{"SIGTERM": 15, "TERM": 15, "9": 9, "sigquit": 3, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63} {
		if got, err := signalOf(in); err != nil || got != want {
			t.Errorf("signalOf(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"SIGNOPE", "0", "65", "-1", "SIGRTMIN+40", "SIGRTMAX+1", "SIGRTMIN+x"} {
		if _, err := signalOf(bad); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("signalOf(%q): %v", bad, err)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	t.Parallel()
	got := mergeEnv([]string{"PATH=/bin", "A=1", "B=2"}, []string{"B=3", "C=4", "A="})
	if want := "PATH=/bin A= B=3 C=4"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if got := mergeEnv(nil, nil); len(got) != 1 || !strings.HasPrefix(got[0], "PATH=") {
		t.Errorf("no PATH: %v", got)
	}
}

func TestMergeResources(t *testing.T) {
	t.Parallel()
	now := pod.Resources{CPUShares: 2, Memory: 10, Unified: map[string]string{"a": "1", "b": "1"}}
	got := merge(now, pod.Resources{Memory: 20, Unified: map[string]string{"b": "2"}})
	if got.CPUShares != 2 || got.Memory != 20 || got.Unified["a"] != "1" || got.Unified["b"] != "2" {
		t.Errorf("got %+v", got)
	}
	if now.Unified["b"] != "1" {
		t.Error("the limits in force were changed in place")
	}
}

// TestMergeKeepsEveryField: a limit that merge does not know would be dropped in silence.
func TestMergeKeepsEveryField(t *testing.T) {
	t.Parallel()
	kind := reflect.TypeFor[pod.Resources]()
	for i := range kind.NumField() {
		f := kind.Field(i)
		var one, other pod.Resources
		setField(t, reflect.ValueOf(&one).Elem().Field(i), "1")
		setField(t, reflect.ValueOf(&other).Elem().Field(i), "2")
		for name, got := range map[string]pod.Resources{"told": merge(pod.Resources{}, one), "told anew": merge(other, one), "not told": merge(one, pod.Resources{})} {
			if v := reflect.ValueOf(got).Field(i).Interface(); !reflect.DeepEqual(v, reflect.ValueOf(one).Field(i).Interface()) {
				t.Errorf("%s, %s: got %v", f.Name, name, v)
			}
		}
	}
}

func setField(t *testing.T, v reflect.Value, text string) {
	t.Helper()
	switch v.Interface().(type) {
	case int, int64:
		v.SetInt(int64(text[0]))
	case string:
		v.SetString(text)
	case map[string]string:
		v.Set(reflect.ValueOf(map[string]string{"pids.max": text}))
	case []pod.HugepageLimit:
		v.Set(reflect.ValueOf([]pod.HugepageLimit{{PageSize: text + "MB"}}))
	default:
		t.Fatalf("a limit of type %s is new", v.Type())
	}
}
