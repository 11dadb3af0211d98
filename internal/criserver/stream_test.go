package criserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"gantry/internal/engine"
	"gantry/internal/engine/enginetest"
	"gantry/internal/pod"
)

// dial opens a session as kubelet does.
func dial(t *testing.T, address string, protocols ...string) httpstream.Connection {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil || u.Hostname() != "127.0.0.1" {
		t.Fatalf("address %q: %v", address, err)
	}
	tripper, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := (&http.Client{Transport: tripper}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, err := tripper.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// open makes the streams of a command; the error stream comes first.
func open(t *testing.T, conn httpstream.Connection, kinds ...string) []httpstream.Stream {
	t.Helper()
	var out []httpstream.Stream
	for _, k := range append([]string{remotecommand.StreamTypeError}, kinds...) {
		h := http.Header{}
		h.Set(remotecommand.StreamType, k)
		s, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// result is what the server writes to the error stream of protocol v4.
type result struct {
	Status  string
	Message string
	Details struct {
		Causes []struct{ Reason, Message string }
	}
}

func readResult(t *testing.T, s io.Reader) result {
	t.Helper()
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return r
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// programs for the fake engine.
func programs() map[string]enginetest.Program {
	return map[string]enginetest.Program{
		"cat": func(ctx context.Context, _ []string, s engine.Streams) (int, error) {
			_, err := io.Copy(s.Stdout, s.Stdin)
			if s.Stderr != nil {
				fmt.Fprint(s.Stderr, "done")
			}
			return 0, err
		},
		"fail": func(context.Context, []string, engine.Streams) (int, error) { return 42, nil },
		"sleep": func(ctx context.Context, _ []string, _ engine.Streams) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		},
		"size": func(ctx context.Context, _ []string, s engine.Streams) (int, error) {
			size := <-s.Resize
			fmt.Fprintf(s.Stdout, "%dx%d tty=%t", size.Width, size.Height, s.TTY)
			return 0, nil
		},
		"flood": func(_ context.Context, argv []string, s engine.Streams) (int, error) {
			chunk := []byte(strings.Repeat("x", 1<<20))
			for range 20 {
				if n, err := s.Stdout.Write(chunk); n != len(chunk) || err != nil {
					return 1, err
				}
				if len(argv) > 1 {
					s.Stderr.Write(chunk)
				}
			}
			return 3, nil
		},
	}
}

func (b *bench) exec(t *testing.T, id string, r *runtimeapi.ExecRequest) string {
	t.Helper()
	r.ContainerId = id
	resp, err := b.Exec(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func running(t *testing.T) (*bench, string) {
	t.Helper()
	b := newBench(t)
	b.engine.Programs = programs()
	return b, b.start(t, b.run(t, "a"), nil)
}

func TestExecSession(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	address := b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
	conn := dial(t, address, remotecommand.StreamProtocolV4Name)
	s := open(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr)
	text := strings.Repeat("all of it\n", 10000)
	go func() {
		io.WriteString(s[1], text)
		s[1].Close()
	}()
	if got := readAll(t, s[2]); got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
	if got := readAll(t, s[3]); got != "done" {
		t.Errorf("stderr: %q", got)
	}
	if r := readResult(t, s[0]); r.Status != "Success" {
		t.Errorf("result: %+v", r)
	}
	// A token is good for one session.
	resp, err := http.Post(address, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("the token was good twice: %s", resp.Status)
	}
}

func TestExecSessionTellsTheExitCode(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"fail"}, Stdout: true}), remotecommand.StreamProtocolV4Name)
	s := open(t, conn, remotecommand.StreamTypeStdout)
	r := readResult(t, s[0])
	if r.Status != "Failure" || len(r.Details.Causes) != 1 || r.Details.Causes[0].Message != "42" {
		t.Errorf("result: %+v", r)
	}
}

func TestExecSessionWithATerminal(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}), remotecommand.StreamProtocolV4Name)
	s := open(t, conn, remotecommand.StreamTypeStdout, remotecommand.StreamTypeResize)
	if err := json.NewEncoder(s[2]).Encode(remotecommand.TerminalSize{Width: 132, Height: 43}); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s[1]); got != "132x43 tty=true" {
		t.Errorf("got %q", got)
	}
}

// A command whose client vanishes must not run on for ever.
func TestExecSessionEndsWithItsClient(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true}), remotecommand.StreamProtocolV4Name)
	open(t, conn, remotecommand.StreamTypeStdout)
	wantCall(t, b, "Exec "+id)
	conn.Close()
	wantCall(t, b, "ExecEnd "+id)
}

func wantCall(t *testing.T, b *bench, prefix string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); <-tick.C {
		if slices.ContainsFunc(b.engine.Calls(), func(c string) bool { return strings.HasPrefix(c, prefix) }) {
			return
		}
	}
	t.Errorf("no call %q in %q", prefix, b.engine.Calls())
}

func TestSessionsEndWithTheServer(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true}), remotecommand.StreamProtocolV4Name)
	open(t, conn, remotecommand.StreamTypeStdout)
	wantCall(t, b, "Exec "+id)
	b.stop()
	wantCall(t, b, "ExecEnd "+id)
	select {
	case <-conn.CloseChan():
	case <-time.After(5 * time.Second):
		t.Error("the session is still open")
	}
}

func TestAttachSession(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	resp, err := b.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id[:9], Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, resp.Url, remotecommand.StreamProtocolV4Name)
	s := open(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout)
	io.WriteString(s[1], "hello")
	s[1].Close()
	if got := readAll(t, s[2]); got != "attached to "+id+"\nhello" {
		t.Errorf("got %q", got)
	}
	wantCode(t, second(b.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdout: true, Tty: true})), codes.InvalidArgument)
}

