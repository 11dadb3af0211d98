//go:build e2e

package node

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"gantry/test/machine"
)

// TestIdleSessions: sessions of each kind, by both transports, end when nothing happens
// on them for long; what an exec started ends with it, and the container does not. One
// on which something happens goes on.
func TestIdleSessions(t *testing.T) {
	guard(t)
	needsGantry(t)
	idle := patience(5 * time.Second)
	withConfig(t, "[cri]\nstream-idle = \""+idle.String()+"\"\n")
	e := dial(t)
	p := e.run(t, e.podConfig(t, "idle"))
	config := containerConfig("app", "nc -ll -p 90 -e sh -c 'read x1000009' & while read line; do echo got $line; done")
	config.Stdin = true
	c := p.create(t, config).start(t)
	marked := func() string {
		out, _, _ := c.exec(t, "sh", "-c", "ps | grep -v 'nc -ll' | grep -c '[1]000009'")
		return strings.TrimSpace(out)
	}
	eventually(t, 10*time.Second, "it listens", func() bool {
		out, _, _ := c.exec(t, "netstat", "-ltn")
		return strings.Contains(out, ":90 ")
	})
	ends := map[string]func() bool{}
	for name, open := range map[string]func() (spdy httpstream.Connection, ws *websocket.Conn){
		"exec": func() (httpstream.Connection, *websocket.Conn) {
			conn := c.session(t, &cri.ExecRequest{Cmd: []string{"sleep", "1000009"}, Stdout: true})
			openStreams(t, conn, remotecommand.StreamTypeStdout)
			return conn, nil
		},
		"exec by WebSocket": func() (httpstream.Connection, *websocket.Conn) {
			resp, err := c.Exec(t.Context(), &cri.ExecRequest{ContainerId: c.id, Cmd: []string{"sleep", "1000009"}, Stdout: true})
			return nil, dialAnswer(t, resp.GetUrl(), err, remotecommand.StreamProtocolV4Name)
		},
		"attach": func() (httpstream.Connection, *websocket.Conn) {
			resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			conn := openSession(t, resp.Url, remotecommand.StreamProtocolV4Name)
			openStreams(t, conn, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout)
			return conn, nil
		},
		"attach by WebSocket": func() (httpstream.Connection, *websocket.Conn) {
			resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true})
			return nil, dialAnswer(t, resp.GetUrl(), err, remotecommand.StreamProtocolV4Name)
		},
		"port-forward": func() (httpstream.Connection, *websocket.Conn) {
			conn := p.forwarding(t, 90)
			openForward(t, conn, "idle", 90)
			return conn, nil
		},
		"port-forward by WebSocket": func() (httpstream.Connection, *websocket.Conn) {
			resp, err := p.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{90}})
			return nil, dialAnswer(t, resp.GetUrl(), err)
		},
	} {
		ended := make(chan struct{})
		spdy, ws := open()
		go func() {
			if spdy != nil {
				<-spdy.CloseChan()
			} else if !hungUp(ws) {
				return
			}
			close(ended)
		}()
		ends[name] = func() bool { return closed(ended) }
	}
	busy := c.session(t, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true})
	talk := openStreams(t, busy, remotecommand.StreamTypeStdin, remotecommand.StreamTypeStdout)
	began := time.Now()
	if got := marked(); got != "4" {
		t.Errorf("in the sessions run %s processes, want those of two execs and of two connections", got)
	}
	open := func() bool {
		for _, ended := range ends {
			if !ended() {
				return true
			}
		}
		return time.Since(began) < idle+idle/4
	}
	for open() && time.Since(began) < 3*idle {
		io.WriteString(talk[1], "x")
		if _, err := io.ReadFull(talk[2], make([]byte, 1)); err != nil {
			t.Fatalf("the session on which something happens, after %s: %v", time.Since(began), err)
		}
		pause(idle / 8)
	}
	for name, ended := range ends {
		if !ended() {
			t.Errorf("%s has not ended", name)
		}
	}
	if closed(busy.CloseChan()) {
		t.Error("the session on which something happens has ended")
	}
	talk[1].Close()
	eventually(t, 10*time.Second, "what ran in the sessions has ended", func() bool { return marked() == "0" })
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: %v", s)
	}
}

// dialAnswer opens what a request gave the address of.
func dialAnswer(t *testing.T, url string, err error, protocols ...string) *websocket.Conn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return machine.DialWebSocket(t, url, nil, protocols...)
}

// hungUp reads until the other side is gone. It is false of one that was silent until
// the deadline.
func hungUp(conn *websocket.Conn) bool {
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

func closed[T any](c <-chan T) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
