package machine

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// The channels of a WebSocket: the first byte of each message. In a port-forward the
// first is the data and the second what went wrong.
const (
	ChannelStdin  = 0
	ChannelStdout = 1
	ChannelStderr = 2
	ChannelError  = 3
	ChannelResize = 4

	ChannelData  = 0
	ChannelWrong = 1
)

// DialWebSocket opens a session at an address of http or https. It ends with the test, or
// when it has taken long.
func DialWebSocket(t *testing.T, address string, header http.Header, protocols ...string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://127.0.0.1/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol, config.Header = protocols, header
	config.TlsConfig = &tls.Config{InsecureSkipVerify: true} // a server here makes its certificate itself
	conn, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(Patience(30 * time.Second))); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Say sends text by a channel.
func Say(t *testing.T, conn *websocket.Conn, channel byte, text string) {
	t.Helper()
	if err := websocket.Message.Send(conn, append([]byte{channel}, text...)); err != nil {
		t.Fatal(err)
	}
}

// Hear collects what comes by channel until the session is over, or enough is there.
func Hear(t *testing.T, conn *websocket.Conn, enough func(map[byte]string) bool) map[byte]string {
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
