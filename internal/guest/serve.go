package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"gantry/internal/guest/guestpb"
)

// First is what the first process of a machine does. It does not return: a machine
// without it is none, so what goes wrong is said on the console and ends the machine.
func First(ctx context.Context, version string) {
	err := first(ctx, version)
	fmt.Fprintf(os.Stderr, "gantry-guest: %v\n", err)
	// For the records of the host, if it shares its files already.
	_ = os.WriteFile(filepath.Join(Share, LastWordsFile), []byte(err.Error()), 0o600)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintf(os.Stderr, "gantry-guest: power off: %v\n", err)
	}
	select {}
}

func first(ctx context.Context, version string) error {
	key, err := boot()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	l, err := listen(Port)
	if err != nil {
		return fmt.Errorf("listen for the host: %w", err)
	}
	forwards, err := listen(ForwardPort)
	if err != nil {
		return fmt.Errorf("listen for connections of the host: %w", err)
	}
	if err := open(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	failed := make(chan error, 2)
	go func() { failed <- Forward(ctx, behind(hostOnly{forwards}, key)) }()
	go func() { failed <- NewAgent(version, cgroupRoot).Serve(ctx, behind(hostOnly{l}, key)) }()
	go keepFewInodes(ctx)
	return <-failed
}

// listen does not need to know the machine's address, which it has not got yet.
func listen(port uint32) (net.Listener, error) {
	return vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
}

// hostOnly takes connections of the host alone: an app has no business with the agent.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || fromHost(conn.RemoteAddr()) {
			return conn, err
		}
		_ = conn.Close() // whoever it is gets no answer
	}
}

func fromHost(from net.Addr) bool {
	a, ok := from.(*vsock.Addr)
	return ok && a.ContextID == vsock.Host
}

// Serve answers the host until ctx ends.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	guestpb.RegisterGuestService(server, a)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	defer a.holder.end()
	if err := server.Serve(ctx, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
