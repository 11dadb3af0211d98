//go:build e2e

package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// openSession connects to a streaming address, as kubelet does.
func openSession(t *testing.T, address, protocol string) httpstream.Connection {
	t.Helper()
	tripper, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
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

// openStreams makes the streams of a command, the error stream first.
func openStreams(t *testing.T, conn httpstream.Connection, kinds ...string) []httpstream.Stream {
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

func readStream(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (c container) session(t *testing.T, r *cri.ExecRequest) httpstream.Connection {
	t.Helper()
	r.ContainerId = c.id
	resp, err := c.Exec(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return openSession(t, resp.Url, remotecommand.StreamProtocolV4Name)
}

func TestExecSession(t *testing.T) {
	guard(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "session"))).runScript(t, "app", "sleep 1000000")
	conn := c.session(t, &cri.ExecRequest{Cmd: []string{"sh", "-c", "cat; echo end >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
	s := openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr)
	text := strings.Repeat("0123456789abcdef\n", 20000)
	go func() {
		io.WriteString(s[1], text)
		s[1].Close()
	}()
	if got := readStream(t, s[2]); got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
	if got := readStream(t, s[3]); got != "end\n" {
		t.Errorf("stderr: %q", got)
	}
	if got := readStream(t, s[0]); !strings.Contains(got, `"message":"5"`) {
		t.Errorf("result: %s", got)
	}
}

func TestExecSessionWithATerminal(t *testing.T) {
	guard(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "terminal"))).runScript(t, "app", "sleep 1000000")
	conn := c.session(t, &cri.ExecRequest{Cmd: []string{"sh", "-c", "read go; stty size; tty; exit 0"}, Stdin: true, Stdout: true, Tty: true})
	s := openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeResize)
	if err := json.NewEncoder(s[3]).Encode(remotecommand.TerminalSize{Width: 132, Height: 43}); err != nil {
		t.Fatal(err)
	}
	pause(patience(200 * time.Millisecond)) // the size is on its way beside what is typed
	io.WriteString(s[1], "go\n")
	if got := readStream(t, s[2]); !strings.Contains(got, "43 132") || !strings.Contains(got, "/dev/pts/") {
		t.Errorf("the terminal said %q", got)
	}
}

func TestExecSessionEndsWithItsClient(t *testing.T) {
	guard(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "vanish"))).runScript(t, "app", "sleep 1000000")
	conn := c.session(t, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo up; sleep 1000003 & sleep 1000003"}, Stdout: true})
	s := openStreams(t, conn, remotecommand.StreamTypeStdout)
	if _, err := io.ReadFull(s[1], make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	eventually(t, 5*time.Second, "the command is gone", func() bool {
		out, _, _ := c.exec(t, "sh", "-c", "ps | grep -c '[s]leep 1000003'")
		return strings.TrimSpace(out) == "0"
	})
}

func TestAttachSession(t *testing.T) {
	guard(t)
	e := dial(t)
	config := containerConfig("app", "while read line; do echo got $line; done; echo bye")
	config.Stdin, config.StdinOnce = true, true
	c := e.run(t, onHost(e.podConfig(t, "attach"))).create(t, config).start(t)
	c.talks(t, "got one\ngot two\nbye\n", 0)
}

// talks attaches to a container, says two lines and no more, and wants its answers, here and
// in the log, and its end.
func (c container) talks(t *testing.T, want string, code int32) {
	t.Helper()
	resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := openSession(t, resp.Url, remotecommand.StreamProtocolV4Name)
	s := openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr)
	io.WriteString(s[1], "one\ntwo\n")
	s[1].Close()
	if got := readStream(t, s[2]); got != want {
		t.Errorf("got %q", got)
	}
	if st := c.wait(t, 20*time.Second); st.ExitCode != code {
		t.Errorf("after the end of stdin: %v", st)
	}
	if got := texts(c.logFile(t), "stdout"); got != want {
		t.Errorf("the log has %q", got)
	}
}

// TestAttachSessionWithATerminal: what is attached to is the container's terminal, and
// its size is the client's.
func TestAttachSessionWithATerminal(t *testing.T) {
	guard(t)
	e := dial(t)
	config := containerConfig("app", "while read line; do stty size; done")
	config.Stdin, config.Tty = true, true
	c := e.run(t, onHost(e.podConfig(t, "attach-terminal"))).create(t, config).start(t)
	c.resizes(t)
}

func TestPortForwardSession(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "forward"))
	p.web(t)
	p.forwards(t, 80, 81, "nginx")
}

// web starts nginx in a pod.
func (p pod) web(t *testing.T) {
	t.Helper()
	web := containerConfig("nginx", "")
	web.Command, web.Image = nil, &cri.ImageSpec{Image: nginx}
	p.create(t, web).start(t)
}

// TestPortForwardOnTheHost: a pod in the host's network has the ports of the host.
func TestPortForwardOnTheHost(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "forward-host")))
	p.runScript(t, "web", "mkdir /web && echo from the pod >/web/index.html && exec httpd -f -h /web -p 127.0.0.1:8093")
	p.forwards(t, 8093, 8094, "from the pod")
	p.forwardsByWebSocket(t, 8093, 8094, "from the pod")
}

// forwards wants a web server that says a word behind one port, and nobody behind the
// other.
func (p pod) forwards(t *testing.T, open, closed int32, word string) {
	t.Helper()
	conn := p.forwarding(t, open)
	eventually(t, 10*time.Second, "the server answers through the session", func() bool {
		data, errs := openForward(t, conn, fmt.Sprint(time.Now().UnixNano()), open)
		errs.Close()
		go io.Copy(io.Discard, errs) // an error that nobody reads blocks the connection
		io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
		b, _ := io.ReadAll(data)
		return strings.Contains(string(b), "200 OK") && strings.Contains(string(b), word)
	})
	_, errs := openForward(t, conn, "refused", closed)
	if got := readStream(t, errs); !strings.Contains(got, "refused") {
		t.Errorf("a port where nobody listens: %q", got)
	}
}

// forwarding opens a session by SPDY.
func (p pod) forwarding(t *testing.T, port int32) httpstream.Connection {
	t.Helper()
	resp, err := p.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{port}})
	if err != nil {
		t.Fatal(err)
	}
	return openSession(t, resp.Url, portforward.ProtocolV1Name)
}

// openForward makes the streams of one connection to a port.
func openForward(t *testing.T, conn httpstream.Connection, id string, port int32) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set(portforward.PortHeader, fmt.Sprint(port))
	h.Set(portforward.PortForwardRequestIDHeader, id)
	h.Set(portforward.StreamType, portforward.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	h.Set(portforward.StreamType, portforward.StreamTypeData)
	if data, err = conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	return data, errs
}
