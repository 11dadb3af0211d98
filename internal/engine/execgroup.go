package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// execPrefix begins the names of the cgroups of execs.
const execPrefix = "exec-"

// leftMark is the attribute of a group whose exec is over, and whose processes are
// daemons that it left in the app on purpose. The mark goes with the cgroup.
const leftMark = "user.gantry.left"

// execGroup is the cgroup of one exec. It is locked as long as its session lives:
// the kernel drops the lock of a program that was killed, and whoever looks next
// knows that nobody waits for what runs in there.
type execGroup struct {
	path   string
	lock   *disk.Lock
	killed bool
}

// newExecGroup makes one in the app's unit, or in a group of that.
func (e *Engine) newExecGroup(app pod.AppStatus, in string) (*execGroup, error) {
	parent, err := e.appCgroup(app.App)
	if err != nil {
		return nil, err
	}
	parent = filepath.Join(parent, in)
	tidy(parent)
	g, err := makeExecGroup(parent)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("it has just ended: %w: %w", pod.ErrState, err)
	}
	return g, err
}

// tidy takes away the groups of execs whose daemons have ended since. Nobody is told of
// that, and a probe may leave one each time. What cannot be taken the next one finds.
func tidy(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, entry := range entries {
		path := filepath.Join(parent, entry.Name())
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), execPrefix) || !isMarked(path) {
			continue // a lock would be in the way of who is making it
		}
		if g, err := lockExecGroup(path); err == nil && g != nil {
			_ = os.Remove(path)
			_ = g.lock.Unlock()
		}
	}
}

func isMarked(path string) bool {
	_, err := unix.Getxattr(path, leftMark, make([]byte, 8))
	return err == nil
}

// runtimeGroup makes the cgroup of a command that stays outside of the app: what it leaves
// behind is found there. A program that has no place for that runs it in the app, unless the
// command itself wants to be outside.
func (e *Engine) runtimeGroup(plan isolator.Exec) (*execGroup, error) {
	if !plan.Outside || e.cfg.OwnCgroup == "" {
		return nil, nil
	}
	tidy(e.cfg.OwnCgroup)
	return makeExecGroup(e.cfg.OwnCgroup)
}

func makeExecGroup(parent string) (*execGroup, error) {
	for {
		path := filepath.Join(parent, execPrefix+strings.ToLower(rand.Text()[:12]))
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		g, err := lockExecGroup(path)
		if err != nil {
			return nil, errors.Join(err, os.Remove(path))
		}
		if g != nil {
			return g, nil
		} // it was taken for one that a killed program left, before it was locked
	}
}

// lockExecGroup returns none for a group that somebody holds, or that is gone.
func lockExecGroup(path string) (*execGroup, error) {
	lock, err := disk.TryLock(path)
	if errors.Is(err, disk.ErrLocked) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	held, err := lock.File().Stat()
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(held, now) {
		return nil, lock.Unlock() // it was removed before we had the lock
	}
	return &execGroup{path: path, lock: lock}, nil
}

