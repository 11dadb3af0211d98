//go:build e2e

package node

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"gantry/test/machine"
)

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
		return machine.DialWebSocket(t, resp.Url, nil, remotecommand.StreamProtocolV4Name)
	}

	conn := exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "read line; echo $line; echo end >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
	machine.Say(t, conn, machine.ChannelStdin, "all of it\n")
	if got := machine.Hear(t, conn, nil); got[machine.ChannelStdout] != "all of it\n" || got[machine.ChannelStderr] != "end\n" || !strings.Contains(got[machine.ChannelError], `"message":"5"`) {
		t.Errorf("exec: %q", got)
	}

	conn = exec(&cri.ExecRequest{Cmd: []string{"sh", "-c", "read go; stty size"}, Stdin: true, Stdout: true, Tty: true})
	size, err := json.Marshal(remotecommand.TerminalSize{Width: 132, Height: 43})
	if err != nil {
		t.Fatal(err)
	}
	machine.Say(t, conn, machine.ChannelResize, string(size))
	pause(patience(200 * time.Millisecond)) // the size is on its way beside what is typed
	machine.Say(t, conn, machine.ChannelStdin, "go\n")
	if got := machine.Hear(t, conn, nil); !strings.Contains(got[machine.ChannelStdout], "43 132") {
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
	conn = machine.DialWebSocket(t, resp.Url, nil, remotecommand.StreamProtocolV4Name)
	machine.Say(t, conn, machine.ChannelStdin, "one\n")
	got := machine.Hear(t, conn, func(got map[byte]string) bool { return strings.Contains(got[machine.ChannelStdout], "one\n") })
	if got[machine.ChannelStdout] != "got one\n" {
		t.Errorf("attach: %q", got)
	}
	p.web(t)
	p.forwardsByWebSocket(t, 80, 81, "nginx")
}

// forwardsByWebSocket wants the same as forwards.
func (p pod) forwardsByWebSocket(t *testing.T, open, closed int32, word string) {
	t.Helper()
	forward := func(port int32) *websocket.Conn {
		t.Helper()
		resp, err := p.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{port}})
		if err != nil {
			t.Fatal(err)
		}
		return machine.DialWebSocket(t, resp.Url, nil)
	}
	begin := string(binary.LittleEndian.AppendUint16(nil, uint16(open))) // of both channels
	eventually(t, 10*time.Second, "the server answers through the session", func() bool {
		conn := forward(open)
		machine.Say(t, conn, machine.ChannelData, "GET / HTTP/1.0\r\n\r\n")
		got := machine.Hear(t, conn, nil)
		return strings.HasPrefix(got[machine.ChannelData], begin+"HTTP/1.") && strings.Contains(got[machine.ChannelData], "200 OK") &&
			strings.Contains(got[machine.ChannelData], word) && got[machine.ChannelWrong] == begin
	})
	if got := machine.Hear(t, forward(closed), nil); !strings.Contains(got[machine.ChannelWrong], "refused") {
		t.Errorf("a port where nobody listens: %q", got)
	}
}
