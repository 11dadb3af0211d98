package systemd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"gantry/internal/unit"
)

const testUnit = "gantry-app-a.service"

func dialTest(t *testing.T, b *testBus) *Manager {
	t.Helper()
	m, err := Dial(t.Context(), Config{Address: b.address, Patience: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func memberOf(m *dbus.Message) string { return m.Headers[dbus.FieldMember].Value().(string) }

func unitNamed(name string, props ...unit.Property) unit.Unit {
	return unit.Unit{Name: name, Properties: props}
}

// reply answers what a started unit is asked for.
func replyProperty(c *busConn, m *dbus.Message) {
	switch m.Body[1] {
	case "InvocationID":
		c.reply(m, dbus.MakeVariant([]byte{0xab, 0xcd}))
	case "MainPID", "ExecMainStatus":
		c.reply(m, dbus.MakeVariant(uint32(77)))
	case "ExecMainCode":
		c.reply(m, dbus.MakeVariant(int32(1)))
	default:
		c.reply(m, dbus.MakeVariant("x"))
	}
}

func listing(states ...[2]string) []listed {
	list := []listed{}
	for _, s := range states {
		list = append(list, listed{Name: s[0], Load: Loaded, Active: s[1], Path: objectPath(s[0]), JobPath: "/"})
	}
	return list
}

func TestStartCostsFewMessages(t *testing.T) {
	t.Parallel()
	const job = dbus.ObjectPath("/org/freedesktop/systemd1/job/7")
	for name, early := range map[string]bool{"reply first": false, "signal first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var start *dbus.Message // written before the answer that ends Start
			b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) {
				if memberOf(m) == "Get" {
					replyProperty(c, m)
					return
				}
				start = m
				if early {
					c.jobRemoved(job, testUnit, "done")
				}
				c.jobRemoved("/other", testUnit, "failed")
				c.jobRemoved(job, "other.service", "failed")
				c.reply(m, job)
				if !early {
					c.jobRemoved(job, testUnit, "done")
				}
			})
			s, err := dialTest(t, b).Start(t.Context(), unitNamed(testUnit, unit.Property{Name: "Type", Value: unit.String("exec")}))
			if err != nil {
				t.Fatal(err)
			}
			want := State{Name: testUnit, Load: Loaded, Active: Active, InvocationID: "abcd", MainPID: 77}
			if diff := cmp.Diff(want, s); diff != "" {
				t.Error(diff)
			}
			if got := b.called(); got != "Hello AddMatch StartTransientUnit RemoveMatch Get Get" {
				t.Errorf("calls: %s", got)
			}
			if got := start.Headers[dbus.FieldSignature].Value().(dbus.Signature).String(); got != "ssa(sv)a(sa(sv))" {
				t.Errorf("signature of StartTransientUnit: %s", got)
			}
		})
	}
}

func TestJobFails(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) {
		switch memberOf(m) {
		case "Get":
			replyProperty(c, m)
		case "ListUnitsByPatterns":
			c.reply(m, listing([2]string{testUnit, Failed}))
		default:
			c.reply(m, dbus.ObjectPath("/job/1"))
			c.jobRemoved("/job/1", testUnit, "timeout")
		}
	})
	var job *JobError
	err := dialTest(t, b).StartUnit(t.Context(), testUnit)
	if !errors.As(err, &job) || job.Result != "timeout" || job.State.Active != Failed || job.State.ExecStatus != 77 {
		t.Errorf("error %v, %+v", err, job)
	}
}

// TestLostWhileStarting: the bus goes away after PID 1 got the call. What became
// of it is read from the unit.
func TestLostWhileStarting(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after []listed
		check func(error) bool
	}{
		"it runs":   {listing([2]string{testUnit, Active}), func(err error) bool { return err == nil }},
		"it failed": {listing([2]string{testUnit, Failed}), func(err error) bool { var j *JobError; return errors.As(err, &j) }},
		"it is gone and perhaps ran": {
			listing(),
			func(err error) bool { return errors.Is(err, ErrLost) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestBus(t, func(b *testBus, conn *busConn, m *dbus.Message) {
				switch memberOf(m) {
				case "StartTransientUnit":
					b.drop()
				case "ListUnitsByPatterns":
					conn.reply(m, c.after)
				default:
					replyProperty(conn, m)
				}
			})
			_, err := dialTest(t, b).Start(t.Context(), unitNamed(testUnit))
			if !c.check(err) {
				t.Errorf("error %v", err)
			}
			if n := b.count("StartTransientUnit"); n != 1 {
				t.Errorf("started %d times", n)
			}
		})
	}
}

