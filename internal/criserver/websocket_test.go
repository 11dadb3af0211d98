package criserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"gantry/internal/engine"
)

// The channels of a WebSocket: the first byte of each message.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
)

// dialWebSocket opens a session as a browser does. The protocol is the newest that a
// runtime is asked for: the API server translates later ones.
func dialWebSocket(t *testing.T, address string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http://", "ws://", 1), "http://127.0.0.1/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{remotecommand.StreamProtocolV4Name}
	conn, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// receive collects what comes by channel, until the session is over.
func receive(t *testing.T, conn *websocket.Conn) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Logf("the session ended with: %v", err)
			}
			return got
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
}

func TestExecByWebSocket(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	b.engine.Programs["line"] = func(_ context.Context, _ []string, s engine.Streams) (int, error) {
		line, err := bufio.NewReader(s.Stdin).ReadString('\n')
		fmt.Fprint(s.Stdout, line)
		fmt.Fprint(s.Stderr, "done")
		return 0, err
	}
	conn := dialWebSocket(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"line"}, Stdin: true, Stdout: true, Stderr: true}))
	if err := websocket.Message.Send(conn, append([]byte{channelStdin}, "all of it\n"...)); err != nil {
		t.Fatal(err)
	}
	got := receive(t, conn)
	var r result
	if err := json.Unmarshal([]byte(got[channelError]), &r); err != nil || r.Status != "Success" {
		t.Errorf("result %q: %v", got[channelError], err)
	}
	if got[channelStdout] != "all of it\n" || got[channelStderr] != "done" {
		t.Errorf("got %q", got)
	}
}

func TestExecByWebSocketTellsTheExitCode(t *testing.T) {
	t.Parallel()
	b, id := running(t)
	got := receive(t, dialWebSocket(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"fail"}, Stdout: true})))
	var r result
	if err := json.Unmarshal([]byte(got[channelError]), &r); err != nil || r.Status != "Failure" || len(r.Details.Causes) != 1 || r.Details.Causes[0].Message != "42" {
		t.Errorf("result %q: %v", got[channelError], err)
	}
}

// TestIdleSessionsEnd: a session on which nothing happens for as long as is configured.
func TestIdleSessionsEnd(t *testing.T) {
	t.Parallel()
	b := newBenchWith(t, func(c *Config) { c.StreamIdle = 100 * time.Millisecond })
	b.engine.Programs = programs()
	id := b.start(t, b.run(t, "a"), nil)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true}), remotecommand.StreamProtocolV4Name)
	open(t, conn, remotecommand.StreamTypeStdout)
	wantCall(t, b, "Exec "+id)
	wantCall(t, b, "ExecEnd "+id)
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("the connection is open still")
	}
}
