package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// remoteError is the failure of a command in the VM that has already spoken for
// itself: trial adds nothing and ends with its exit code.
type remoteError struct{ err error }

func (e *remoteError) Error() string { return e.err.Error() }
func (e *remoteError) Unwrap() error { return e.err }

// ssh is the client's command line. One connection serves them all, since a
// handshake takes most of a second in software.
func (v vm) ssh(options []string, command string) []string {
	args := []string{
		"-p", v.read("port"), "-l", "root", "-i", v.path("key"),
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-F", "none",
		"-o", "ControlMaster=auto", "-o", "ControlPath=" + v.control(), "-o", "ControlPersist=600",
		"-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=20",
		"-o", "Ciphers=aes128-gcm@openssh.com,aes128-ctr,chacha20-poly1305@openssh.com",
	}
	args = append(args, options...)
	args = append(args, "127.0.0.1")
	if command != "" {
		args = append(args, command)
	}
	return args
}

// control is the shared connection's socket; a socket's path has a hard limit
// of 107 bytes, and ssh adds 17 of its own while it makes one.
func (v vm) control() string {
	path := v.path("ssh.sock")
	if len(path) < 88 {
		return path
	}
	return filepath.Join(os.TempDir(), "gantry-trial-"+digest(path)+".sock")
}

// dropMaster ends the shared connection, which would otherwise hang for as long
// as its server has gone away.
func (v vm) dropMaster(ctx context.Context) {
	if !exists(v.control()) {
		return
	}
	// Whether it worked does not matter: the socket goes in any case.
	_ = exec.CommandContext(ctx, "ssh", v.ssh([]string{"-O", "exit"}, "")...).Run()
	_ = os.Remove(v.control())
}

// output runs a shell command in the VM and returns what it prints.
func (v vm) output(ctx context.Context, command string) (string, error) {
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "ssh", v.ssh(nil, command)...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %q in VM %s: %w: %s", command, v.name, err, oneLine(stderr.String()))
	}
	return out.String(), nil
}

// stream runs a shell command in the VM with the given input and outputs.
func (v vm) stream(ctx context.Context, command string, in io.Reader, out, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, "ssh", v.ssh(nil, command)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, apart{out}, apart{stderr}
	return cmd.Run()
}

// apart keeps ssh from getting a file of ours itself. It would make it non-blocking, for
// all that have it: what we write to our own stdout, which may be the same pipe, is lost
// then whenever its reader is slow.
type apart struct{ io.Writer }

func runSSH(ctx context.Context, t *trial, args []string) error {
	v := t.vm()
	if err := v.mustRun(); err != nil {
		return err
	}
	var options []string
	if isTerminal(os.Stdin) && isTerminal(os.Stdout) {
		options = append(options, "-t")
	}
	cmd := exec.CommandContext(ctx, "ssh", v.ssh(options, strings.Join(args, " "))...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if options == nil {
		cmd.Stdout, cmd.Stderr = apart{os.Stdout}, apart{os.Stderr}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &remoteError{err}
	}
	return err
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// quote makes s one word of a shell command.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
