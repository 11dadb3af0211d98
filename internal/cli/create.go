package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry/internal/disk"
	"gantry/internal/engine"
	"gantry/internal/pod"
	"gantry/internal/podstore"
)

// created is a pod with its apps, prepared.
type created struct {
	pod  *pod.Pod
	apps []*pod.App // in the order of the podSpec
}

// create makes the pod and its apps, ready to be started. Images come first: they
// are what takes long and what fails most, and nothing has to be undone then.
func create(ctx context.Context, env *Env, be *Backend, s *podSpec, quiet bool) (*created, error) {
	for _, note := range s.Notes {
		fmt.Fprintln(env.Stderr, "note:", note)
	}
	for i := range s.Apps {
		a := &s.Apps[i]
		img, err := pull(ctx, env, be.Images, a.Image, a.Pull, quiet)
		if err != nil {
			return nil, err
		}
		a.Image = img.ID
	}
	if err := lookUp(be, s); err != nil {
		return nil, err
	}
	if err := checkHostPaths(s.Volumes); err != nil {
		return nil, err
	}
	// A pod that is being made is made to its end, and removed then: the engine
	// would go on with it for the sake of a retry.
	p, err := be.Engine.CreatePod(context.WithoutCancel(ctx), s.Pod)
	if err != nil {
		if errors.Is(err, pod.ErrExists) {
			return nil, withHint(err, "gantry rm %s, or choose another name", s.Pod.Name)
		}
		return nil, err
	}
	c := &created{pod: p}
	if err = ctx.Err(); err == nil {
		err = c.fill(ctx, be, s)
	}
	if err != nil {
		return nil, errors.Join(err, removeAfter(ctx, be, p.ID))
	}
	return c, nil
}

// undoTime bounds the removal of a pod that did not come to be.
const undoTime = time.Minute

// removeAfter removes a pod, also when ctx has ended.
func removeAfter(ctx context.Context, be *Backend, id pod.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return be.Engine.RemovePod(ctx, id)
}

// lookUp fills in what depends on the machine.
func lookUp(be *Backend, s *podSpec) error {
	if s.HostDNS {
		s.Pod.DNS = mergeDNS(s.Pod.DNS, hostDNS())
	}
	if !s.OwnUsers && len(s.Pod.Ports) == 0 {
		return nil
	}
	pods, err := be.Engine.Pods(engine.Filter{})
	if err != nil {
		return err
	}
	if err := checkPorts(pods, s.Pod.Ports); err != nil {
		return fmt.Errorf("create pod %s: %w", s.Pod.Name, err)
	}
	if s.OwnUsers {
		s.Pod.Namespaces.User, err = freeUsers(pods, rand.IntN)
	}
	return err
}

// checkPorts refuses a port of the host that is mapped already: the plugins do
// not see it, and one of the two pods would never be reached.
func checkPorts(pods []pod.PodStatus, ports []pod.Port) error {
	if err := pod.CheckPorts(ports); err != nil {
		return err
	}
	for _, p := range ports {
		for _, have := range pods {
			for _, other := range have.Ports {
				if have.Ready && p.Clashes(other) {
					return fmt.Errorf("port %d/%s of the host is mapped to pod %s: %w", p.HostPort, p.Protocol, have.Name, pod.ErrExists)
				}
			}
		}
	}
	return nil
}

// The IDs of pods with users of their own, for pods that no kubelet gave any: the
// part of the range that systemd(1) leaves unassigned, see systemd.io/UIDS-GIDS.
const (
	firstUser   = 1_879_048_192
	usersPerPod = 65536
	userRanges  = 4000
)

// freeUsers chooses a range of IDs that no pod has. It is random so that two
// programs that choose at the same time hardly meet.
func freeUsers(pods []pod.PodStatus, random func(int) int) (*pod.UserNS, error) {
	taken := map[uint32]bool{}
	for _, p := range pods {
		if u := p.Namespaces.User; u != nil {
			for _, m := range u.UIDs {
				taken[m.Host] = true
			}
		}
	}
	start := random(userRanges)
	for i := range userRanges {
		host := uint32(firstUser + (start+i)%userRanges*usersPerPod)
		if !taken[host] {
			ids := []pod.IDMap{{Container: 0, Host: host, Length: usersPerPod}}
			return &pod.UserNS{UIDs: ids, GIDs: ids}, nil
		}
	}
	return nil, fmt.Errorf("choose user IDs: all %d ranges are taken: %w", userRanges, pod.ErrUnavailable)
}

