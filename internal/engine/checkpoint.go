package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// checkpointTime bounds the writing of a checkpoint if nobody else does.
const checkpointTime = 10 * time.Minute

// checkpointer is an isolator that can write down the state of a running app.
type checkpointer interface {
	Checkpoint(in isolator.App, dir, cgroup string, limit time.Duration) (unit.Unit, error)
}

// CheckpointApp writes the state of a running app into a new archive: its processes
// and memory, and what it changed of its file system. The app goes on. A unit of its own
// does the part in which the app stands still, so that it goes on whoever is killed.
func (e *Engine) CheckpointApp(ctx context.Context, id pod.ID, to string, limit time.Duration) (err error) {
	began := time.Now()
	defer func() {
		if err != nil {
			err = fmt.Errorf("checkpoint app %s: %w (after %s)", id, err, round(time.Since(began)))
		}
	}()
	app, err := e.App(id)
	if err != nil {
		return err
	}
	if app.Phase != pod.Running {
		return fmt.Errorf("it is %s: %w", app.Phase, pod.ErrState)
	}
	if !filepath.IsAbs(to) || strings.HasSuffix(to, "/") {
		return fmt.Errorf("location %q: want the absolute path of a file: %w", to, pod.ErrInvalid)
	}
	if disk.Exists(to) {
		return fmt.Errorf("location %s: %w", to, pod.ErrExists)
	}
	work, err := e.newCheckpoint(app)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.close()) }()
	if _, err := exec.LookPath("criu"); err != nil {
		return fmt.Errorf("checkpoint/restore requires at least CRIU 3.16 with its library, install criu and libcriu2: %w", pod.ErrUnsupported)
	}
	if limit <= 0 {
		limit = checkpointTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := work.dump(ctx, limit); err != nil {
		return err
	}
	return work.archive(ctx, to)
}

// checkpoint is one that is being made.
type checkpoint struct {
	e    *Engine
	iso  checkpointer
	app  pod.AppStatus
	pod  *pod.Pod
	dir  string
	lock *disk.Lock
}

