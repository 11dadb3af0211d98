//go:build e2e

package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// TestAppArmorDefault: an app that asks for the default profile has it, in execs
// too, and cannot do what it denies although it has the capability. Where the
// profile is not loaded, the app is refused and does not run unconfined.
func TestAppArmorDefault(t *testing.T) {
	guard(t)
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || strings.TrimSpace(string(on)) != "Y" {
		notRun(t, "AppArmor is not on: %s, %v", on, err)
	}
	sh(t, "systemctl start gantry-apparmor.service")
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork, func(p *pod.Pod) { p.Security.Privileged = true })
	confined := with(func(s *engine.AppSpec) {
		s.Security.AppArmor = pod.Profile{Kind: pod.ProfileRuntimeDefault}
		s.Security.AddCaps = []string{"SYS_ADMIN"}
		s.Security.Seccomp = pod.Profile{Kind: pod.ProfileUnconfined}
	})
	const try = `cat /proc/self/attr/current; mount -t tmpfs x /mnt 2>&1 | grep -o 'ermission denied'; echo x >/f && cat /f; sh -c 'kill -0 1' && echo signals`
	sameText(t, printed(t, n, p, "mkdir -p /mnt; "+try, confined), "gantry-default (enforce)\nermission denied\nx\nsignals")
	a := newApp(t, n, p, command("sleep", "1000000"), confined)
	start(t, n, a)
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"cat", "/proc/self/attr/current"}}, "")
	sameText(t, out, "gantry-default (enforce)\n")
	sameText(t, printed(t, n, p, "cat /proc/self/attr/current", with(func(s *engine.AppSpec) { s.Security.Privileged = true })), "unconfined")
	if err := n.StopApp(t.Context(), a.ID, 0); err != nil {
		t.Error(err)
	}

	sh(t, "apparmor_parser --remove /usr/share/gantry/apparmor/gantry-default")
	t.Cleanup(func() { sh(t, "systemctl restart gantry-apparmor.service") })
	spec := appSpec("refused")
	spec.Security.AppArmor = pod.Profile{Kind: pod.ProfileRuntimeDefault}
	if _, err := n.CreateApp(t.Context(), p.ID, spec); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), `"gantry-default" is not loaded`) {
		t.Errorf("without the profile: %v", err)
	}
}

// TestOCISharedPIDInUserNamespace: the apps of a pod with users of its own share a
// PID namespace that belongs to those users.
func TestOCISharedPIDInUserNamespace(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	ids := []pod.IDMap{{Container: 0, Host: 700000, Length: 65536}}
	p := newPod(t, n, func(p *pod.Pod) {
		p.Namespaces.User, p.Namespaces.PID = &pod.UserNS{UIDs: ids, GIDs: ids}, pod.NamespacePod
	})
	first := newApp(t, n, p, command("sleep", "1000001"))
	start(t, n, first)
	got := printed(t, n, p, `tr '\0' ' ' </proc/1/cmdline; echo; stat -c %u /proc/1; pidof sleep | wc -w; id -u; kill -0 $(pidof sleep) && echo signals`)
	sameText(t, got, "gantry-holder \n0\n1\n0\nsignals")
	holder := sh(t, "systemctl show --value -p MainPID gantry-holder-"+string(p.ID)+".service")
	sameText(t, sh(t, "stat -c %u /proc/"+holder), "700000")
	sameText(t, sh(t, "readlink /proc/"+holder+"/ns/user"), sh(t, "readlink /proc/$(systemctl show --value -p MainPID gantry-app-"+string(first.ID)+".service)/ns/user"))
	out, code := execIn(t, n, first, pod.Process{Argv: []string{"sh", "-c", "id -u; pidof sleep | wc -w"}}, "")
	if code != 0 {
		t.Errorf("exec ended with %d", code)
	}
	sameText(t, out, "0\n1\n")
}
