// Command registry is the container registry of the trial VM, which reaches no
// other. It makes its images out of the VM's own Debian files, each at its first
// request, always the same bytes for the same files, and it can misbehave on
// purpose: it cuts connections, answers with errors, asks for passwords and
// serves images that no engine should unpack.
//
//	registry --listen 127.0.0.1:5000 --cache DIR [--root /]
//
// See docs/testing.md for the images and the switches under /trial/.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if filepath.Base(os.Args[0]) == "nnp" { // in the setuid image
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return
	}
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	addresses := map[door]*string{
		open:   flags.String("listen", "127.0.0.1:5000", "address to serve anybody on"),
		locked: flags.String("listen-locked", "", "address to serve those with the password on"),
		token:  flags.String("listen-token", "", "address to serve those with a token on"),
	}
	dir := flags.String("cache", "", "directory for built images (made if missing)")
	root := flags.String("root", "/", "where the Debian files are that images are made of")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--cache is missing: name a directory for built images")
	}
	// Images are code: another build of this program makes others.
	version, err := selfDigest()
	if err != nil {
		return err
	}
	blobs, err := openStore(filepath.Join(*dir, version[:16]))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: dropTime}))
	shop := newWorkshop(blobs, *root, log)
	server := newServer(shop, log)
	ended := make(chan error, len(addresses))
	for d, address := range addresses {
		if *address == "" {
			continue
		}
		listener, err := net.Listen("tcp", *address)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		web := &http.Server{Handler: server.handler(d), ReadHeaderTimeout: 30 * time.Second}
		defer web.Close()
		go func() { ended <- web.Serve(listener) }()
	}
	if err := notifyReady(); err != nil {
		return err
	}
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
		return nil
	}
}

// dropTime leaves the time to the journal.
func dropTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

func selfDigest() (string, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("read own program: %w", err)
	}
	defer self.Close()
	h := sha256.New()
	if _, err := io.Copy(h, self); err != nil {
		return "", fmt.Errorf("read own program: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// notifyReady tells systemd, if that started us, that connections are accepted.
func notifyReady() error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
