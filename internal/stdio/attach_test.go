package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// session is an attached client.
type session struct {
	out, err syncBuffer
	done     chan error
	cancel   context.CancelFunc
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *supervisor) attach(a *app, stdin io.Reader, resize <-chan Size) *session {
	s.t.Helper()
	before := s.status(a.spec.App).App.Attached
	ctx, cancel := context.WithCancel(s.t.Context())
	k := &session{done: make(chan error, 1), cancel: cancel}
	go func() {
		k.done <- s.client.Attach(ctx, a.spec.App, AttachOptions{Stdin: stdin, Stdout: &k.out, Stderr: &k.err, Resize: resize})
	}()
	until(s.t, "the client is attached", func() bool { return s.status(a.spec.App).App.Attached > before })
	return k
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("in vain: %s", what)
}

func TestAttach(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	print(t, a.stdout, "before\n", 1)
	until(t, "the first line is written", func() bool { return s.status(a.spec.App).App.Offset > 0 })
	one, two := s.attach(a, nil, nil), s.attach(a, nil, nil)
	print(t, a.stdout, "out\nno newline", 1)
	print(t, a.stderr, "err\n", 1)
	until(t, "bytes arrive before the line ends", func() bool { return one.out.String() == "out\nno newline" && one.err.String() == "err\n" })
	one.cancel()
	if err := <-one.done; !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left: %v", err)
	}
	print(t, a.stdout, " more\n", 1)
	a.close()
	if err := <-two.done; err != nil {
		t.Errorf("a client that stayed: %v", err)
	}
	same(t, "attached", two.out.String(), "out\nno newline more\n")
	s.drain(a)
	same(t, "log", content(t, a.spec.Log)[stdout], "before\nout\nno newline more\n")
	if err := s.client.Attach(t.Context(), a.spec.App, AttachOptions{Stdout: io.Discard}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("attach after the end: %v", err)
	}
}

func TestAttachLosesServer(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	k := s.attach(a, nil, nil)
	s.kill()
	if err := <-k.done; !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("the server was killed: %v", err)
	}
	k = s.attach(a, nil, nil)
	print(t, a.stdout, "hello\n", 1)
	a.close()
	if err := <-k.done; err != nil {
		t.Error(err)
	}
	same(t, "attached", k.out.String(), "hello\n")
	s.drain(a)
}

// A client that reads nothing does not keep the log, nor other clients.
func TestAttachSlowClient(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	slow, err := dial(s.client.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.close()
	if _, err := exchange(slow, request{Op: "attach", App: a.spec.App, Stdout: true}); err != nil {
		t.Fatal(err)
	}
	out := text(9, 12000)
	if len(out) < 2*sinkLimit {
		t.Fatalf("only %d bytes", len(out))
	}
	if _, err := a.stdout.WriteString(out); err != nil {
		t.Fatal(err)
	}
	a.close()
	s.drain(a)
	same(t, "log", content(t, a.spec.Log)[stdout], out)
	var told string
	buf := make([]byte, maxFrame)
	for {
		n, _, err := slow.recv(buf)
		if err != nil {
			break
		}
		if buf[0] == frameEnd {
			told = string(buf[1:n])
		}
	}
	if !strings.Contains(told, "fell behind") {
		t.Errorf("the slow client was told %q", told)
	}
}

func TestStdin(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(func(sp *Spec) { sp.Stdin = true })
	s.start(a)
	k := s.attach(a, strings.NewReader("one\n"), nil)
	got := make([]byte, 100)
	if n, err := a.stdin.Read(got); string(got[:n]) != "one\n" {
		t.Errorf("read %q, %v", got[:n], err)
	}
	k.cancel()
	<-k.done
	s.kill()
	in, feed := io.Pipe()
	k = s.attach(a, in, nil)
	large := strings.Repeat("0123456789abcdef", 20000) // more than a pipe holds
	go func() {
		_, _ = io.WriteString(feed, large)
	}()
	all := make([]byte, len(large))
	if _, err := io.ReadFull(a.stdin, all); err != nil || string(all) != large {
		t.Errorf("stdin was mangled: %v", err)
	}
	if err := s.client.CloseStdin(t.Context(), a.spec.App); err != nil {
		t.Error(err)
	}
	if n, err := a.stdin.Read(got); err != io.EOF {
		t.Errorf("after the end: read %q, %v", got[:n], err)
	}
	a.close()
	<-k.done
	s.drain(a)
}

func TestStdinOnce(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"", "stdin-marked"} {
		t.Run("killed at "+point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(func(sp *Spec) { sp.Stdin, sp.StdinOnce = true, true })
			s.start(a)
			if point != "" {
				s.arm(point, 1)
			}
			done := make(chan error, 1)
			go func() {
				done <- s.client.Attach(t.Context(), a.spec.App, AttachOptions{Stdin: strings.NewReader("all there is"), Stdout: io.Discard})
			}()
			all, err := io.ReadAll(a.stdin)
			if string(all) != "all there is" || err != nil {
				t.Errorf("read %q, %v", all, err)
			}
			print(t, a.stdout, "thanks\n", 1)
			a.close()
			if err := <-done; err != nil && point == "" {
				t.Error(err)
			}
			s.drain(a)
		})
	}
}

func TestNoStdin(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	if all, err := io.ReadAll(a.stdin); len(all) > 0 || err != nil {
		t.Errorf("read %q, %v", all, err)
	}
	a.close()
	s.drain(a)
}

