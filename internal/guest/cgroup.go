package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/guest/guestpb"
)

// appsGroup is the cgroup that those of the apps are in.
const appsGroup = "apps"

// groups are the machine's cgroups.
type groups struct{ root string }

// prepare gives controllers to the apps' cgroups.
func (g groups) prepare() error {
	known, err := os.ReadFile(filepath.Join(g.root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enable := ""
	for _, c := range strings.Fields(string(known)) {
		enable += "+" + c + " "
	}
	apps := filepath.Join(g.root, appsGroup)
	if err := os.MkdirAll(apps, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{g.root, apps} {
		if err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), enable); err != nil {
			return fmt.Errorf("enable controllers: %w", err)
		}
	}
	return nil
}

func (g groups) app(app string) string { return filepath.Join(g.root, appsGroup, app) }

// writeFile writes to a file of the kernel's, which has to be there.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func isFile(name string) bool {
	return name != "" && !strings.ContainsRune(name, '/') && strings.ContainsRune(name, '.') && name != ".."
}

func (g groups) write(app string, files []*guestpb.File) error {
	for _, f := range files {
		if !isFile(f.Name) || strings.HasPrefix(f.Name, "cgroup.") && f.Name != "cgroup.freeze" {
			return fmt.Errorf("%q is no limit of a cgroup", f.Name)
		}
		if err := writeFile(filepath.Join(g.app(app), f.Name), f.Value); err != nil {
			return fmt.Errorf("%s = %s: %w", f.Name, f.Value, err)
		}
	}
	return nil
}

// read returns those of the files that are there.
func (g groups) read(app string, names []string) (out []*guestpb.File, err error) {
	dir := g.app(app)
	if app == "" {
		dir = g.root
	}
	for _, name := range names {
		if !isFile(name) {
			return nil, fmt.Errorf("%q is no file of a cgroup", name)
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err == nil:
			out = append(out, &guestpb.File{Name: name, Value: string(data)})
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP):
			return nil, err
		}
	}
	return out, nil
}

// oomKills counts the processes that were killed for memory in an app's cgroup.
func (g groups) oomKills(app string) uint32 {
	data, err := os.ReadFile(filepath.Join(g.app(app), "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			count, _ := strconv.ParseUint(n, 10, 32)
			return uint32(count)
		}
	}
	return 0
}

// processes are those of an app.
func (g groups) processes(app string) (pids []string) {
	_ = filepath.WalkDir(g.app(app), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // it went meanwhile
		}
		if data, err := os.ReadFile(path); err == nil {
			pids = append(pids, strings.Fields(string(data))...)
		}
		return nil
	})
	return pids
}

// rescore gives the processes of an app another OOM score, but for those that have chosen
// one for themselves. What is forked meanwhile inherits either: so it is done twice.
func (g groups) rescore(app string, was, now int) error {
	if was == now {
		return nil
	}
	for range 2 {
		for _, pid := range g.processes(app) {
			file := filepath.Join("/proc", pid, "oom_score_adj")
			have, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(have)) == strconv.Itoa(was) {
				err = writeFile(file, strconv.Itoa(now))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("set OOM score of process %s: %w", pid, err)
			}
		}
	}
	return nil
}

// kill ends all that runs in a cgroup.
func (g groups) kill(dir string) error {
	err := writeFile(filepath.Join(dir, "cgroup.kill"), "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// remove takes an app's cgroup away.
func (g groups) remove(app string) error { return g.bury(g.app(app)) }

// bury ends all that runs in a cgroup and takes it away, with those below it. Its processes
// die on their own time.
func (g groups) bury(dir string) error {
	if err := g.kill(dir); err != nil {
		return err
	}
	const patience, tries = 10 * time.Millisecond, 500
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for try := 0; ; try++ {
		err := removeGroup(dir)
		if !errors.Is(err, unix.EBUSY) || try == tries {
			return err
		}
		<-tick.C
	}
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}
