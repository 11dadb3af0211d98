package recipe

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// HasShared tells whether mounts made in the app must show on the host.
func HasShared(a *pod.App) bool {
	for _, m := range a.Mounts {
		if m.Propagation == pod.PropagationShared {
			return true
		}
	}
	return false
}

// CheckApp refuses what no isolator's app may have, and what this one's may not.
func (r Recipe) CheckApp(in isolator.App) error {
	if in.Pod == nil || in.App == nil {
		return Invalid("no pod or no app")
	}
	for _, id := range []pod.ID{in.Pod.ID, in.App.ID} {
		if _, err := pod.ParseID(string(id)); err != nil {
			return err
		}
	}
	for _, dir := range []string{in.Dir.Pod, in.Dir.App, in.Dir.Run} {
		if err := CheckPath(dir); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	if err := r.checkPod(in.Pod); err != nil {
		return err
	}
	if err := r.Features.CheckApp(in.App); err != nil {
		return err
	}
	if in.Pod.Owner == pod.OwnerCRI && in.App.Security.Privileged && !in.Pod.Security.Privileged {
		return Invalid("security.privileged: the pod is not privileged")
	}
	switch mode := in.App.Namespaces.PID; mode {
	case pod.NamespacePod, pod.NamespaceApp, pod.NamespaceNode, pod.NamespaceTarget:
	default:
		return Invalid("namespaces.pid %q: want pod, app, node or target", mode)
	}
	if err := checkSecurity(in); err != nil {
		return err
	}
	return checkProcess(in)
}

// CheckTree refuses a tree that overlay could not take.
func CheckTree(name string, t isolator.Tree) error {
	if err := CheckPath(t.Path); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// Overlay takes layers in one option, where these two have a meaning.
	if strings.ContainsAny(t.Path, ":,\\") {
		return Invalid("%s: path %q has a colon, comma or backslash", name, t.Path)
	}
	if t.Unit != "" && unit.ValidName(t.Unit) != nil {
		return Invalid("%s: unit %q", name, t.Unit)
	}
	return nil
}

// CheckPath wants an absolute path that means what it says.
func CheckPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return Invalid("path %q: want an absolute path without . and ..", p)
	}
	return nil
}

func checkProcess(in isolator.App) error {
	a := in.App
	if err := CheckArgv(a.Argv); err != nil {
		return err
	}
	if a.WorkingDir != "" && (!path.IsAbs(a.WorkingDir) || strings.ContainsRune(a.WorkingDir, 0)) {
		return Invalid("workingDir %q: want an absolute path", a.WorkingDir)
	}
	if err := CheckEnv(in.Secret.Env); err != nil {
		return err
	}
	if a.StopSignal < 0 || a.StopSignal > 64 {
		return Invalid("stopSignal %d: want 1 to 64", a.StopSignal)
	}
	if a.StopTimeout < 0 {
		return Invalid("stopTimeout %s is negative", a.StopTimeout)
	}
	if s := in.Resources.OOMScoreAdj; s < -1000 || s > 1000 {
		return Invalid("oomScoreAdj %d: want -1000 to 1000", s)
	}
	if err := checkRlimits(a.Rlimits); err != nil {
		return err
	}
	return checkIDs(in)
}

// CheckArgv refuses a command that cannot be written down or run.
func CheckArgv(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return Invalid("argv: no command")
	}
	for _, arg := range argv {
		if strings.ContainsRune(arg, 0) || !utf8.ValidString(arg) {
			return Invalid("argv: an argument has a NUL or is not UTF-8, which config.json cannot hold")
		}
	}
	return nil
}

// CheckEnv does not tell the value: it may be a secret.
func CheckEnv(env []string) error {
	for i, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return Invalid("env: variable %d is not NAME=value", i)
		}
		if strings.ContainsRune(e, 0) || !utf8.ValidString(e) {
			return Invalid("env: the value of %q has a NUL or is not UTF-8, which config.json cannot hold", name)
		}
	}
	return nil
}

func checkRlimits(limits []pod.Rlimit) error {
	seen := map[string]bool{}
	for _, l := range limits {
		if !rlimitNames[l.Type] {
			return Invalid("rlimit %q: the kernel has none of that name", l.Type)
		}
		if l.Soft > l.Hard {
			return Invalid("rlimit %s: soft %d is above hard %d", l.Type, l.Soft, l.Hard)
		}
		if seen[l.Type] {
			return Invalid("rlimit %s is set twice", l.Type)
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
	if !Mapped(user.UIDs, s.UID) {
		return Invalid("security.uid %d is not in the pod's user namespace", s.UID)
	}
	for _, g := range append([]uint32{s.GID}, s.Groups...) {
		if !Mapped(user.GIDs, g) {
			return Invalid("group %d is not in the pod's user namespace", g)
		}
	}
	return nil
}
