//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// TestGuestAgentPIDs: apps of a virtual machine may share a PID namespace that outlives
// each of them, or one of them may be in another's.
func TestGuestAgentPIDs(t *testing.T) {
	guard(t)
	a := startAgent(t)
	in := func(whose string) func(*initproc.Start, *initproc.Process) {
		return func(s *initproc.Start, _ *initproc.Process) { s.PIDs = whose }
	}
	a.run(a.request("first", "sleep 1000001; :", in(initproc.PodPIDs)))
	second := a.run(a.request("second", "sleep 1000002 & ps; exit 5", in(initproc.PodPIDs)))
	if out, errs, end := a.end(second); !strings.Contains(out, "gantry-holder") || !strings.Contains(out, "sleep 1000001") || end.Code != 5 {
		t.Errorf("in the pod's namespace: %q, %q, %v", out, errs, end)
	}
	// What an app has left ends with it, and what others have does not.
	exec := &guestpb.Ref{App: "first", Exec: "look"}
	look := initproc.Process{Args: []string{"sh", "-c", "while ps | grep -q '100000[2]'; do sleep 0.1; done; ps | grep -c '1000001'"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	if _, err := a.Exec(t.Context(), &guestpb.ExecRequest{Ref: exec, Process: encode(t, look)}); err != nil {
		t.Fatal(err)
	}
	if out, errs, end := a.end(exec); end.Code != 0 || out == "0\n" {
		t.Errorf("after the end of another app: %q, %q, %v", out, errs, end)
	}
	alone := a.run(a.request("alone", "sleep 1000003; :", nil))
	debug := a.run(a.request("debug", "ps; read go; sleep 1000004", in("alone")))
	said, err := a.Read(t.Context(), &guestpb.ReadRequest{Ref: debug, Stream: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Signal(t.Context(), &guestpb.SignalRequest{Ref: alone, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	_, errs, end := a.end(debug)
	out := string(said.Data)
	if !strings.Contains(out, "sleep 1000003") || strings.Contains(out, "sleep 1000001") || strings.Contains(out, "gantry-holder") {
		t.Errorf("in another app's namespace: %q, %q", out, errs)
	}
	if end.Signal != 9 { // the namespace has ended, with all that was in it
		t.Errorf("it ended as %v", end)
	}
	for whose, want := range map[string]string{"nobody": "there is no app nobody", "second": "second has ended"} {
		if _, err := a.Run(t.Context(), a.request("refused", "echo", in(whose))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("in the namespace of %s: %v, want %q", whose, err, want)
		}
	}
}