// terminal makes a pty; the master goes to the server, as an OCI runtime does it.
func (s *supervisor) terminal(a *app) (slave *os.File) {
	s.t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		s.t.Fatal(err)
	}
	fd, err := openPeer(master)
	if err != nil {
		s.t.Fatal(err)
	}
	for try := range 100 {
		if err = handOver(a.console, master); err == nil {
			break
		}
		if try == 99 {
			s.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return os.NewFile(uintptr(fd), "slave")
}

func openPeer(master int) (int, error) {
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	return unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
}

func handOver(path string, master int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return unix.Sendmsg(fd, []byte("pty"), unix.UnixRights(master), nil, unix.MSG_NOSIGNAL)
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"", "spliced", "written", "console-stored", "console-accepted"} {
		t.Run("killed at "+point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(func(sp *Spec) { sp.TTY, sp.Stdin = true, true })
			s.start(a)
			if point != "" {
				s.arm(point, 1)
			}
			slave := s.terminal(a)
			if point == "console-accepted" {
				// The one moment at which a terminal is lost, unless it was killed before the
				// master was sent: whoever starts the app asks.
				err := s.client.Console(t.Context(), a.spec.App, 100*time.Millisecond)
				if err != nil && !errors.Is(err, pod.ErrUnavailable) {
					t.Errorf("wait for a lost terminal: %v", err)
				}
				if err != nil {
					slave.Close()
					slave = s.terminal(a)
				}
			}
			if err := s.client.Console(t.Context(), a.spec.App, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			if err := s.client.Resize(t.Context(), a.spec.App, Size{Width: 101, Height: 33}); err != nil {
				t.Error(err)
			}
			ws, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ)
			if err != nil || ws.Col != 101 || ws.Row != 33 {
				t.Errorf("size %+v, %v", ws, err)
			}
			out := text(4, 300)
			print(t, slave, out, 1)
			in, feed := io.Pipe()
			k := s.attach(a, in, nil)
			if _, err := io.WriteString(feed, "typed\n"); err != nil {
				t.Error(err)
			}
			got := make([]byte, 100)
			if n, err := slave.Read(got); string(got[:n]) != "typed\n" {
				t.Errorf("read %q, %v", got[:n], err)
			}
			if _, err := slave.WriteString("bye"); err != nil {
				t.Error(err)
			}
			slave.Close()
			if err := <-k.done; err != nil {
				t.Error(err)
			}
			s.drain(a)
			want := strings.ReplaceAll(out+"typed\n", "\n", "\r\n") + "bye"
			same(t, "terminal", content(t, a.spec.Log)[stdout], want)
		})
	}
}

// An app that never came to hand over its terminal is drained at once.
func TestTerminalNeverCame(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(func(sp *Spec) { sp.TTY = true })
	s.start(a)
	begin := time.Now()
	s.drain(a)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

// TestAttachBeforeStart: who attaches to an app that is not started yet misses nothing
// of what it prints, and what was typed meanwhile arrives.
func TestAttachBeforeStart(t *testing.T) {
	t.Parallel()
	for _, tty := range []bool{true, false} {
		t.Run("tty="+strconv.FormatBool(tty), func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(func(sp *Spec) { sp.TTY, sp.Stdin = tty, true })
			in, feed := io.Pipe()
			go io.WriteString(feed, "typed\n")
			sizes := make(chan Size, 1)
			sizes <- Size{Width: 101, Height: 33}
			var out syncBuffer
			err := s.client.Attach(t.Context(), a.spec.App, AttachOptions{
				Stdin: in, Stdout: &out, Resize: sizes,
				Start: func() error { go play(t, s, a, tty); return nil },
			})
			if err != nil {
				t.Error(err)
			}
			s.drain(a)
			want := "first\nread typed\n"
			got := strings.ReplaceAll(out.String(), "\r\n", "\n")
			if tty { // the terminal's echo of what was typed comes when it comes
				got = strings.Replace(got, "typed\n", "", 1)
			}
			same(t, "session", got, want)
			same(t, "log", content(t, a.spec.Log)[stdout], out.String())
		})
	}
}

// play is an app that prints a line at once, then what it reads, and ends.
func play(t *testing.T, s *supervisor, a *app, tty bool) {
	s.start(a)
	in, out := a.stdin, a.stdout
	if tty {
		time.Sleep(50 * time.Millisecond) // so that input comes before the terminal
		in = s.terminal(a)
		out = in
		if err := s.client.Console(t.Context(), a.spec.App, 5*time.Second); err != nil {
			t.Error(err)
		}
		until(t, "the terminal has the session's size", func() bool {
			ws, err := unix.IoctlGetWinsize(int(in.Fd()), unix.TIOCGWINSZ)
			return err == nil && ws.Col == 101
		})
	}
	print(t, out, "first\n", 1)
	got := make([]byte, 100)
	n, err := in.Read(got)
	if err != nil {
		t.Error(err)
	}
	print(t, out, "read "+string(got[:n]), 1)
	if tty {
		in.Close()
	}
	a.close()
}

// A start that fails ends the session, and so does a client that leaves before the
// app came: an app that comes later has no session.
func TestAttachBeforeStartFails(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	failed := errors.New("no such image")
	if err := s.client.Attach(t.Context(), a.spec.App, AttachOptions{Stdout: io.Discard, Start: func() error { return failed }}); !errors.Is(err, failed) {
		t.Errorf("error = %v", err)
	}
	until(t, "the server has seen it", func() bool { return s.status("").Early == 0 })
	s.start(a)
	if n := s.status(a.spec.App).App.Attached; n != 0 {
		t.Errorf("%d sessions are given to an app that came later", n)
	}
	a.close()
	s.drain(a)
	if err := s.client.Attach(t.Context(), a.spec.App, AttachOptions{Stdout: io.Discard}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("without Start: %v", err)
	}
}
