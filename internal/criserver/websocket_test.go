package criserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
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
	return dialWebSocketWith(t, address, remotecommand.StreamProtocolV4Name)
}

func dialWebSocketWith(t *testing.T, address, protocol string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http://", "ws://", 1), "http://127.0.0.1/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{protocol}
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

// TestPortForwardByWebSocket: it has two channels for each port of the request, and
// nothing else says which ports are meant.
func TestPortForwardByWebSocket(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	sandbox := b.run(t, "a")
	resp, err := b.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{80, 8080}})
	if err != nil {
		t.Fatal(err)
	}
	conn := dialWebSocketWith(t, resp.Url, "v4.channel.k8s.io")
	const secondPort = 2 // its channel for data
	if err := websocket.Message.Send(conn, append([]byte{secondPort}, "hello"...)); err != nil {
		t.Fatal(err)
	}
	port := binary.LittleEndian.AppendUint16(nil, 8080)
	got, want := []byte{}, append(port, "hello"...)
	for len(got) < len(want) {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if len(message) > 0 && message[0] == secondPort {
			got = append(got, message[1:]...)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	wantCall(t, b, fmt.Sprintf("PortForward %s 8080", sandbox))
}

// TestIdleSessionsEnd: a session on which nothing happens for as long as is configured.
func TestIdleSessionsEnd(t *testing.T) {
	t.Parallel()
	b := newBenchWith(t, func(c *Config) { c.StreamIdle = 2 * time.Second })
	b.engine.Programs = programs()
	id := b.start(t, b.run(t, "a"), nil)
	conn := dial(t, b.exec(t, id, &runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true}), remotecommand.StreamProtocolV4Name)
	open(t, conn, remotecommand.StreamTypeStdout)
	wantCall(t, b, "Exec "+id)
	count := func() string {
		w := httptest.NewRecorder()
		b.server.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	if text := count(); !strings.Contains(text, `gantry_cri_sessions{kind="exec"} 1`) || !strings.Contains(text, `gantry_cri_sessions{kind="attach"} 0`) {
		t.Errorf("of the session the metrics say\n%s", text)
	}
	wantCall(t, b, "ExecEnd "+id)
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("the connection is open still")
	}
}
