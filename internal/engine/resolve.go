package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/namespace"
	"gantry/internal/pod"
)

// defaultStopTimeout is the grace that systemd gives when somebody stops an app's
// unit, if nothing else was said.
const defaultStopTimeout = 30 * time.Second

// resolve looks up everything that a plan must not: users and defaults in the
// image, sources of mounts and devices on the host.
func (e *Engine) resolve(ctx context.Context, p *pod.Pod, s AppSpec) (*pod.App, pod.Secret, error) {
	img, err := e.wholeImage(s.Image)
	if err != nil {
		return nil, pod.Secret{}, err
	}
	a := &pod.App{
		ID: pod.NewID(), Pod: p.ID, Name: s.Name, Attempt: s.Attempt, Created: time.Now(),
		Labels: s.Labels, Annotations: s.Annotations, Image: imageOf(img, s.UserImage),
		LogPath: s.LogPath, Stdin: s.Stdin, StdinOnce: s.StdinOnce, TTY: s.TTY,
		StopTimeout: s.StopTimeout, Namespaces: s.Namespaces, Security: s.Security,
		Resources: s.Resources, Rlimits: s.Rlimits,
	}
	if a.StopTimeout <= 0 {
		a.StopTimeout = defaultStopTimeout
	}
	if a.Namespaces.Network == "" {
		a.Namespaces = p.Namespaces
	}
	e.shareHost(p, &a.Namespaces)
	if a.Argv, err = argv(img, s); err != nil {
		return nil, pod.Secret{}, err
	}
	if a.WorkingDir = firstOf(s.WorkDir, img.Config.WorkingDir, "/"); !filepath.IsAbs(a.WorkingDir) {
		return nil, pod.Secret{}, fmt.Errorf("working directory %q is not absolute: %w", a.WorkingDir, pod.ErrInvalid)
	}
	if a.StopSignal, err = signalOf(firstOf(s.StopSignal, img.Config.StopSignal, "SIGTERM")); err != nil {
		return nil, pod.Secret{}, err
	}
	if err := e.resolveUser(a, img, s); err != nil {
		return nil, pod.Secret{}, err
	}
	if a.Mounts, err = e.resolveMounts(ctx, p, s.Mounts); err != nil {
		return nil, pod.Secret{}, err
	}
	if a.Devices, err = resolveDevices(s); err != nil {
		return nil, pod.Secret{}, err
	}
	more, err := e.resolveCDI(ctx, p, a, s.CDI)
	if err != nil {
		return nil, pod.Secret{}, err
	}
	if err := e.checkHardware(a.Resources); err != nil {
		return nil, pod.Secret{}, err
	}
	if err := e.checkAppArmor(p, a.Security); err != nil {
		return nil, pod.Secret{}, err
	}
	return a, pod.Secret{Env: mergeEnv(img.Config.Env, slices.Concat(s.Env, more))}, nil
}

func imageOf(img *image.Image, name string) pod.Image {
	i := pod.Image{ID: img.ID, Name: name}
	if len(img.Digests) > 0 {
		i.Ref = img.Digests[0]
	}
	if i.Name == "" && len(img.Tags) > 0 {
		i.Name = img.Tags[0]
	}
	return i
}

