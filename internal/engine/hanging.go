package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// A process that was killed while the kernel works for it dies when the kernel is
// done: never, if that waits for a dead NFS server or for a hung FUSE daemon. It runs
// none of its own code any more. Systemd gives up on such a unit after a while, and so
// do we: the app has ended, everything of it but the process is taken away, and that
// goes when the kernel lets it go. Kubelet keeps the pod until its cgroup is empty.

// hanging is a process that was killed and does not die.
type hanging struct {
	pid         int
	name, where string
}

func (h hanging) String() string {
	if h.where == "" {
		return fmt.Sprintf("%d (%q)", h.pid, h.name)
	}
	return fmt.Sprintf("%d (%q, in %s)", h.pid, h.name, h.where)
}

// hangingIn lists the processes of a cgroup and those below it, if all of them were
// killed already. It fails if one of them may still run.
func (e *Engine) hangingIn(cgroup string) ([]hanging, error) {
	var all []hanging
	err := filepath.WalkDir(cgroup, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "cgroup.procs" {
			var found []hanging
			found, err = e.hangingOf(path)
			all = append(all, found...)
		}
		// The processes of a threaded cgroup are those of one above it.
		return ignore(ignore(ignore(err, fs.ErrNotExist), unix.ENODEV), unix.EOPNOTSUPP)
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// errAlive tells of a process that was not killed.
var errAlive = errors.New("a process is alive")

func (e *Engine) hangingOf(procs string) (all []hanging, err error) {
	data, err := os.ReadFile(procs)
	if err != nil {
		return nil, err
	}
	for _, word := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", procs, err)
		}
		if pid == 0 { // of another PID namespace
			return nil, errAlive
		}
		h, ok, err := e.hangs(pid)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, h)
		}
	}
	return all, nil
}

// hangs looks at all threads of a process. One that is gone by now does not hang.
func (e *Engine) hangs(pid int) (h hanging, ok bool, err error) {
	tasks := filepath.Join(e.cfg.Proc, strconv.Itoa(pid), "task")
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return h, false, ignoreGone(err)
	}
	for _, t := range threads {
		th, err := readThread(filepath.Join(tasks, t.Name()))
		switch {
		case err != nil:
			return h, false, err
		case th.dead:
		case !th.killed:
			return h, false, errAlive
		default:
			h, ok = hanging{pid, th.name, th.where}, true
		}
	}
	return h, ok, nil
}

func ignoreGone(err error) error { return ignore(ignore(err, fs.ErrNotExist), unix.ESRCH) }

// thread is what /proc says of one.
type thread struct {
	name, where  string
	dead, killed bool
}

func readThread(dir string) (thread, error) {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	var stat []byte
	if err == nil {
		stat, err = os.ReadFile(filepath.Join(dir, "stat"))
	}
	if err != nil {
		return thread{dead: true}, ignoreGone(err)
	}
	t := threadOf(status, stat)
	// For people only; not every kernel has it.
	if where, err := os.ReadFile(filepath.Join(dir, "wchan")); err == nil && string(where) != "0" {
		t.where = string(where)
	}
	return t, nil
}

// exiting are the kernel's PF_EXITING, PF_POSTCOREDUMP and PF_SIGNALED: such a thread
// has taken its last signal. It may be the first process of a PID namespace that waits
// for the others to die, or wait for what it asked of a file system.
const exiting = 0x4 | 0x8 | 0x400

func threadOf(status, stat []byte) (t thread) {
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimRight(string(line), "\n"), ":\t")
		switch key {
		case "Name":
			t.name = value
		case "State":
			t.dead = strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
		case "SigPnd", "ShdPnd":
			mask, err := strconv.ParseUint(value, 16, 64)
			t.killed = t.killed || err == nil && mask&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	// A name may have spaces and brackets; what follows it has none.
	rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(rest) > 6 {
		flags, err := strconv.ParseUint(rest[6], 10, 64)
		t.killed = t.killed || err == nil && flags&exiting != 0
	}
	return t
}

// onlyHang tells whether nothing is left in cgroups but processes that hang.
func (e *Engine) onlyHang(cgroups ...string) bool {
	some := false
	for _, dir := range cgroups {
		list, err := e.hangingIn(dir)
		if err != nil {
			return false
		}
		some = some || len(list) > 0
	}
	return some
}

// appHangs tells it of an app.
func (e *Engine) appHangs(a *pod.App) bool {
	dir, err := e.appCgroup(a)
	return err == nil && e.onlyHang(dir)
}

// podHangs tells it of all apps of a pod, also of such as are removed, whose units may be
// there still.
func (e *Engine) podHangs(p *pod.Pod) bool {
	slice := filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice))
	entries, err := os.ReadDir(slice)
	if err != nil {
		return false
	}
	var cgroups []string
	for _, entry := range entries {
		if id, ok := unit.AppID(entry.Name()); ok && !e.ofAnother(p.ID, pod.ID(id)) {
			cgroups = append(cgroups, filepath.Join(slice, entry.Name()))
		}
	}
	return e.onlyHang(cgroups...)
}

