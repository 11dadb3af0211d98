package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// A connection that is to go on begins with the port, in two bytes. It is answered by one
// byte: forwardOpen, and what follows is the port's; or the length of why it is not.
const (
	forwardOpen = 0
	forwardTime = 10 * time.Second
)

// Forward takes connections on to ports of the machine's loopback until ctx ends.
func Forward(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("take connections: %w", err)
		}
		go forward(ctx, conn)
	}
}

func forward(ctx context.Context, host net.Conn) {
	defer host.Close()
	var port [2]byte
	err := host.SetDeadline(time.Now().Add(forwardTime))
	if err == nil {
		_, err = io.ReadFull(host, port[:])
	}
	if err != nil {
		return // whoever it was is gone
	}
	conn, err := dialLoopback(ctx, binary.BigEndian.Uint16(port[:]))
	if err != nil {
		text := err.Error()
		text = text[:min(len(text), 255)]
		_, _ = host.Write(append([]byte{byte(len(text))}, text...))
		return
	}
	defer conn.Close()
	if _, err = host.Write([]byte{forwardOpen}); err == nil {
		err = host.SetDeadline(time.Time{})
	}
	if err == nil {
		join(host, conn)
	}
}

// dialLoopback tries IPv4, then IPv6, as it is done for pods of the host's kernel.
func dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: forwardTime / 2}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w, %w", errs[0], errs[1])
}

// join copies both ways, and passes on that one side has said all, until both have.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, err := io.Copy(way[1], way[0])
			half, ok := way[1].(interface{ CloseWrite() error })
			if err == nil && ok {
				err = half.CloseWrite()
			}
			if err != nil || !ok { // it is broken: nothing is left to say
				_, _ = a.Close(), b.Close()
			}
		})
	}
	both.Wait()
}

// AskForward asks for a port over a connection that Forward takes.
func AskForward(conn net.Conn, port uint16) error {
	if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] == forwardOpen {
		return nil
	}
	why := make([]byte, answer[0])
	if _, err := io.ReadFull(conn, why); err != nil {
		return err
	}
	return errors.New(string(why))
}