// argv merges the image's command line with the caller's: a command replaces the
// entrypoint and drops the image's command, arguments replace the command.
func argv(img *image.Image, s AppSpec) ([]string, error) {
	entry, args := img.Config.Entrypoint, img.Config.Cmd
	if len(s.Command) > 0 {
		entry, args = s.Command, nil
	}
	if len(s.Args) > 0 {
		args = s.Args
	}
	out := slices.Concat(entry, args)
	if len(out) == 0 {
		return nil, fmt.Errorf("no command: neither the image nor the caller gives one: %w", pod.ErrInvalid)
	}
	return out, nil
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// signalOf reads SIGTERM, TERM, 15, SIGRTMIN+3.
func signalOf(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n > 0 && n <= 64 {
			return n, nil
		}
		return 0, fmt.Errorf("stop signal %q: want 1 to 64: %w", s, pod.ErrInvalid)
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		return realtime(s, rest, 34)
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		return realtime(s, rest, 64)
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("stop signal %q: %w", s, pod.ErrInvalid)
}

func realtime(whole, offset string, base int) (int, error) {
	n := 0
	if offset != "" {
		var err error
		if n, err = strconv.Atoi(offset); err != nil {
			return 0, fmt.Errorf("stop signal %q: %w", whole, pod.ErrInvalid)
		}
	}
	if base+n < 34 || base+n > 64 {
		return 0, fmt.Errorf("stop signal %q: %w", whole, pod.ErrInvalid)
	}
	return base + n, nil
}

func (e *Engine) resolveUser(a *pod.App, img *image.Image, s AppSpec) error {
	user, group := s.User, s.Group
	if user == "" {
		if group != "" {
			return fmt.Errorf("a group is given without a user: %w", pod.ErrInvalid)
		}
		user = img.Config.User
	}
	u, err := e.cfg.Images.ResolveUser(img, user, group, s.GroupsStrict, s.Groups)
	if err != nil {
		return err
	}
	a.Security.UID, a.Security.GID, a.Security.Groups, a.Security.User = u.UID, u.GID, u.Groups, user
	return nil
}

// mergeEnv puts the caller's variables over the image's, in order; the last one
// of a name counts.
func mergeEnv(image, caller []string) []string {
	var out []string
	at := map[string]int{}
	for _, kv := range slices.Concat(image, caller) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	if _, ok := at["PATH"]; !ok {
		out = append(out, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return out
}

func (e *Engine) resolveMounts(ctx context.Context, p *pod.Pod, mounts []pod.Mount) ([]pod.Mount, error) {
	out := slices.Clone(mounts)
	for i := range out {
		m := &out[i]
		if !filepath.IsAbs(m.Path) || filepath.Clean(m.Path) == "/" {
			return nil, fmt.Errorf("mount on %q: want an absolute path below /: %w", m.Path, pod.ErrInvalid)
		}
		if m.Image != nil {
			if err := e.resolveImageVolume(m); err != nil {
				return nil, fmt.Errorf("mount image on %s: %w: %w", m.Path, ErrImageVolume, err)
			}
			continue
		}
		if err := e.resolveHostPath(ctx, p, m); err != nil {
			return nil, fmt.Errorf("mount %s on %s: %w", m.HostPath, m.Path, err)
		}
	}
	return out, nil
}

func (e *Engine) resolveHostPath(ctx context.Context, p *pod.Pod, m *pod.Mount) error {
	// What kubelet has not checked may not be there, and pods count on what other engines
	// do then. Whoever types a path has mistyped it.
	path := hostPath{path: m.HostPath, make: p.Owner == pod.OwnerCRI}
	if len(m.UIDs) > 0 && p.Namespaces.User != nil {
		path.userns = filepath.Join(e.runDir(p.ID), string(namespace.User))
	}
	found, err := e.paths.find(ctx, path)
	if err != nil {
		return err
	}
	m.Source = found.real
	if found.noIDMap != 0 {
		return e.idMapRefused(m.Source, found.noIDMap)
	}
	return e.checkPropagation(*m)
}

func (e *Engine) resolveImageVolume(m *pod.Mount) error {
	img, err := e.wholeImage(firstOf(m.Image.ID, m.Image.Name))
	if err != nil {
		return err
	}
	resolved := imageOf(img, m.Image.Name)
	m.Image = &resolved
	if m.ImageSubPath == "" {
		return nil
	}
	has, err := e.cfg.Images.HasPath(img.ID, m.ImageSubPath)
	if err == nil && !has {
		err = fmt.Errorf("the image has no %q: %w", m.ImageSubPath, pod.ErrInvalid)
	}
	return err
}

// wholeImage finds an image of which nothing is missing.
func (e *Engine) wholeImage(name string) (*image.Image, error) {
	img, err := e.cfg.Images.Image(name)
	if err == nil {
		err = e.cfg.Images.Whole(img)
	}
	return img, err
}

// pathCause drops the operation and path of an error that names them already.
func pathCause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func resolveDevices(s AppSpec) ([]pod.Device, error) {
	var out []pod.Device
	if s.Security.Privileged {
		all, err := devicesBelow("/dev", "/dev", "rwm")
		if err != nil {
			return nil, err
		}
		out = all
	}
	for _, d := range s.Devices {
		found, err := devicesOf(d)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w: %w", d.Source, pod.ErrInvalid, pathCause(err))
		}
		out = append(out, found...)
	}
	return out, nil
}

// devicesOf reads a device, or all devices below a directory.
func devicesOf(d pod.Device) ([]pod.Device, error) {
	source, err := filepath.EvalSymlinks(d.Source)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return devicesBelow(source, d.Path, d.Permissions)
	}
	one, err := deviceOf(source, d.Path, d.Permissions)
	return []pod.Device{one}, err
}

var errNoDevice = errors.New("not a device")

func deviceOf(source, path, permissions string) (pod.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return pod.Device{}, err
	}
	d := pod.Device{
		Path: path, Source: source, Permissions: firstOf(permissions, "rwm"),
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return pod.Device{}, errNoDevice
	}
	return d, nil
}