func TestPortForwardSession(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	status, err := b.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podOf(t, b, id)})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: status.Status.Id, Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, resp.Url, portforward.ProtocolV1Name)
	for i := range 3 { // several connections share a session
		h := http.Header{}
		h.Set(portforward.PortHeader, "80")
		h.Set(portforward.PortForwardRequestIDHeader, fmt.Sprint(i))
		h.Set(portforward.StreamType, portforward.StreamTypeError)
		errs, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		errs.Close()
		h.Set(portforward.StreamType, portforward.StreamTypeData)
		data, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat(fmt.Sprint(i), 100000)
		go func() {
			io.WriteString(data, text)
			data.Close()
		}()
		if got := readAll(t, data); got != text {
			t.Errorf("%d bytes came back of %d", len(got), len(text))
		}
		if got := readAll(t, errs); got != "" {
			t.Errorf("error: %q", got)
		}
	}
	if _, err := b.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: status.Status.Id}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, second(b.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: status.Status.Id})), codes.FailedPrecondition)
}

func podOf(t *testing.T, b *bench, app string) string {
	t.Helper()
	a, err := b.engine.App(pod.ID(app))
	if err != nil {
		t.Fatal(err)
	}
	return string(a.Pod)
}

func TestSessionsThatCannotBe(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	ctx := t.Context()
	wantCode(t, second(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"a"}})), codes.InvalidArgument)
	wantCode(t, second(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Stdout: true})), codes.InvalidArgument)
	wantCode(t, second(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"a"}, Tty: true, Stderr: true})), codes.InvalidArgument)
	b.engine.End(pod.ID(id), 0, 0, pod.ReasonCompleted)
	wantCode(t, second(b.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"a"}, Stdout: true})), codes.FailedPrecondition)
	wantCode(t, second(b.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})), codes.FailedPrecondition)
	wantCode(t, second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"a"}})), codes.FailedPrecondition)
}

func TestExecSync(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	ctx := t.Context()
	r, err := b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"fail"}})
	if err != nil || r.ExitCode != 42 {
		t.Errorf("exit code: %v, %v", r, err)
	}
	r, err = b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"nothing"}})
	if err != nil || r.ExitCode != 127 {
		t.Errorf("unknown command: %v, %v", r, err)
	}
	wantCode(t, second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id})), codes.InvalidArgument)
	wantCode(t, second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"a"}, Timeout: -1})), codes.InvalidArgument)
	start := time.Now()
	wantCode(t, second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep"}, Timeout: 1})), codes.DeadlineExceeded)
	if took := time.Since(start); took < time.Second || took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		wantCall(t, b, "Exec "+id)
		cancel()
	}()
	wantCode(t, second(b.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep"}})), codes.Canceled)
}

// TestExecSyncThatIsKilled: its runtime says something when it is killed. The time was
// over, whatever that is.
func TestExecSyncThatIsKilled(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	b.engine.Programs["killed"] = func(ctx context.Context, _ []string, _ engine.Streams) (int, error) {
		<-ctx.Done()
		return 0, fmt.Errorf("%w: the runtime was killed", pod.ErrInvalid)
	}
	_, err := b.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"killed"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded)
	if !strings.Contains(err.Error(), "the runtime was killed") {
		t.Errorf("no reason: %v", err)
	}
}

// An answer is cut to what a client takes, and the command is none the wiser.
func TestExecSyncCutsTheOutput(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	for _, argv := range [][]string{{"flood"}, {"flood", "both"}} {
		r, err := b.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: argv})
		if err != nil || r.ExitCode != 3 {
			t.Fatalf("%v: %v", argv, err)
		}
		if n := len(r.Stdout) + len(r.Stderr); n != maxAnswer || len(argv) > 1 && len(r.Stdout) != len(r.Stderr) {
			t.Errorf("%v: %d + %d bytes", argv, len(r.Stdout), len(r.Stderr))
		}
	}
}

// TestExecSyncOfADaemon: the output of what a command left behind is written while
// the answer is put together.
func TestExecSyncOfADaemon(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	b.engine.Programs["daemon"] = func(_ context.Context, _ []string, s engine.Streams) (int, error) {
		fmt.Fprint(s.Stdout, "started\n")
		go func() {
			defer close(stopped)
			for {
				fmt.Fprint(s.Stdout, "still there\n")
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		return 0, nil
	}
	r, err := b.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"daemon"}})
	if err != nil || !strings.HasPrefix(string(r.Stdout), "started\n") {
		t.Errorf("got %.40q, %v", r.GetStdout(), err)
	}
	close(stop)
	<-stopped
}

func TestOutputIsTakenOnce(t *testing.T) {
	t.Parallel()
	h := &head{limit: 8}
	write := func(s string) {
		if n, err := h.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	write("12345")
	write("6789")
	got := h.take()
	write("x")
	if string(got) != "12345678" || len(h.take()) != 0 {
		t.Errorf("took %q, and %q is kept of what came later", got, h.data)
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	for _, c := range [][5]int{{3, 4, 10, 3, 4}, {30, 4, 10, 6, 4}, {3, 40, 10, 3, 7}, {30, 40, 10, 5, 5}, {0, 40, 10, 0, 10}} {
		a, b := fit(make([]byte, c[0]), make([]byte, c[1]), c[2])
		if len(a) != c[3] || len(b) != c[4] {
			t.Errorf("%v: got %d, %d", c, len(a), len(b))
		}
	}
}
