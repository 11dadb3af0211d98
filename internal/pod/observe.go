package pod

import "time"

// ExitCodeUnknown is reported for an app of which nobody saw the end.
const ExitCodeUnknown = 255

// ExitCodeStartError is that of an app that could not be started.
const ExitCodeStartError = 128

// Observe tells an app's phase. It is a pure function: the order of the cases is
// the order in which the sources are believed.
//
//  1. an exit record: exited, whatever else is said
//  2. no run record: prepared
//  3. a run record of another boot: exited, lost with the machine
//  4. systemd was not asked: unknown
//  5. systemd has the unit, with our invocation: running
//  6. systemd has no such unit: exited, lost
func Observe(f AppFacts) AppStatus {
	s := AppStatus{App: f.App, Current: f.App.Resources}
	if f.Updated != nil {
		s.Current = *f.Updated
	}
	if f.Run != nil {
		s.Started, s.PID = f.Run.Started, f.Run.PID
	}
	switch {
	case f.Exit != nil:
		return s.exited(f.Exit)
	case f.Run == nil:
		s.Phase = Prepared
	case f.Run.BootID != f.BootID:
		return s.lost(Lost(f.Run, "the machine went down while the app ran"))
	case f.Unit.Active == "":
		s.Phase = Unknown
	case f.Unit.Loaded && sameInvocation(f):
		s.Phase = Running
	default:
		return s.lost(Lost(f.Run, "the unit is gone and left no exit record"))
	}
	return s
}

func sameInvocation(f AppFacts) bool {
	return f.Run.InvocationID == "" || f.Unit.InvocationID == "" || f.Run.InvocationID == f.Unit.InvocationID
}

func (s AppStatus) exited(e *Exit) AppStatus {
	s.Phase, s.Exit, s.Finished, s.PID = Exited, e, e.Finished, 0
	return s
}

// NeverStarts tells of an app that was not started and, its pod being down, cannot be.
func (s AppStatus) NeverStarts(podReady bool) bool { return s.Phase == Prepared && !podReady }

func (s AppStatus) lost(e *Exit) AppStatus {
	s.Lost = true
	return s.exited(e)
}

// Lost is the exit of an app whose end nobody saw. The time is that of its start
// and a nanosecond: later than the start, as readers expect, and stable.
func Lost(r *Run, why string) *Exit {
	return &Exit{
		Code: ExitCodeUnknown, Reason: ReasonUnknown, Message: why,
		Started: r.Started, Finished: r.Started.Add(time.Nanosecond),
		BootID: r.BootID, InvocationID: r.InvocationID,
	}
}