func (g *execGroup) kill() error {
	g.killed = true
	err := writeExisting(filepath.Join(g.path, "cgroup.kill"), "1")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// dyingTime bounds the wait for the members of a group that was killed.
const dyingTime = time.Second

// errDying is of a group that was killed, and has members still.
var errDying = errors.New("its processes are dying")

// close removes the group and gives it back. One that still has members (a daemon
// the exec left in the app) is marked and stays until the app ends. One that was killed
// stays locked if its members need longer to die: bury waits for them.
func (g *execGroup) close() error {
	err := g.remove(20 * time.Millisecond)
	if errors.Is(err, unix.EBUSY) {
		if g.killed {
			return errDying
		}
		err = g.mark()
	}
	return errors.Join(err, g.lock.Unlock())
}

// bury removes the group when its last member is dead, and gives it back. Who does not
// die within a moment hangs, and is told of.
func (g *execGroup) bury(hangs func() (noMore func())) error {
	err := g.remove(dyingTime)
	if errors.Is(err, unix.EBUSY) {
		defer hangs()()
	}
	for wait := dyingTime / 10; errors.Is(err, unix.EBUSY); wait = min(2*wait, 10*dyingTime) {
		time.Sleep(wait)
		err = errors.Join(g.kill(), g.remove(0)) // again: the app may have put something in
	}
	return errors.Join(err, g.lock.Unlock())
}

// remove waits for members that are dying: all of a group that was killed, else
// the last one, which is a zombie for a moment.
func (g *execGroup) remove(wait time.Duration) error {
	for end := time.Now().Add(wait); ; {
		err := os.Remove(g.path)
		if !errors.Is(err, unix.EBUSY) {
			return ignore(ignore(err, fs.ErrNotExist), unix.ENODEV)
		}
		if !g.killed && !g.empty() || time.Now().After(end) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *execGroup) empty() bool {
	data, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	return err != nil || len(bytes.TrimSpace(data)) == 0
}

// mark says that what runs in the group stays.
func (g *execGroup) mark() error {
	return unix.Fsetxattr(int(g.lock.File().Fd()), leftMark, []byte("1"), 0)
}

// left tells whether what runs in the group is there on purpose.
func (g *execGroup) left() bool {
	_, err := unix.Fgetxattr(int(g.lock.File().Fd()), leftMark, make([]byte, 8))
	return !errors.Is(err, unix.ENODATA) // what cannot be read is kept
}

// sweepExecs ends what the execs of killed programs left behind: processes that
// nobody waits for, a hung probe say, and the sockets of terminals.
func (e *Engine) sweepExecs(ctx context.Context) {
	err := e.staleExecs(ctx, func(item GCItem, remove func() error) error {
		e.log.Info("removing what a killed program left", "kind", item.Kind, "name", item.Name)
		return remove()
	})
	if err != nil && ctx.Err() == nil {
		e.log.Warn("cannot remove all that killed execs left", "err", err)
	}
}

// staleExecs passes what is left of execs whose programs were killed. Sockets are
// listed before anything else is looked at: that of a session that lives has a group
// then which is locked, in an app that runs.
func (e *Engine) staleExecs(ctx context.Context, take func(GCItem, func() error) error) error {
	dir := filepath.Join(e.cfg.Run, "exec")
	sockets, err := os.ReadDir(dir)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	pods, err := e.Pods(Filter{})
	if err != nil {
		return err
	}
	var held []string
	var errs []error
	if e.cfg.OwnCgroup != "" {
		_, err := staleGroups(e.cfg.OwnCgroup, take)
		errs = append(errs, err)
	}
	for _, p := range pods {
		for _, a := range p.Apps {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if a.Phase == pod.Running || a.Phase == pod.Unknown {
				group := filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice), unit.App(string(a.ID)))
				for _, dir := range []string{group, filepath.Join(group, isolator.AppGroup)} {
					h, err := staleGroups(dir, take)
					held, errs = append(held, h...), append(errs, err)
				}
			}
		}
	}
	if err := errors.Join(errs...); err != nil || e.anyUnread() {
		return err // what is in use is not known
	}
	for _, s := range sockets {
		if name, ok := strings.CutSuffix(s.Name(), socketSuffix); ok && !slices.Contains(held, name) {
			item := GCItem{Kind: "socket", Name: filepath.Join(dir, s.Name()), Why: "the exec it was made for is over"}
			errs = append(errs, take(item, func() error { return ignore(os.Remove(item.Name), fs.ErrNotExist) }))
		}
	}
	return errors.Join(errs...)
}

// staleGroups passes the groups of an app that nobody holds and that were not left
// on purpose. It returns the names of those that somebody holds.
func staleGroups(app string, take func(GCItem, func() error) error) (held []string, err error) {
	entries, err := os.ReadDir(app)
	if err != nil {
		return nil, ignore(ignore(err, fs.ErrNotExist), unix.ENODEV) // the app has just ended
	}
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), execPrefix) {
			continue
		}
		g, err := lockExecGroup(filepath.Join(app, entry.Name()))
		if err == nil && g == nil {
			held = append(held, entry.Name())
		}
		if err == nil && g != nil {
			if !g.left() {
				item := GCItem{Kind: "exec", Name: g.path, Why: "the program that ran it was killed"}
				err = take(item, func() error { return errors.Join(g.kill(), g.remove(dyingTime)) })
			}
			err = errors.Join(err, g.lock.Unlock())
		}
		errs = append(errs, err)
	}
	return held, errors.Join(errs...)
}