// TestLostStayingUnit: a unit that would stay, and is not there, did not run.
func TestLostStayingUnit(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(b *testBus, c *busConn, m *dbus.Message) {
		switch memberOf(m) {
		case "StartTransientUnit":
			if b.count("StartTransientUnit") == 1 {
				b.drop()
				return
			}
			c.reply(m, dbus.ObjectPath("/job/1"))
			c.jobRemoved("/job/1", testUnit, "done")
		case "ListUnitsByPatterns":
			c.reply(m, listing())
		default:
			replyProperty(c, m)
		}
	})
	u := unitNamed(testUnit, unit.Property{Name: "RemainAfterExit", Value: unit.Bool(true)})
	if _, err := dialTest(t, b).Start(t.Context(), u); err != nil || b.count("StartTransientUnit") != 2 {
		t.Errorf("error %v, calls: %s", err, b.called())
	}
}

// TestRetried: what may be sent twice is sent until it is answered.
func TestRetried(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(b *testBus, c *busConn, m *dbus.Message) {
		switch b.count(memberOf(m)) {
		case 1:
			b.drop()
		case 2:
			c.fail(m, "org.freedesktop.DBus.Error.ServiceUnknown", "PID 1 is not back yet")
		case 3:
			c.fail(m, "org.freedesktop.DBus.Error.NoReply", "PID 1 left")
		default:
			c.reply(m)
		}
	})
	if err := dialTest(t, b).ResetFailed(t.Context(), testUnit); err != nil || b.count("ResetFailedUnit") != 4 {
		t.Errorf("calls: %s; %v", b.called(), err)
	}
}

func TestKillIsNotSentTwice(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(b *testBus, _ *busConn, _ *dbus.Message) { b.drop() })
	err := dialTest(t, b).Kill(t.Context(), testUnit, "main", 15)
	if !errors.Is(err, ErrLost) || b.count("KillUnit") != 1 {
		t.Errorf("%v, calls: %s", err, b.called())
	}
}

// TestSilentJob: the signal of a job's end was lost with the connection of PID 1.
func TestSilentJob(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) {
		switch memberOf(m) {
		case "StopUnit":
			c.reply(m, dbus.ObjectPath("/job/1"))
		case "Get":
			c.fail(m, "org.freedesktop.DBus.Error.UnknownObject", "no such job")
		default:
			c.reply(m, listing())
		}
	})
	if err := dialTest(t, b).Stop(t.Context(), testUnit); err != nil {
		t.Error(err)
	}
}

// TestContextEnds: a job that PID 1 has not begun is cancelled; one that runs is not, nor
// is one that stops something.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		call      func(context.Context, *Manager) error
		state     string
		cancelled int
	}{
		"waiting":         {func(ctx context.Context, m *Manager) error { return m.StartUnit(ctx, testUnit) }, "waiting", 1},
		"running":         {func(ctx context.Context, m *Manager) error { return m.StartUnit(ctx, testUnit) }, "running", 0},
		"stop is waiting": {func(ctx context.Context, m *Manager) error { return m.Stop(ctx, testUnit) }, "waiting", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			b := newTestBus(t, func(_ *testBus, bus *busConn, m *dbus.Message) {
				switch memberOf(m) {
				case "StartUnit", "StopUnit":
					bus.reply(m, dbus.ObjectPath("/job/1"))
					time.AfterFunc(200*time.Millisecond, cancel) // it waits for the job by then
				case "Get":
					bus.reply(m, dbus.MakeVariant(c.state))
				default:
					bus.reply(m)
				}
			})
			err := c.call(ctx, dialTest(t, b))
			if !errors.Is(err, context.Canceled) || b.count("Cancel") != c.cancelled {
				t.Errorf("error %v, calls: %s", err, b.called())
			}
		})
	}
}

