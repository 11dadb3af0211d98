package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// scorePasses bounds the looks for processes that were forked while their parents
// were not changed yet.
const scorePasses = 100

// rescore gives the processes of a cgroup another OOM score, but for those that have
// chosen one for themselves: was is what the others have. What is forked meanwhile
// inherits either, so it is done when a look finds none with the old one.
func rescore(cgroup string, was, now int) error {
	if was == now {
		return nil
	}
	for range scorePasses {
		changed, err := rescoreOnce(cgroup, was, now)
		if err != nil || changed == 0 {
			return err
		}
	}
	return fmt.Errorf("set OOM score of %s: it forks faster than its processes can be changed", filepath.Base(cgroup))
}

// rescoreOnce opens the directories of the processes before it looks who is there a
// second time: a number that another process got meanwhile is not in the list then.
func rescoreOnce(cgroup string, was, now int) (changed int, err error) {
	opened := map[string]*os.Root{}
	defer func() {
		for _, dir := range opened {
			err = errors.Join(err, dir.Close())
		}
	}()
	for _, pid := range processes(cgroup) {
		dir, err := os.OpenRoot(filepath.Join("/proc", pid))
		if ended(err) {
			continue
		}
		if err != nil {
			return changed, err
		}
		opened[pid] = dir
	}
	still := processes(cgroup)
	for pid, dir := range opened {
		if !slices.Contains(still, pid) {
			continue
		}
		did, err := rescoreProcess(dir, was, now)
		if err != nil {
			return changed, fmt.Errorf("set OOM score of process %s: %w", pid, err)
		}
		if did {
			changed++
		}
	}
	return changed, nil
}

func rescoreProcess(dir *os.Root, was, now int) (bool, error) {
	const file = "oom_score_adj"
	text, err := dir.ReadFile(file)
	if err == nil && strings.TrimSpace(string(text)) != strconv.Itoa(was) {
		return false, nil
	}
	if err == nil {
		err = writeIn(dir, file, strconv.Itoa(now))
	}
	if ended(err) {
		return false, nil
	}
	return err == nil, err
}

func writeIn(dir *os.Root, name, text string) error {
	f, err := dir.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// ended tells by an error that a process is not there any more.
func ended(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// processes are those of a cgroup and of all below it.
func processes(cgroup string) (pids []string) {
	_ = filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
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