// checkHostPaths looks at volumes of a type, and makes those that are to be made.
func checkHostPaths(volumes []volume) error {
	for _, v := range volumes {
		if v.HostPath == "" || v.Type == "" {
			continue
		}
		if err := checkHostPath(v); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

func checkHostPath(v volume) error {
	info, err := os.Stat(v.HostPath)
	if errors.Is(err, fs.ErrNotExist) {
		switch v.Type {
		case "DirectoryOrCreate":
			return os.MkdirAll(v.HostPath, 0o755)
		case "FileOrCreate":
			f, err := os.OpenFile(v.HostPath, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	kind := info.Mode() & (fs.ModeType | fs.ModeCharDevice)
	ok := map[string]bool{
		"Directory": kind == fs.ModeDir, "DirectoryOrCreate": kind == fs.ModeDir,
		"File": kind == 0, "FileOrCreate": kind == 0,
		"Socket":      kind == fs.ModeSocket,
		"CharDevice":  kind == fs.ModeDevice|fs.ModeCharDevice,
		"BlockDevice": kind == fs.ModeDevice,
	}[v.Type]
	if !ok {
		return fmt.Errorf("%s is no %s: %w", v.HostPath, strings.TrimSuffix(v.Type, "OrCreate"), pod.ErrInvalid)
	}
	return nil
}

// fill puts what the pod needs into its directory, and the apps into the pod.
func (c *created) fill(ctx context.Context, be *Backend, s *podSpec) error {
	d := podDir(podstore.Layout{Root: be.Root}.Pod(c.pod.ID))
	status, err := be.Engine.Pod(c.pod.ID)
	if err != nil {
		return err
	}
	if err := d.make(status, s); err != nil {
		return fmt.Errorf("create pod %s: %w", c.pod.Name, err)
	}
	for i := range s.Apps {
		spec := s.Apps[i].AppSpec
		spec.LogPath = d.log(spec.Name)
		spec.Mounts = d.mounts(s.Apps[i])
		app, err := be.Engine.CreateApp(ctx, c.pod.ID, spec)
		if err != nil {
			return err
		}
		if s.Apps[i].NonRoot && app.Security.UID == 0 {
			return fmt.Errorf("create app %s: runAsNonRoot is set and its user is root: %w", app.Name, pod.ErrInvalid)
		}
		c.apps = append(c.apps, app)
	}
	return nil
}

// podDir is a pod's directory in the store. The command line keeps there, beside
// the engine's records, what must go with the pod:
//
//	logs/<app>.log   CRI log files
//	volumes/<name>   volumes that live as long as the pod
//	hosts            the pod's /etc/hosts
type podDir string

func (d podDir) log(app string) string     { return filepath.Join(string(d), "logs", app+".log") }
func (d podDir) volume(name string) string { return filepath.Join(string(d), "volumes", name) }
func (d podDir) hosts() string             { return filepath.Join(string(d), "hosts") }

func (d podDir) make(p pod.PodStatus, s *podSpec) error {
	// Logs may hold secrets; a file with set-user-ID in a volume must not be within
	// reach of other users of the host.
	for _, dir := range []string{"logs", "volumes"} {
		if err := os.Mkdir(filepath.Join(string(d), dir), 0o700); err != nil {
			return err
		}
	}
	for _, v := range s.Volumes {
		if v.HostPath != "" {
			continue
		}
		if err := d.makeVolume(p, v.Name, s.FSGroup); err != nil {
			return err
		}
	}
	hosts, err := hostsFile(p)
	if err != nil {
		return err
	}
	return disk.WriteFile(d.hosts(), hosts, 0o644)
}

func (d podDir) makeVolume(p pod.PodStatus, name string, group *int64) error {
	path := d.volume(name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	uid, gid, mode := 0, 0, fs.FileMode(0o777)
	if group != nil {
		gid, mode = int(*group), 0o2775|fs.ModeSetgid
	}
	if u := p.Namespaces.User; u != nil {
		uid, gid = uid+int(u.UIDs[0].Host), gid+int(u.GIDs[0].Host)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// hostsFile is the pod's /etc/hosts: the host's own in the host's network.
func hostsFile(p pod.PodStatus) ([]byte, error) {
	if p.HostNetwork() {
		data, err := os.ReadFile("/etc/hosts")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range p.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, p.Hostname)
	}
	return []byte(b.String()), nil
}

// mounts are those of an app, with the sources that its pod's directory has.
func (d podDir) mounts(a appSpec) []pod.Mount {
	out := slices.Clone(a.Mounts)
	for _, vm := range a.VolumeMounts {
		m := vm.Mount
		m.HostPath = d.volume(vm.Volume)
		out = append(out, m)
	}
	for _, m := range out {
		if filepath.Clean(m.Path) == "/etc/hosts" {
			return out
		}
	}
	return append(out, pod.Mount{Path: "/etc/hosts", HostPath: d.hosts()})
}
