package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

const (
	maxStdout = 4 << 20
	maxStderr = 8 << 10 // the end of it
	// killGrace is how long a killed plugin may take to be gone: one that hangs in
	// the kernel cannot be waited for.
	killGrace = 5 * time.Second
	// callEnv marks every process that a plugin starts, also those that leave its
	// process group.
	callEnv = "GANTRY_CNI_CALL"
)

// call runs plugins for one operation. It implements invoke.Exec.
type call struct {
	version.PluginDecoder
	n     *Network
	op    string // add, del, check, …: for errors
	pod   pod.ID // "" if the operation is about no pod
	lock  *os.File
	token string // value of callEnv, set by env
}

// FindInPath is part of invoke.Exec.
func (c *call) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

// env is the environment of a plugin: ours, without what is meant for a service
// of systemd alone, and the arguments of the call.
func (c *call) env(command, netns, ifname string, args [][2]string) []string {
	var env []string
	path := false
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		switch k {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID",
			"FDSTORE", "MAINPID", "MANAGERPID", "CREDENTIALS_DIRECTORY", callEnv:
			continue
		}
		if !strings.HasPrefix(k, "CNI_") {
			env = append(env, kv)
		}
		path = path || k == "PATH"
	}
	if !path {
		env = append(env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	}
	kvs := make([]string, len(args))
	for i, a := range args {
		kvs[i] = a[0] + "=" + a[1]
	}
	var b [8]byte
	rand.Read(b[:])
	c.token = string(c.pod) + "." + hex.EncodeToString(b[:])
	return append(env, callEnv+"="+c.token, "CNI_COMMAND="+command, "CNI_CONTAINERID="+string(c.pod), "CNI_NETNS="+netns,
		"CNI_IFNAME="+ifname, "CNI_ARGS="+strings.Join(kvs, ";"), "CNI_PATH="+strings.Join(c.n.cfg.BinDirs, ":"))
}

// ExecPlugin is part of invoke.Exec: it runs a plugin to its end, or to the end
// of ctx. Every error is a *pluginError.
func (c *call) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	start := time.Now()
	out, cpu, err := c.exec(ctx, path, stdin, environ)
	after := time.Since(start)
	c.n.log.Debug("plugin ran", "op", c.op, "pod", c.pod, "plugin", filepath.Base(path), "took", after, "cpu", cpu, "err", err)
	if err == nil {
		return out, nil
	}
	var pe *pluginError
	if !errors.As(err, &pe) {
		pe = &pluginError{cause: err}
	}
	pe.plugin, pe.after = filepath.Base(path), after
	return nil, pe
}

// exec also tells the processor time of the plugin and of what it waited for.
func (c *call) exec(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, time.Duration, error) {
	if ctx.Err() != nil {
		return nil, 0, fmt.Errorf("not started: %w", context.Cause(ctx))
	}
	in, err := memfile("cni-stdin", stdin)
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	stdout, outw, err := newSink(maxStdout, false)
	if err != nil {
		return nil, 0, err
	}
	defer stdout.close()
	defer outw.Close()
	stderr, errw, err := newSink(maxStderr, true)
	if err != nil {
		return nil, 0, err
	}
	defer stderr.close()
	defer errw.Close()

	cmd, err := startRetrying(ctx, func() *exec.Cmd {
		cmd := &exec.Cmd{
			Path: path, Args: []string{path}, Env: environ, Dir: "/",
			Stdin: in, Stdout: outw, Stderr: errw,
			// Its own process group: a ^C at the terminal must not cut it off, and it can
			// be killed as a whole. No Pdeathsig: it may outlive us, with the lock.
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		}
		if c.lock != nil {
			cmd.ExtraFiles = []*os.File{c.lock}
		}
		return cmd
	})
	if err != nil {
		return nil, 0, fmt.Errorf("start: %w", err)
	}
	outw.Close()
	errw.Close()
	// We may be protected from the OOM killer; a plugin is not.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("0"), 0)

	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	var end error
	select {
	case end = <-waited:
	case <-ctx.Done():
		return nil, 0, c.killed(ctx, cmd, waited, stderr)
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	out, over := stdout.finish()
	msg, _ := stderr.finish()
	switch {
	case end != nil:
		return nil, cpu, pluginFailure(end, out, msg)
	case over:
		return nil, cpu, fmt.Errorf("wrote more than %d bytes to its standard output", maxStdout)
	}
	if len(msg) > 0 {
		c.n.log.Debug("plugin wrote to its standard error", "plugin", filepath.Base(path), "stderr", oneLine(msg))
	}
	return out, cpu, nil
}

// killed ends a plugin that took too long, with all that it started.
func (c *call) killed(ctx context.Context, cmd *exec.Cmd, waited <-chan error, stderr *sink) error {
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	killMarked(func(env []string, _ time.Duration) bool { return slices.Contains(env, callEnv+"="+c.token) })
	pe := &pluginError{cause: fmt.Errorf("killed: %w", context.Cause(ctx))}
	select {
	case <-waited:
		msg, _ := stderr.finish()
		pe.stderr = oneLine(msg)
	case <-time.After(killGrace):
		pe.cause = fmt.Errorf("process %d hangs in the kernel and cannot be killed: %w", cmd.Process.Pid, context.Cause(ctx))
	}
	return pe
}

// startRetrying starts a plugin. A binary that is just being installed is busy
// for a moment.
func startRetrying(ctx context.Context, newCmd func() *exec.Cmd) (*exec.Cmd, error) {
	for i := 0; ; i++ {
		cmd := newCmd()
		err := cmd.Start()
		if !errors.Is(err, unix.ETXTBSY) || i == 50 {
			return cmd, err
		}
		select {
		case <-ctx.Done():
			return cmd, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// memfile is data as a file that needs nobody to feed it.
func memfile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write memory file: %w", err)
	}
	return f, nil
}
