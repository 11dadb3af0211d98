package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
	"gantry/internal/pod"
)

// hostPathLimit is how long a path of the host is looked up before its file system is
// taken for dead.
const hostPathLimit = 10 * time.Second

// maxHostPaths bounds the helpers that wait for dead file systems.
const maxHostPaths = 64

// hostPaths finds what paths of the host name. Whoever looks up a path below a dead
// network or FUSE file system waits in the kernel, where no signal ends that, and cannot
// be ended either. So this program looks only at what the kernel has in memory; a helper
// process is asked for the rest, and left behind if it does not answer.
type hostPaths struct {
	helper string // gantry-init
	limit  time.Duration

	mu    sync.Mutex
	asked map[string]*hostPathQuestion
}

type hostPathQuestion struct {
	since time.Time
	done  chan struct{} // closed when path and err are there
	path  string
	err   error
}

// find returns the absolute path without symbolic links, which has to exist.
func (h *hostPaths) find(ctx context.Context, path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("want an absolute path: %w", pod.ErrInvalid)
	}
	real, err := h.look(ctx, path)
	if err == nil && !utf8.ValidString(real) {
		err = fmt.Errorf("it is %q, and not UTF-8: %w", real, pod.ErrInvalid)
	}
	return real, err
}

func (h *hostPaths) look(ctx context.Context, path string) (string, error) {
	if h.helper == "" {
		real, err := filepath.EvalSymlinks(path)
		return real, wrongPath(err)
	}
	if real, ok := cachedPath(path); ok {
		return real, nil
	}
	q, err := h.ask(ctx, path)
	if err != nil {
		return "", err
	}
	left := time.NewTimer(h.limit - time.Since(q.since))
	defer left.Stop()
	select {
	case <-q.done:
		return q.path, q.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-left.C:
		return "", fmt.Errorf("its file system has not answered for %s; is it a mount whose server is gone? %w",
			round(time.Since(q.since)), context.DeadlineExceeded)
	}
}

// wrongPath is for an error of the path itself, which no other attempt mends.
func wrongPath(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", pod.ErrInvalid, pathCause(err))
}

// resolveCached is RESOLVE_CACHED of openat2(2).
const resolveCached = 0x20

// cachedPath looks a path up in the kernel's caches alone, which never waits.
func cachedPath(path string) (string, bool) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached,
	})
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	name := make([]byte, unix.PathMax)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), name)
	real := string(name[:max(n, 0)])
	// What was removed just now has no path, and the kernel says so in its name.
	ok := err == nil && n < len(name) && strings.HasPrefix(real, "/") && !strings.HasSuffix(real, " (deleted)")
	return real, ok
}

// ask joins a question for the same path that is not answered yet. A new one is asked
// for all who come, not for the first alone.
func (h *hostPaths) ask(ctx context.Context, path string) (*hostPathQuestion, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if q := h.asked[path]; q != nil {
		return q, nil
	}
	if len(h.asked) >= maxHostPaths {
		return nil, fmt.Errorf("%d other paths wait for file systems that do not answer: %w", len(h.asked), pod.ErrUnavailable)
	}
	q := &hostPathQuestion{since: time.Now(), done: make(chan struct{})}
	if h.asked == nil {
		h.asked = map[string]*hostPathQuestion{}
	}
	h.asked[path] = q
	go func() {
		q.path, q.err = h.run(context.WithoutCancel(ctx), path)
		h.mu.Lock()
		delete(h.asked, path)
		h.mu.Unlock()
		close(q.done)
	}()
	return q, nil
}

// run waits for a helper as long as it lives. It is killed in time, and that may do nothing.
func (h *hostPaths) run(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.helper, "host-path", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", fmt.Errorf("its file system has not answered for %s: %w", round(h.limit), context.DeadlineExceeded)
	}
	if err != nil {
		return "", fmt.Errorf("look up a path by %s: %w: %s", h.helper, err, strings.TrimSpace(stderr.String()))
	}
	var found initproc.HostPath
	if err := json.Unmarshal(out, &found); err != nil {
		return "", fmt.Errorf("look up a path by %s: %w", h.helper, err)
	}
	if found.Errno != 0 {
		return "", wrongPath(found.Errno)
	}
	return string(found.Path), nil
}