// ownDev are directories and files of /dev that an app has of its own.
var ownDev = []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/.lxc"}

func devicesBelow(dir, to, permissions string) ([]pod.Device, error) {
	var out []pod.Device
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignore(err, fs.ErrNotExist)
		}
		if slices.Contains(ownDev, path) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		d, err := deviceOf(path, filepath.Join(to, strings.TrimPrefix(path, dir)), permissions)
		if errors.Is(err, errNoDevice) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		out = append(out, d)
		return err
	})
	return out, err
}

const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// checkAppArmor refuses a profile that is not loaded: an app never runs unconfined
// because nobody saw to its confinement. A kernel of the pod's own has none: what becomes of
// the profile there its isolator says.
func (e *Engine) checkAppArmor(p *pod.Pod, s pod.Security) error {
	switch {
	case e.ownKernel(p):
		return nil
	case s.AppArmor.Kind == pod.ProfileLocalhost:
		return profileLoaded(s.AppArmor.Localhost, pod.ErrInvalid)
	case s.AppArmor.Kind == pod.ProfileUnconfined, s.Privileged, e.cfg.AppArmorDefault == "", e.cfg.AppArmorDefault == "unconfined":
		return nil
	}
	err := profileLoaded(e.cfg.AppArmorDefault, pod.ErrUnavailable)
	if err != nil {
		return fmt.Errorf("default %w (see systemctl status gantry-apparmor.service, or set oci.apparmor)", err)
	}
	return nil
}

func profileLoaded(name string, kind error) error {
	data, err := os.ReadFile(appArmorProfiles)
	if err != nil {
		return fmt.Errorf("apparmor profile %q: AppArmor is not enabled on this host: %w", name, kind)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if have, _, ok := strings.Cut(line, " ("); ok && have == name {
			return nil
		}
	}
	return fmt.Errorf("apparmor profile %q is not loaded: %w", name, kind)
}

// maxSeccomp bounds a seccomp profile's file.
const maxSeccomp = 1 << 20

func seccompProfile(a *pod.App) ([]byte, error) {
	s := a.Security.Seccomp
	if s.Kind != pod.ProfileLocalhost || a.Security.Privileged {
		return nil, nil
	}
	info, err := os.Stat(s.Localhost)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxSeccomp) {
		err = fmt.Errorf("not a regular file of at most %d bytes", maxSeccomp)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(s.Localhost)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w: %w", s.Localhost, pod.ErrInvalid, pathCause(err))
	}
	return data, nil
}
