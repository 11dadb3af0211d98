package machine

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gantry/internal/guest/guestpb"
)

// fakeAgent has an app that is fed as the agent feeds one.
type fakeAgent struct {
	guestpb.GuestService
	// breaks has the connection break after so many bytes of a write were taken, once; -1 never.
	breaks int

	mu    sync.Mutex
	said  strings.Builder
	ended bool
}

var errBroken = errors.New("the connection is broken")

func (f *fakeAgent) Write(ctx context.Context, r *guestpb.WriteRequest) (*guestpb.WriteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	have := uint64(f.said.Len())
	if r.Offset > have && len(r.Data) > 0 {
		return nil, errors.New("there is no such offset")
	}
	if known := have - r.Offset; len(r.Data) > 0 && known < uint64(len(r.Data)) {
		data := r.Data[known:]
		if f.breaks >= 0 {
			f.said.Write(data[:min(f.breaks, len(data))])
			f.breaks = -1
			return nil, errBroken
		}
		f.said.Write(data)
	}
	f.ended = f.ended || r.Eof
	return &guestpb.WriteResponse{Offset: uint64(f.said.Len())}, nil
}

func (f *fakeAgent) state() (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.said.String(), f.ended
}

// TestFeed: an app is told each byte once, by a process that is killed and the one after it.
func TestFeed(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]int{"nothing taken": 0, "a part taken": 3, "all taken": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, theirs, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			hold, err := holdPipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { in.Close(); hold.Close() })
			agent := &fakeAgent{breaks: taken}
			dir := t.TempDir()
			another := func() *proxy {
				return &proxy{dir: dir, client: &Client{GuestService: agent}, stdio: [3]*os.File{in}, hold: hold}
			}
			if _, err := theirs.WriteString("hello\n"); err != nil {
				t.Fatal(err)
			}
			if err := another().feedAll(t.Context()); !errors.Is(err, errBroken) {
				t.Fatalf("the first: %v", err)
			}
			if _, err := theirs.WriteString("world\n"); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			if err := another().feedAll(t.Context()); err != nil {
				t.Errorf("the second: %v", err)
			}
			if said, ended := agent.state(); said != "hello\nworld\n" || !ended {
				t.Errorf("the app was told %q, and of the end: %t", said, ended)
			}
		})
	}
}

// TestFeedFromTerminal: what somebody types comes through as it is.
func TestFeedFromTerminal(t *testing.T) {
	t.Parallel()
	slave, master, err := terminal()
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	hold, err := holdPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close(); hold.Close() })
	agent := &fakeAgent{breaks: -1}
	p := &proxy{dir: t.TempDir(), client: &Client{GuestService: agent}, stdio: [3]*os.File{slave, slave, slave}, hold: hold, master: slave}
	done := make(chan error, 1)
	go func() { done <- p.feedAll(t.Context()) }()
	const typed = "ls\r\x03\x04"
	if _, err := master.WriteString(typed); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if said, _ := agent.state(); said == typed {
			break
		}
		<-time.After(time.Millisecond)
	}
	master.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if said, ended := agent.state(); said != typed || !ended {
		t.Errorf("the app was told %q, and of the end: %t", said, ended)
	}
}

// deafAgent answers nothing that it is asked for, and an app of it never ends.
type deafAgent struct{ guestpb.GuestService }

func (deafAgent) Read(ctx context.Context, r *guestpb.ReadRequest) (*guestpb.ReadResponse, error) {
	if r.Stream == 1 {
		return nil, errBroken
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (deafAgent) Wait(ctx context.Context, _ *guestpb.WaitRequest) (*guestpb.WaitResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestListenEndsWithTheOutput: an app whose output cannot be had is not waited for as if all
// were well: it would fill what its machine keeps, and stand still.
func TestListenEndsWithTheOutput(t *testing.T) {
	t.Parallel()
	p := &proxy{client: &Client{GuestService: deafAgent{}}}
	done := make(chan error, 1)
	go func() {
		_, err := p.listen(t.Context())
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, errBroken) {
			t.Errorf("got %v, want %v", err, errBroken)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
}

// TestLineIsReplaced: a connection's calls are numbered, and it is another before they run
// out.
func TestLineIsReplaced(t *testing.T) {
	t.Parallel()
	first, second := &Client{GuestService: deafAgent{}}, &Client{GuestService: deafAgent{}}
	refused := true
	l := &line{client: first, most: 3, dial: func(context.Context) (*Client, error) {
		if refused {
			return nil, errBroken
		}
		return second, nil
	}}
	for i := range 3 {
		if got := l.next(t.Context()); got != first {
			t.Errorf("call %d does not go to the connection that there is", i+1)
		}
	}
	refused = false
	for i, want := range []*Client{first, first, second, second} {
		if got := l.next(t.Context()); got != want {
			t.Errorf("after a refusal, call %d goes elsewhere", i+1)
		}
	}
	if !l.own {
		t.Error("nobody will close the new connection")
	}
}
