package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// The app's files, below its directory. The names of the first and of upper and
// work are known to others: initproc.StartFile, the OCI's bundle, the disk layout.
const (
	startFile  = "start.json"
	configFile = "config.json"
	upperDir   = "rw/upper"
	workDir    = "rw/work"
)

// App plans an app. It refuses everything that can be wrong with one as far as
// that can be told without the machine.
func (o *OCI) App(in isolator.App) (isolator.Plan, error) {
	if err := o.checkApp(in); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	if err := checkTree("rootfs", in.Rootfs); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	limits, err := appLimits(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	files, err := o.appFiles(in, limits)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	plan := isolator.Plan{Files: files, Units: []unit.Unit{o.service(in, limits)}, Cgroup: limits.files}
	return plan, validUnits(plan.Units)
}

func (o *OCI) appFiles(in isolator.App, l appResources) ([]isolator.File, error) {
	spec, err := o.spec(in)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	start, err := json.MarshalIndent(o.start(in, l.files), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write start: %w", err)
	}
	return []isolator.File{
		{Path: configFile, Mode: 0o600, Secret: true, Data: config, Shown: func() []byte { return shownConfig(spec) }},
		{Path: startFile, Mode: 0o644, Data: append(start, '\n')},
	}, nil
}

func (o *OCI) start(in isolator.App, files []isolator.CgroupFile) initproc.Start {
	s := initproc.Start{
		Pod: string(in.Pod.ID), App: string(in.App.ID),
		Runtime: o.cfg.Runtime, RuntimeMS: o.cfg.RuntimeTimeout.Milliseconds(), Bundle: in.Dir.App,
		State: o.runtimeState(in.App.ID),
		Rootfs: initproc.Rootfs{
			Lower: []string{in.Rootfs.Path},
			Upper: path.Join(in.Dir.App, upperDir), Work: path.Join(in.Dir.App, workDir),
			Target: RootfsTarget, Shared: hasShared(in.App), Label: o.fileLabel(in),
		},
		Relabel: o.relabel(in),
		Trees:   subTrees(in),
		Stdio:   initproc.Stdio{Socket: o.cfg.StdioSocket, TTY: in.App.TTY},
	}
	if u := in.Pod.Namespaces.User; u != nil {
		s.Rootfs.UserNS = path.Join(in.Dir.Run, userPin)
		s.Rootfs.UID, s.Rootfs.GID = hostRoot(u.UIDs), hostRoot(u.GIDs)
	}
	for _, f := range files {
		s.Cgroup = append(s.Cgroup, initproc.CgroupFile(f))
	}
	if in.Pod.CgroupParent != "" {
		s.PodSlice = path.Join("/sys/fs/cgroup", unit.CgroupOf(in.Pod.Slice))
	}
	return s
}

// hostRoot is who the pod's root is on the host.
func hostRoot(ms []pod.IDMap) int {
	for _, m := range ms {
		if m.Container == 0 {
			return int(m.Host)
		}
	}
	return 0
}

// hasShared tells whether mounts made in the app must show on the host.
func hasShared(a *pod.App) bool {
	for _, m := range a.Mounts {
		if m.Propagation == pod.PropagationShared {
			return true
		}
	}
	return false
}

func (o *OCI) checkApp(in isolator.App) error {
	if in.Pod == nil || in.App == nil {
		return invalid("no pod or no app")
	}
	for _, id := range []pod.ID{in.Pod.ID, in.App.ID} {
		if _, err := pod.ParseID(string(id)); err != nil {
			return err
		}
	}
	for _, dir := range []string{in.Dir.Pod, in.Dir.App, in.Dir.Run} {
		if err := checkPath(dir); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	if err := checkPod(in.Pod); err != nil {
		return err
	}
	if err := o.Features().CheckApp(in.App); err != nil {
		return err
	}
	if in.Pod.Owner == pod.OwnerCRI && in.App.Security.Privileged && !in.Pod.Security.Privileged {
		return invalid("security.privileged: the pod is not privileged")
	}
	if err := checkSecurity(in); err != nil {
		return err
	}
	if err := o.checkLabels(in); err != nil {
		return err
	}
	return checkProcess(in)
}

func checkTree(name string, t isolator.Tree) error {
	if err := checkPath(t.Path); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// Overlay takes layers in one option, where these two have a meaning.
	if strings.ContainsAny(t.Path, ":,\\") {
		return invalid("%s: path %q has a colon, comma or backslash", name, t.Path)
	}
	if t.Unit != "" && unit.ValidName(t.Unit) != nil {
		return invalid("%s: unit %q", name, t.Unit)
	}
	return nil
}

// checkPath wants an absolute path that means what it says.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return invalid("path %q: want an absolute path without . and ..", p)
	}
	return nil
}