// ofAnother tells whether an app is known to be another pod's: pods may share a slice.
func (e *Engine) ofAnother(p, app pod.ID) bool {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	owner, ok := e.view.owner[app]
	return ok && owner != p
}

// mayReplace refuses the start of an app as long as processes of an earlier one of that
// name hang: both would use the same volumes.
func (e *Engine) mayReplace(s pod.PodStatus, a *pod.App) error {
	for _, old := range s.Apps {
		if old.Name == a.Name && old.Exit != nil && old.Exit.Reason == pod.ReasonUnkillable && e.appHangs(old.App) {
			return fmt.Errorf("start app %s: processes of %s hang in the kernel still (%s): %w", a.ID, old.ID, old.Exit.Message, pod.ErrUnavailable)
		}
	}
	return nil
}

// giveUp records the end of an app of which nothing is left but processes that hang.
// Its unit is told to stop, and does when systemd has lost its patience too.
func (e *Engine) giveUp(ctx context.Context, s pod.AppStatus, cgroup string) error {
	stopping, cancel := context.WithTimeout(ctx, hangTime)
	defer cancel()
	// It goes on without us.
	if err := e.cfg.Systemd.Stop(stopping, unit.App(string(s.ID))); err != nil && stopping.Err() == nil {
		return err
	}
	if err := e.dropOutput(ctx, s.App); err != nil {
		return err
	}
	// Who came in meanwhile is killed now.
	if err := e.killCgroup(s); err != nil {
		return err
	}
	list, err := e.hangingIn(cgroup)
	if err != nil {
		return fmt.Errorf("kill app %s: %w: %w", s.ID, err, pod.ErrUnavailable)
	}
	if len(list) == 0 { // the kernel has let go of them meanwhile: the end is recorded as any other
		if done, err := e.waitFor(ctx, s.ID, killTime); err != nil || done {
			return err
		}
		return fmt.Errorf("kill app %s: its end is not recorded: %w", s.ID, pod.ErrUnavailable)
	}
	exit := e.hungExit(ctx, s, list)
	e.log.Warn("giving up an app that cannot die", "app", s.ID, "code", exit.Code, "why", exit.Message)
	if err = e.store.WriteExit(s.App, exit); err == nil {
		err = e.spoolExit(s.App)
	}
	if err != nil {
		return fmt.Errorf("record the end of app %s: %w", s.ID, err)
	}
	e.appChanged(s.ID, ending)
	return nil
}

// hungExit is the end of an app of which processes hang. If its main process is not one
// of them it ended as any other.
func (e *Engine) hungExit(ctx context.Context, s pod.AppStatus, list []hanging) *pod.Exit {
	var words []string
	for _, h := range list[:min(len(list), 5)] {
		words = append(words, h.String())
	}
	if more := len(list) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	exit := &pod.Exit{
		Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), Reason: pod.ReasonUnkillable,
		Message: "killed, but the kernel does not let go of " + strings.Join(words, ", "),
		Started: s.Started, Finished: time.Now(), BootID: e.bootID,
	}
	if u, err := e.cfg.Systemd.State(ctx, unit.App(string(s.ID))); err == nil && u.ExecCode == exitedByItself && u.MainPID == 0 {
		exit.Code, exit.Signal = u.ExecStatus, 0
	}
	return exit
}

// exitedByItself is CLD_EXITED of siginfo_t.
const exitedByItself = 1

// spoolExit tells who waits of an end, as gantry-init does, which may do so too.
func (e *Engine) spoolExit(a *pod.App) error {
	tmp := filepath.Join(e.cfg.Run, ".exit-"+string(a.ID)+"-hung")
	if err := os.WriteFile(tmp, []byte(e.store.App(a.Pod, a.ID)+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(e.cfg.Run, "exits", string(a.ID)))
}

// hangTime is how long a stop is waited for before we look whether there is anything to
// wait for, which is not free.
const hangTime = 2 * time.Second

// stopUnless stops a unit, and leaves it to systemd when hangs says that nothing is left
// but processes that hang.
func (e *Engine) stopUnless(ctx context.Context, name string, hangs func() bool) error {
	for wait := hangTime; ; wait = killTime {
		bounded, cancel := context.WithTimeout(ctx, wait)
		err := e.cfg.Systemd.Stop(bounded, name)
		late := bounded.Err() != nil
		cancel()
		if err == nil || !late || ctx.Err() != nil {
			return err
		}
		if hangs() {
			e.log.Warn("leaving a unit to systemd: nothing is left in it but processes that hang", "unit", name)
			return nil
		}
	}
}
