package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	reader "github.com/erofs/go-erofs"

	"gantry/internal/pod"
)

const (
	// maxUserFile bounds etc/passwd and etc/group, maxUserLine one line of them.
	maxUserFile = 8 << 20
	maxUserLine = 256 << 10
	// maxGroups is the kernel's bound for one process.
	maxGroups = 65536
	// noID is -1, which means "no change" to the kernel.
	noID = math.MaxUint32
)

// ResolveUser finds out as whom to run: user is a name or number, or USER:GROUP;
// "" is the image's. group, if given, wins. Groups that list the user by name are
// added unless strict; extra is added always. Numbers need no passwd.
func (s *Store) ResolveUser(img *Image, user, group string, strict bool, extra []uint32) (User, error) {
	if user == "" {
		user = img.Config.User
	}
	name, own, _ := strings.Cut(user, ":")
	if group == "" {
		group = own
	}
	open, err := s.openImage(img)
	if err != nil {
		return User{}, fmt.Errorf("resolve user %s: %w", shown(user), err)
	}
	defer open.close()
	files := userFiles{open}
	u, err := files.resolve(name, group, strict, extra)
	if err != nil {
		return User{}, fmt.Errorf("resolve user %s: %w", shown(user), err)
	}
	return u, nil
}

// userFiles reads etc/passwd and etc/group out of an image that is not mounted.
// Symlinks are followed inside of the image.
type userFiles struct{ *openImage }

// openImage is an image's tree, read inode by inode: it may be large.
type openImage struct {
	tree  fs.FS
	files []*lazyFile
}

// lazyFile is opened when it is first read: of an image with 100 layers, one or
// two have what we look for.
type lazyFile struct {
	path string
	f    *os.File
}

func (l *lazyFile) ReadAt(p []byte, off int64) (int, error) {
	if l.f == nil {
		f, err := os.Open(l.path)
		if err != nil {
			return 0, err
		}
		l.f = f
	}
	return l.f.ReadAt(p, off)
}

func (u *openImage) close() {
	for _, l := range u.files {
		if l.f != nil {
			l.f.Close()
		}
	}
}

func (s *Store) openImage(img *Image) (*openImage, error) {
	u := &openImage{files: []*lazyFile{{path: filepath.Join(s.imageDir(hexOf(img.ID)), mergedFile)}}}
	var devices []io.ReaderAt
	seen := map[string]bool{}
	for _, l := range img.Layers {
		if !seen[l.DiffID] {
			seen[l.DiffID] = true
			device := &lazyFile{path: s.layerPath(hexOf(l.DiffID))}
			u.files, devices = append(u.files, device), append(devices, device)
		}
	}
	tree, err := reader.Open(u.files[0], reader.WithExtraDevices(devices...))
	if err != nil {
		u.close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("image %s: %w", img.ID, pod.ErrNotFound)
		}
		return nil, err
	}
	u.tree = tree
	return u, nil
}

// lines calls f with the fields of every line of a file, until it returns false.
// A file that is not there, or is no file, has no lines.
func (u *userFiles) lines(name string, f func(fields []string) bool) error {
	file, err := u.tree.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, reader.ErrNotDirectory) || errors.Is(err, reader.ErrLoop) {
			return nil
		}
		return fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	if err := eachLine(file, f); err != nil {
		return fmt.Errorf("read %s of the image: %w", name, err)
	}
	return nil
}

// eachLine splits a file like passwd. Comments, and lines that make no sense, are
// left out, as libc does.
func eachLine(r io.Reader, f func(fields []string) bool) error {
	in := bufio.NewScanner(io.LimitReader(r, maxUserFile))
	in.Buffer(make([]byte, 0, 4096), maxUserLine)
	for in.Scan() {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if fields := strings.Split(line, ":"); len(fields) >= 3 && fields[0] != "" && !f(fields) {
			return nil
		}
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line of more than %d bytes: %w", maxUserLine, pod.ErrInvalid)
	}
	return in.Err()
}

func (u *userFiles) resolve(name, group string, strict bool, extra []uint32) (User, error) {
	out, err := u.user(name)
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if out.GID, err = u.group(group); err != nil {
			return User{}, err
		}
	}
	groups := slices.Clone(extra)
	if !strict && out.Name != "" {
		of, err := u.groupsOf(out.Name)
		if err != nil {
			return User{}, err
		}
		groups = append(groups, of...)
	}
	slices.Sort(groups)
	groups = slices.DeleteFunc(slices.Compact(groups), func(g uint32) bool { return g == out.GID })
	out.Groups = append([]uint32{out.GID}, groups...)
	if len(out.Groups) > maxGroups {
		return User{}, fmt.Errorf("%d groups, at most %d are possible: %w", len(out.Groups), maxGroups, pod.ErrInvalid)
	}
	return out, nil
}

// user looks a user up. Digits are always a number: an image whose passwd calls
// root "1000" must not give root to who asked for 1000.
func (u *userFiles) user(name string) (User, error) {
	if name == "" {
		name = "0"
	}
	number, isNumber := parseNumber(name)
	found := false
	out := User{UID: number, Home: "/"}
	err := u.lines("etc/passwd", func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		uid, okUID := parseNumber(f[2])
		gid, okGID := parseNumber(f[3])
		if okUID && okGID && (isNumber && uid == number || !isNumber && f[0] == name) {
			out, found = User{UID: uid, GID: gid, Name: f[0], Home: home(f)}, true
		}
		return !found
	})
	if err != nil {
		return User{}, err
	}
	if !found && !isNumber {
		return User{}, fmt.Errorf("the image's etc/passwd has no user %s: %w", shown(name), pod.ErrInvalid)
	}
	return out, nil
}

func home(fields []string) string {
	if len(fields) > 5 && strings.HasPrefix(fields[5], "/") {
		return fields[5]
	}
	return "/"
}

func (u *userFiles) group(name string) (uint32, error) {
	if number, ok := parseNumber(name); ok {
		return number, nil
	}
	var gid uint32
	found := false
	err := u.lines("etc/group", func(f []string) bool {
		if n, ok := parseNumber(f[2]); ok && f[0] == name {
			gid, found = n, true
		}
		return !found
	})
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("the image's etc/group has no group %s: %w", shown(name), pod.ErrInvalid)
	}
	return gid, nil
}

// groupsOf lists the groups that have the user as a member.
func (u *userFiles) groupsOf(name string) ([]uint32, error) {
	var out []uint32
	err := u.lines("etc/group", func(f []string) bool {
		gid, ok := parseNumber(f[2])
		if !ok || len(f) < 4 {
			return true
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if strings.TrimSpace(member) == name {
				out = append(out, gid)
				break
			}
		}
		return len(out) <= maxGroups
	})
	return out, err
}

// parseNumber reads a user or group ID. -1 is none: to the kernel it means "leave
// as it is".
func parseNumber(s string) (uint32, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != noID
}
