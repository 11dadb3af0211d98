package guest

import (
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Any process of the host may connect to a machine: vsock asks for no privilege and knows no
// network namespace. So who connects says the machine's key first. The host keeps it for
// root alone, and the machine takes it with what it is to be.

// KeyBytes is the length of a key.
const KeyBytes = 32

const (
	// keyTime is how long one may take to say it.
	keyTime = 10 * time.Second
	// mostStrangers are those who have not said it yet. Where there are more the oldest is
	// sent away: who knows the key says it at once.
	mostStrangers = 64
)

// door takes the connections of those who know the key. Nobody else gets an answer.
type door struct {
	net.Listener
	key    []byte
	known  chan net.Conn
	closed chan struct{}
	why    error // what closed it

	mu        sync.Mutex
	strangers []net.Conn
}

// behind returns a listener that does so for another.
func behind(l net.Listener, key []byte) *door {
	d := &door{Listener: l, key: key, known: make(chan net.Conn), closed: make(chan struct{})}
	go d.watch()
	return d
}

func (d *door) watch() {
	defer close(d.closed)
	for {
		conn, err := d.Listener.Accept()
		var passing interface{ Temporary() bool }
		if errors.As(err, &passing) && passing.Temporary() {
			<-time.After(keyTime / 100) // the kernel lacks something for the moment
			continue
		}
		if err != nil {
			d.why = err
			return
		}
		d.enter(conn)
		go d.ask(conn)
	}
}

func (d *door) enter(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.strangers) == mostStrangers {
		_ = d.strangers[0].Close()
		d.strangers = slices.Delete(d.strangers, 0, 1)
	}
	d.strangers = append(d.strangers, conn)
}

func (d *door) leave(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers = slices.DeleteFunc(d.strangers, func(c net.Conn) bool { return c == conn })
}

func (d *door) ask(conn net.Conn) {
	said := make([]byte, KeyBytes)
	err := conn.SetReadDeadline(time.Now().Add(keyTime))
	if err == nil {
		_, err = io.ReadFull(conn, said)
	}
	d.leave(conn)
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil || len(d.key) != KeyBytes || subtle.ConstantTimeCompare(said, d.key) != 1 {
		_ = conn.Close()
		return
	}
	select {
	case d.known <- conn:
	case <-d.closed:
		_ = conn.Close()
	}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.known:
		return conn, nil
	case <-d.closed:
		return nil, d.why
	}
}
