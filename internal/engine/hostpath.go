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
	"gantry/internal/namespace"
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
	asked map[hostPath]*hostPathQuestion
}

// hostPath is what is asked for: a path and, if a mount of it is to be ID-mapped, the
// user namespace that it is tried with. Where there is nothing a directory is made, if
// that is wanted.
type hostPath struct {
	path, userns string
	make         bool
}

// arguments are those of the helper.
func (p hostPath) arguments() []string {
	args := []string{"host-path", p.path, p.userns}
	if p.make {
		args = append(args, "make")
	}
	return args
}

// foundPath is the absolute path without symbolic links, and why a mount of it cannot be
// ID-mapped.
type foundPath struct {
	real    string
	noIDMap syscall.Errno
}

type hostPathQuestion struct {
	since time.Time
	done  chan struct{} // closed when found and err are there
	found foundPath
	err   error
}

// find looks up a path.
func (h *hostPaths) find(ctx context.Context, path hostPath) (foundPath, error) {
	if !filepath.IsAbs(path.path) {
		return foundPath{}, fmt.Errorf("want an absolute path: %w", pod.ErrInvalid)
	}
	found, err := h.look(ctx, path)
	if err == nil && !utf8.ValidString(found.real) {
		err = fmt.Errorf("it is %q, and not UTF-8: %w", found.real, pod.ErrInvalid)
	}
	return found, err
}

func (h *hostPaths) look(ctx context.Context, path hostPath) (foundPath, error) {
	if h.helper == "" {
		real, err := filepath.EvalSymlinks(path.path)
		return foundPath{real: real}, wrongPath(err)
	}
	if found, ok := cachedPath(path); ok {
		return found, nil
	}
	q, err := h.ask(ctx, path)
	if err != nil {
		return foundPath{}, err
	}
	left := time.NewTimer(h.limit - time.Since(q.since))
	defer left.Stop()
	select {
	case <-q.done:
		return q.found, q.err
	case <-ctx.Done():
		return foundPath{}, context.Cause(ctx)
	case <-left.C:
		return foundPath{}, fmt.Errorf("its file system has not answered for %s; is it a mount whose server is gone? %w",
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
func cachedPath(path hostPath) (found foundPath, ok bool) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path.path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached,
	})
	if err != nil {
		return foundPath{}, false
	}
	defer unix.Close(fd)
	name := make([]byte, unix.PathMax)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), name)
	real := string(name[:max(n, 0)])
	// What was removed just now has no path, and the kernel says so in its name.
	ok = err == nil && n < len(name) && strings.HasPrefix(real, "/") && !strings.HasSuffix(real, " (deleted)")
	found.real = real
	if ok && path.userns != "" {
		found.noIDMap = namespace.TryIDMap(fd, path.userns)
	}
	return found, ok
}

// ask joins a question for the same path that is not answered yet. A new one is asked
// for all who come, not for the first alone.
func (h *hostPaths) ask(ctx context.Context, path hostPath) (*hostPathQuestion, error) {
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
		h.asked = map[hostPath]*hostPathQuestion{}
	}
	h.asked[path] = q
	go func() {
		q.found, q.err = h.run(context.WithoutCancel(ctx), path)
		h.mu.Lock()
		delete(h.asked, path)
		h.mu.Unlock()
		close(q.done)
	}()
	return q, nil
}

// run waits for a helper as long as it lives. It is killed in time, and that may do nothing.
func (h *hostPaths) run(ctx context.Context, path hostPath) (foundPath, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.helper, path.arguments()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return foundPath{}, fmt.Errorf("its file system has not answered for %s: %w", round(h.limit), context.DeadlineExceeded)
	}
	if err != nil {
		return foundPath{}, fmt.Errorf("look up a path by %s: %w: %s", h.helper, err, strings.TrimSpace(stderr.String()))
	}
	var found initproc.HostPath
	if err := json.Unmarshal(out, &found); err != nil {
		return foundPath{}, fmt.Errorf("look up a path by %s: %w", h.helper, err)
	}
	if found.Errno != 0 {
		return foundPath{}, wrongPath(found.Errno)
	}
	return foundPath{string(found.Path), found.NoIDMap}, nil
}