// TestCloseInFlight: whoever waits is told.
func TestCloseInFlight(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) {
		c.reply(m, dbus.ObjectPath("/job/1"))
		close(asked)
	})
	m := dialTest(t, b)
	go func() {
		<-asked
		m.Close()
	}()
	if err := m.StartUnit(t.Context(), testUnit); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) { c.fail(m, busName+".NoSuchUnit", "Unit x not loaded.") })
	m := dialTest(t, b)
	if err := m.Stop(t.Context(), testUnit); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := m.Kill(t.Context(), testUnit, "main", 9); !errors.Is(err, ErrNotFound) {
		t.Errorf("kill: %v", err)
	}
	if err := m.StartUnit(t.Context(), "x',member='Y.service"); err == nil || strings.Contains(b.called(), "StartUnit") {
		t.Errorf("a name that breaks the match rule: %v", err)
	}
	m.Close()
	if err := m.StartUnit(t.Context(), testUnit); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := Dial(t.Context(), Config{Address: "unix:path=/nonexistent/bus"}); err == nil {
		t.Error("no error without a bus")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	subscribed := make(chan *busConn, 4)
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) {
		c.reply(m)
		subscribed <- c
	})
	ctx, cancel := context.WithCancel(t.Context())
	events, err := dialTest(t, b).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := <-subscribed
	c.signal("UnitRemoved", "ssh.service", dbus.ObjectPath("/x"))
	c.signal("UnitRemoved", testUnit, dbus.ObjectPath("/x"))
	c.signal("UnitRemoved", "of another", "type")
	c.jobRemoved("/job/1", testUnit, "failed")
	c.signal("Reloading", true)
	want := []Event{{Kind: UnitRemoved, Unit: testUnit}, {Kind: JobRemoved, Unit: testUnit, Result: "failed"}, {Kind: Reload, Begin: true}}
	for _, w := range want {
		if got := <-events; got != w {
			t.Errorf("event %+v, want %+v", got, w)
		}
	}
	b.drop()
	for _, want := range []EventKind{Disconnected, Reconnected} {
		if got := <-events; got.Kind != want {
			t.Errorf("event %+v when the bus was restarted, want %s", got, want)
		}
	}
	c = <-subscribed
	for _, owners := range []struct {
		before, now string
		want        EventKind
	}{{":1.1", "", Disconnected}, {"", ":1.9", Reconnected}} {
		c.send(&dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/DBus")), dbus.FieldMember: dbus.MakeVariant("NameOwnerChanged"),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus"), dbus.FieldSender: dbus.MakeVariant("org.freedesktop.DBus"),
		}}, busName, owners.before, owners.now)
		if got := <-events; got.Kind != owners.want {
			t.Errorf("event %+v when PID 1 was away, want %s", got, owners.want)
		}
	}
	cancel()
	for range events { // closed, in the end
	}
}

// TestWatchWithoutABus: who watches hears that the bus is away while it is.
func TestWatchWithoutABus(t *testing.T) {
	t.Parallel()
	b := newTestBus(t, func(_ *testBus, c *busConn, m *dbus.Message) { c.reply(m) })
	events, err := dialTest(t, b).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.listener.Close()
	b.drop()
	select {
	case got := <-events:
		if got.Kind != Disconnected {
			t.Errorf("event %+v, want that the bus is away", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody tells that the bus is away")
	}
}

func TestQueueOverflow(t *testing.T) {
	t.Parallel()
	q := NewQueue(8)
	for range 20 {
		q.Put(Event{Kind: UnitRemoved})
	}
	for i := range 8 {
		want := UnitRemoved
		if i == 7 {
			want = Overflow
		}
		if e := <-q.Events(); e.Kind != want {
			t.Errorf("event %d: %s, want %s", i, e.Kind, want)
		}
	}
	q.Put(Event{Kind: Reload})
	if e := <-q.Events(); e.Kind != Reload {
		t.Errorf("after the overflow was read: %s", e.Kind)
	}
	q.Close()
	q.Close()
	q.Put(Event{})
}
