package initproc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notifyMain makes pid the main process of our unit and the unit ready, in one
// datagram, and waits until PID 1 has read it.
func notifyMain(pid int) error {
	conn, err := notifySocket(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "MAINPID=%d\nREADY=1", pid); err != nil {
		return err
	}
	return barrier(conn)
}

func notifySocket(name string) (*net.UnixConn, error) {
	if name == "" {
		return nil, errors.New("NOTIFY_SOCKET is not set: run as a service of Type=notify")
	}
	return net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
}

// barrierTime is long: PID 1 may be deaf for a while in a daemon-reload.
const barrierTime = time.Minute

// barrier sends a descriptor that PID 1 closes when it has worked through all
// that was sent before.
func barrier(conn *net.UnixConn) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = sendFile(conn, "BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierTime)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := r.Read(b[:]); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("systemd did not answer within %s", barrierTime)
	}
	return nil
}

// sendFile sends a datagram with a descriptor. UnixConn can do so only where it is
// not connected.
func sendFile(conn *net.UnixConn, message string, f *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), []byte(message), unix.UnixRights(int(f.Fd())), nil, 0)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	return errors.Join(err, sendErr)
}

// ReceiveFile takes the descriptor that a message brings.
func ReceiveFile(conn *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 64), oob)
	if err != nil {
		return nil, err
	}
	files, err := received(oob[:n])
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d descriptors came, want one", len(files))
	}
	if err != nil {
		return nil, err
	}
	return files[0], nil
}
