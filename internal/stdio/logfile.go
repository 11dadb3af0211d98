package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Log files are opened without O_APPEND: every line's place is known, so that
// writing it again after a crash puts it where it is already. The last component
// of the path is never followed if it is a symbolic link: pods can reach log
// directories through volumes.
const logFlags = unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY

const logMode = 0o640

// openLog opens the log of a new app at its end, after RepairLog.
func openLog(path string) (fd int, id logID, size int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return -1, id, 0, fmt.Errorf("make log directory: %w", err)
	}
	if err := RepairLog(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, id, 0, err
	}
	return openLogFile(path, unix.O_CREAT)
}

func openLogFile(path string, flags int) (fd int, id logID, size int64, err error) {
	fd, err = unix.Open(path, logFlags|flags, logMode)
	if err != nil {
		return -1, id, 0, &os.PathError{Op: "open log", Path: path, Err: err}
	}
	id, size, err = identify(fd)
	if err != nil {
		unix.Close(fd)
		if flags&unix.O_EXCL != 0 {
			err = errors.Join(err, os.Remove(path))
		}
		return -1, id, 0, fmt.Errorf("open log %s: %w", path, err)
	}
	return fd, id, size, nil
}

// identify tells which file a descriptor is, and refuses all but regular files.
func identify(fd int) (logID, int64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil {
		return logID{}, 0, os.NewSyscallError("statx", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return logID{}, 0, fmt.Errorf("not a regular file: %w", pod.ErrInvalid)
	}
	id := logID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, int64(st.Size), nil
}

// findLog opens the file that an app's log was written to when the server went
// away: it is at its path, or was moved aside by a rotation that has not got to
// the reopening yet. It is never created.
func findLog(path string, want logID) (fd int, size int64, err error) {
	fd, id, size, err := openLogFile(path, 0)
	if err == nil && id == want {
		return fd, size, nil
	}
	if err == nil {
		unix.Close(fd)
	}
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, 0, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || !info.Mode().IsRegular() || inode(info) != want.Ino {
			continue
		}
		fd, id, size, err := openLogFile(filepath.Join(dir, e.Name()), 0)
		if err != nil {
			continue
		}
		if id == want {
			return fd, size, nil
		}
		unix.Close(fd)
	}
	return -1, 0, &os.PathError{Op: "find log", Path: path, Err: os.ErrNotExist}
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// tornLimit bounds how much of a line without an end is cut off. The longest
// line that is ever written is far below it.
const tornLimit = 64 << 10

// RepairLog makes the end of a log file the end of a line. After a power loss the
// last write may be there in part only, or as zeros; such a record cannot be
// read, so it is cut off. An end that cannot be one of ours is left, and ended.
func RepairLog(path string) error {
	fd, err := unix.Open(path, logFlags&^unix.O_WRONLY|unix.O_RDWR, 0)
	if err != nil {
		return &os.PathError{Op: "repair log", Path: path, Err: err}
	}
	defer unix.Close(fd)
	_, size, err := identify(fd)
	if err == nil {
		err = repair(fd, size)
	}
	if err != nil {
		return fmt.Errorf("repair log %s: %w", path, err)
	}
	return nil
}

func repair(fd int, size int64) error {
	torn := 0 // bytes after the last newline that are not zeros of a lost write
	for end := size; end > 0; {
		var buf [8 << 10]byte
		start := max(0, end-int64(len(buf)))
		n, err := unix.Pread(fd, buf[:end-start], start)
		if err != nil || int64(n) != end-start {
			return errors.Join(errors.New("read its end"), err)
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return cut(fd, start+int64(i)+1, size)
		}
		torn += n - bytes.Count(buf[:n], []byte{0})
		if torn > tornLimit {
			_, err := unix.Pwrite(fd, []byte{'\n'}, size)
			return err
		}
		end = start
	}
	return cut(fd, 0, size)
}

func cut(fd int, to, size int64) error {
	if to == size {
		return nil
	}
	return os.NewSyscallError("ftruncate", unix.Ftruncate(fd, to))
}
