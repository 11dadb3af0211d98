package systemd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// testBus is a bus with PID 1 on it, as far as one connection at a time can tell.
// It answers each call by what answer says.
type testBus struct {
	t        *testing.T
	address  string
	listener net.Listener
	answer   func(b *testBus, c *busConn, call *dbus.Message)
	mu       sync.Mutex
	calls    []string // the members that were called
	conns    []*busConn
}

type busConn struct {
	net.Conn
	mu     sync.Mutex // one message after the other
	serial uint32
}

func newTestBus(t *testing.T, answer func(*testBus, *busConn, *dbus.Message)) *testBus {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := &testBus{t: t, address: "unix:path=" + path, listener: l, answer: answer}
	t.Cleanup(func() { l.Close(); b.drop() })
	go b.accept()
	return b
}

func (b *testBus) accept() {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return
		}
		c := &busConn{Conn: conn}
		b.mu.Lock()
		b.conns = append(b.conns, c)
		b.mu.Unlock()
		go b.serve(c)
	}
}

// drop breaks all connections, as a restart of dbus does.
func (b *testBus) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Close()
	}
	b.conns = nil
}

func (b *testBus) serve(c *busConn) {
	defer c.Close()
	r := bufio.NewReader(c)
	if authenticate(r, c) != nil {
		return
	}
	for {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		member := m.Headers[dbus.FieldMember].Value().(string)
		b.mu.Lock()
		b.calls = append(b.calls, member)
		b.mu.Unlock()
		switch member {
		case "Hello":
			c.reply(m, ":1.1")
		case "AddMatch", "RemoveMatch", "Unsubscribe":
		default:
			b.answer(b, c, m)
		}
	}
}

func (b *testBus) called() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.calls, " ")
}

// count tells how often a member was called.
func (b *testBus) count(member string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, c := range b.calls {
		if c == member {
			n++
		}
	}
	return n
}

func authenticate(r *bufio.Reader, w io.Writer) error {
	if _, err := r.ReadByte(); err != nil {
		return err
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		answer := "ERROR\r\n"
		switch word, _, _ := strings.Cut(strings.TrimSpace(line), " "); {
		case word == "BEGIN":
			return nil
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			answer = "OK 0123456789abcdef0123456789abcdef\r\n"
		case word == "AUTH":
			answer = "REJECTED EXTERNAL\r\n"
		}
		if _, err := io.WriteString(w, answer); err != nil {
			return err
		}
	}
}

func (c *busConn) send(m *dbus.Message, body ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
		m.Body = body
	}
	raw := encode(m, c.serial)
	if _, err := c.Write(raw); err != nil && !errors.Is(err, net.ErrClosed) {
		return // the test closed it
	}
}

func (c *busConn) reply(to *dbus.Message, body ...any) {
	c.send(&dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(to.Serial()), dbus.FieldSender: dbus.MakeVariant(busName),
	}}, body...)
}

func (c *busConn) fail(to *dbus.Message, name, text string) {
	c.send(&dbus.Message{Type: dbus.TypeError, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(to.Serial()), dbus.FieldErrorName: dbus.MakeVariant(name),
		dbus.FieldSender: dbus.MakeVariant(busName),
	}}, text)
}

func (c *busConn) signal(member string, body ...any) {
	c.send(&dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(busPath), dbus.FieldInterface: dbus.MakeVariant(ifManager),
		dbus.FieldMember: dbus.MakeVariant(member), dbus.FieldSender: dbus.MakeVariant(busName),
	}}, body...)
}

func (c *busConn) jobRemoved(job dbus.ObjectPath, unit, result string) {
	c.signal("JobRemoved", uint32(7), job, unit, result)
}

// encode writes a message; its serial, which only a connection can set, stands at
// a fixed place of the header.
func encode(m *dbus.Message, serial uint32) []byte {
	var b strings.Builder
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return nil
	}
	raw := []byte(b.String())
	binary.LittleEndian.PutUint32(raw[8:], serial)
	return raw
}