// newCheckpoint makes a directory, which gc takes if we die.
func (e *Engine) newCheckpoint(app pod.AppStatus) (*checkpoint, error) {
	p, err := e.podRecord(app.Pod)
	if err != nil {
		return nil, err
	}
	iso, able := e.iso[p.Isolator].(checkpointer)
	if !able {
		return nil, fmt.Errorf("isolator %s: %w", p.Isolator, pod.ErrUnsupported)
	}
	dir := filepath.Join(e.store.Prepare(), string(pod.NewID()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := disk.TryLock(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &checkpoint{e, iso, app, p, dir, lock}, nil
}

func (c *checkpoint) close() error { return errors.Join(os.RemoveAll(c.dir), c.lock.Unlock()) }

// dump runs the unit that writes the state of the processes.
func (c *checkpoint) dump(ctx context.Context, limit time.Duration) (out error) {
	cgroup := "/" + filepath.Join(unit.CgroupOf(c.pod.Slice), unit.App(string(c.app.ID)))
	u, err := c.iso.Checkpoint(isolator.App{Pod: c.pod, App: c.app.App}, c.dir, filepath.Clean(cgroup), limit)
	if err != nil {
		return err
	}
	err = c.e.cfg.Systemd.Launch(ctx, u)
	defer func() {
		// What was to thaw it may have been killed. Another checkpoint's freeze is its own.
		if out != nil && !errors.Is(err, systemd.ErrUnitExists) {
			out = errors.Join(out, c.e.thaw(cgroup))
		}
	}()
	if ctx.Err() != nil && !errors.Is(err, systemd.ErrUnitExists) { // its end thaws the app
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTime)
		defer cancel()
		return errors.Join(ctx.Err(), c.e.cfg.Systemd.Stop(stopCtx, u.Name))
	}
	var failed *systemd.JobError
	switch {
	case errors.Is(err, systemd.ErrUnitExists):
		return fmt.Errorf("another one is being made: %w", pod.ErrState)
	case errors.As(err, &failed):
		return fmt.Errorf("write the state of the processes: %s", c.whyNot())
	case err != nil:
		return err
	case !disk.Exists(filepath.Join(c.dir, isolator.CheckpointImages, "inventory.img")):
		return fmt.Errorf("write the state of the processes: %s", c.whyNot())
	}
	return nil
}

// thaw lets a cgroup that there still is go on.
func (e *Engine) thaw(cgroup string) error {
	err := os.WriteFile(filepath.Join(e.cfg.Cgroups, cgroup, "cgroup.freeze"), []byte("0"), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// whyNot reads what the runtime and criu said last.
func (c *checkpoint) whyNot() string {
	var said []string
	if text := lastLine(filepath.Join(c.dir, isolator.CheckpointLog), ""); text != "" {
		said = append(said, text)
	}
	if text := lastLine(filepath.Join(c.dir, isolator.CheckpointWork, "dump.log"), "Error"); text != "" {
		said = append(said, text)
	}
	if len(said) == 0 {
		return "see systemctl status " + unit.Checkpoint(string(c.app.ID))
	}
	return strings.Join(said, ": ")
}

// maxSaid bounds what is read of a log for an error.
const maxSaid = 1 << 20

// lastLine is the last line of a file that has a word.
func lastLine(path, word string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data := readTail(f, maxSaid)
	lines := strings.Split(strings.TrimSpace(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.Contains(lines[i], word) {
			return strings.TrimSpace(lines[i])
		}
	}
	return ""
}

func readTail(f *os.File, most int64) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(0, st.Size()-most)
	buf := make([]byte, st.Size()-from)
	n, _ := f.ReadAt(buf, from) // what can be read will do
	return string(buf[:n])
}

// config.dump, as other engines write it.
type checkpointConfig struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	RootfsImage    string    `json:"rootfsImage"`
	RootfsImageRef string    `json:"rootfsImageRef"`
	ImageName      string    `json:"rootfsImageName"`
	Runtime        string    `json:"runtime"`
	Created        time.Time `json:"createdTime"`
	Checkpointed   time.Time `json:"checkpointedTime"`
	Restored       time.Time `json:"restoredTime"`
	WasRestored    bool      `json:"restored"`
}

func (c *checkpoint) config() ([]byte, error) {
	return json.MarshalIndent(checkpointConfig{
		ID: string(c.app.ID), Name: c.app.Name, RootfsImage: c.app.Image.Name, RootfsImageRef: c.app.Image.ID, ImageName: c.app.Image.Ref,
		Runtime: c.pod.Isolator, Created: c.app.Created, Checkpointed: time.Now().UTC(),
	}, "", "  ")
}

// archive writes the archive beside its place, and moves it there whole. It holds the
// app's memory and environment: nobody but root may read it.
func (c *checkpoint) archive(ctx context.Context, to string) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	diff, deleted, err := c.diff(ctx)
	if err != nil {
		return fmt.Errorf("copy what the app changed: %w", err)
	}
	list, err := json.Marshal(deleted)
	if err != nil {
		return err
	}
	out, publish, err := openArchive(to)
	if err != nil {
		return err
	}
	sparse := &sparseWriter{f: out}
	w := newArchiver(ctx, sparse)
	w.data("config.dump", config)
	w.file("spec.dump", filepath.Join(c.e.store.App(c.app.Pod, c.app.ID), "config.json"))
	w.tree("checkpoint", filepath.Join(c.dir, isolator.CheckpointImages))
	w.file("rootfs-diff.tar", diff)
	w.data("deleted.files", list)
	w.file("dump.log", filepath.Join(c.dir, isolator.CheckpointWork, "dump.log"))
	w.file("stats-dump", filepath.Join(c.dir, isolator.CheckpointWork, "stats-dump"))
	err = errors.Join(w.close(), sparse.end())
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(publish(err), out.Close()); err != nil {
		return fmt.Errorf("write %s: %w", to, err)
	}
	return disk.SyncDir(filepath.Dir(to))
}

// openArchive opens a new file, and gives it its name, or none if there was an error. It has
// no name before: of a program that is killed over it nothing is left. Not every file system
// has files without names.
func openArchive(to string) (out *os.File, publish func(error) error, err error) {
	fd, err := unix.Open(filepath.Dir(to), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), to), func(err error) error {
			if err != nil {
				return err
			}
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
		}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, nil, fmt.Errorf("make a file in %s: %w", filepath.Dir(to), err)
	}
	tmp := to + "." + string(pod.NewID())
	out, err = os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	return out, func(err error) error {
		if err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
		return err
	}, err
}