func checkProcess(in isolator.App) error {
	a := in.App
	if err := checkArgv(a.Argv); err != nil {
		return err
	}
	if a.WorkingDir != "" && (!path.IsAbs(a.WorkingDir) || strings.ContainsRune(a.WorkingDir, 0)) {
		return invalid("workingDir %q: want an absolute path", a.WorkingDir)
	}
	if err := checkEnv(in.Secret.Env); err != nil {
		return err
	}
	if a.StopSignal < 0 || a.StopSignal > 64 {
		return invalid("stopSignal %d: want 1 to 64", a.StopSignal)
	}
	if a.StopTimeout < 0 {
		return invalid("stopTimeout %s is negative", a.StopTimeout)
	}
	if s := in.Resources.OOMScoreAdj; s < -1000 || s > 1000 {
		return invalid("oomScoreAdj %d: want -1000 to 1000", s)
	}
	if err := checkRlimits(a.Rlimits); err != nil {
		return err
	}
	return checkIDs(in)
}

func checkArgv(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return invalid("argv: no command")
	}
	for _, arg := range argv {
		if strings.ContainsRune(arg, 0) || !utf8.ValidString(arg) {
			return invalid("argv: an argument has a NUL or is not UTF-8, which config.json cannot hold")
		}
	}
	return nil
}

// checkEnv does not tell the value: it may be a secret.
func checkEnv(env []string) error {
	for i, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return invalid("env: variable %d is not NAME=value", i)
		}
		if strings.ContainsRune(e, 0) || !utf8.ValidString(e) {
			return invalid("env: the value of %q has a NUL or is not UTF-8, which config.json cannot hold", name)
		}
	}
	return nil
}

func checkRlimits(limits []pod.Rlimit) error {
	seen := map[string]bool{}
	for _, l := range limits {
		if !rlimitNames[l.Type] {
			return invalid("rlimit %q: the kernel has none of that name", l.Type)
		}
		if l.Soft > l.Hard {
			return invalid("rlimit %s: soft %d is above hard %d", l.Type, l.Soft, l.Hard)
		}
		if seen[l.Type] {
			return invalid("rlimit %s is set twice", l.Type)
		}
		seen[l.Type] = true
	}
	return nil
}

var rlimitNames = map[string]bool{
	"RLIMIT_AS": true, "RLIMIT_CORE": true, "RLIMIT_CPU": true, "RLIMIT_DATA": true, "RLIMIT_FSIZE": true,
	"RLIMIT_LOCKS": true, "RLIMIT_MEMLOCK": true, "RLIMIT_MSGQUEUE": true, "RLIMIT_NICE": true,
	"RLIMIT_NOFILE": true, "RLIMIT_NPROC": true, "RLIMIT_RSS": true, "RLIMIT_RTPRIO": true,
	"RLIMIT_RTTIME": true, "RLIMIT_SIGPENDING": true, "RLIMIT_STACK": true,
}

// checkIDs refuses users that do not exist in the pod's user namespace: the
// runtime would fail late, with an error of setuid(2).
func checkIDs(in isolator.App) error {
	s, user := in.App.Security, in.Pod.Namespaces.User
	if user == nil {
		return nil
	}
	if !mapped(user.UIDs, s.UID) {
		return invalid("security.uid %d is not in the pod's user namespace", s.UID)
	}
	for _, g := range append([]uint32{s.GID}, s.Groups...) {
		if !mapped(user.GIDs, g) {
			return invalid("group %d is not in the pod's user namespace", g)
		}
	}
	return nil
}

// shownConfig is config.json as people may see it: without the values of
// environment variables, and with a word for the long list of system calls.
func shownConfig(spec any) []byte {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil
	}
	var v map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return nil
	}
	if process, ok := v["process"].(map[string]any); ok {
		env, _ := process["env"].([]any)
		for i, e := range env {
			name, _, _ := strings.Cut(e.(string), "=")
			env[i] = name + "=…"
		}
	}
	if linux, ok := v["linux"].(map[string]any); ok {
		if s, ok := linux["seccomp"].(map[string]any); ok {
			linux["seccomp"] = summary(s)
		}
	}
	return append(pretty(v), '\n')
}
