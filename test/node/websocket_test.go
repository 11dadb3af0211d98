//go:build e2e

package node

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// The channels of a WebSocket: the first byte of each message. In a port-forward the
// first is the data and the second what went wrong.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
)

func dialWebSocket(t *testing.T, address string, protocols ...string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http://", "ws://", 1), "http://127.0.0.1/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = protocols
	conn, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience(30 * time.Second))); err != nil {
		t.Fatal(err)
	}
	return conn
}

func say(t *testing.T, conn *websocket.Conn, channel byte, text string) {
	t.Helper()
	if err := websocket.Message.Send(conn, append([]byte{channel}, text...)); err != nil {
		t.Fatal(err)
	}
}

// hear collects what comes by channel until the session is over, or enough is there.
func hear(t *testing.T, conn *websocket.Conn, enough func(map[byte]string) bool) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for enough == nil || !enough(got) {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			if err != io.EOF {
				t.Errorf("the session ended with %v, after %q", err, got)
			}
			return got
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
	return got
}

// TestSessionsByWebSocket: all three kinds of session by the transport that newer clients
// use.
func TestSessionsByWebSocket(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "websocket"))
	config := containerConfig("app", "while read line; do echo got $line; done; echo bye >&2")
	config.Stdin, config.StdinOnce = true, false
	c := p.create(t, config).start(t)
	exec := func(r *cri.ExecRequest) *websocket.Conn {
		t.Helper()
		r.ContainerId = c.id
		resp, err := c.Exec(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return dialWebSocket(t, resp.Url, remotecommand.StreamProtocolV4Name)
	}

	conn := exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "read line; echo $line; echo end >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
	say(t, conn, channelStdin, "all of it\n")
	if got := hear(t, conn, nil); got[channelStdout] != "all of it\n" || got[channelStderr] != "end\n" || !strings.Contains(got[channelError], `"message":"5"`) {
		t.Errorf("exec: %q", got)
	}

	conn = exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "read go; stty size"}, Stdin: true, Stdout: true, Tty: true})
	size, err := json.Marshal(remotecommand.TerminalSize{Width: 132, Height: 43})
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, channelResize, string(size))
	pause(patience(200 * time.Millisecond)) // the size is on its way beside what is typed
	say(t, conn, channelStdin, "go\n")
	if got := hear(t, conn, nil); !strings.Contains(got[channelStdout], "43 132") {
		t.Errorf("terminal: %q", got)
	}

	exec(&cri.ExecRequest{Cmd: []string{"sleep", "1000007"}, Stdout: true}).Close()
	eventually(t, 10*time.Second, "a command ends with its client", func() bool {
		out, _, _ := c.exec(t, "sh", "-c", "ps | grep -c '[s]leep 1000007'")
		return strings.TrimSpace(out) == "0"
	})

	resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	conn = dialWebSocket(t, resp.Url, remotecommand.StreamProtocolV4Name)
	say(t, conn, channelStdin, "one\n")
	got := hear(t, conn, func(got map[byte]string) bool { return strings.Contains(got[channelStdout], "one\n") })
	if got[channelStdout] != "got one\n" {
		t.Errorf("attach: %q", got)
	}
	p.forwardsByWebSocket(t)
}

func (p pod) forwardsByWebSocket(t *testing.T) {
	t.Helper()
	web := containerConfig("nginx", "")
	web.Command, web.Image = nil, &cri.ImageSpec{Image: nginx}
	p.create(t, web).start(t)
	forward := func(port int32) *websocket.Conn {
		t.Helper()
		resp, err := p.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{port}})
		if err != nil {
			t.Fatal(err)
		}
		return dialWebSocket(t, resp.Url)
	}
	eventually(t, 10*time.Second, "nginx answers through the session", func() bool {
		conn := forward(80)
		say(t, conn, 0, "GET / HTTP/1.0\r\n\r\n")
		got := hear(t, conn, nil)
		// Both channels begin with the port.
		return strings.HasPrefix(got[0], "\x50\x00HTTP/1.") && strings.Contains(got[0], "200 OK") && got[1] == "\x50\x00"
	})
	if got := hear(t, forward(81), nil); !strings.Contains(got[1], "refused") {
		t.Errorf("a port where nobody listens: %q", got)
	}
}
