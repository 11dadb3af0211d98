package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// hostPackage is a program that trial needs on the machine it runs on.
type hostPackage struct {
	name, program, why string
	backport           bool
}

func hostPackages() []hostPackage {
	return []hostPackage{
		{name: "mmdebstrap", program: "mmdebstrap", why: "makes the VM's root filesystem"},
		{name: "e2fsprogs", program: "mke2fs", why: "turns it into a disk image without a loop device"},
		{name: "qemu-system-x86", program: "qemu-system-x86_64", why: "runs the VM", backport: true},
		{name: "qemu-utils", program: "qemu-img", why: "gives each VM its own layer above the image", backport: true},
		{name: "openssh-client", program: "ssh", why: "talks to the VM"},
		{name: "make", program: "make", why: "builds Gantry"},
	}
}

const backportsFile = "/etc/apt/sources.list.d/gantry-trial-backports.sources"

func runDeps(ctx context.Context, t *trial, args []string) error {
	if err := t.flags("deps").Parse(args); err != nil {
		return err
	}
	host, err := hostRelease()
	if err != nil {
		return err
	}
	old := host.id == "debian" && host.version == "12"
	var plain, backports []string
	for _, p := range hostPackages() {
		stale := p.backport && old && qemuMajor(ctx) < 10
		if _, err := lookProgram(p.program); err == nil && !stale {
			t.say.line("%-16s is here (%s)", p.name, p.why)
			continue
		}
		t.say.line("%-16s is missing: it %s", p.name, p.why)
		if p.backport && old {
			backports = append(backports, p.name)
		} else {
			plain = append(plain, p.name)
		}
	}
	if len(plain)+len(backports) == 0 {
		t.say.line("nothing to install")
		return nil
	}
	if host.id != "debian" {
		return fmt.Errorf("install packages: this machine runs %q and only Debian is handled; install by hand: %s", host.id, strings.Join(append(plain, backports...), " "))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install packages: not root; run it with sudo")
	}
	if len(backports) > 0 {
		if err := addBackports(t, host); err != nil {
			return err
		}
	}
	if err := t.say.step("apt-get update", func() error { return apt(ctx, "update") }); err != nil {
		return err
	}
	if len(plain) > 0 {
		install := append([]string{"install", "--no-install-recommends"}, plain...)
		if err := t.say.step("apt-get "+strings.Join(install, " "), func() error { return apt(ctx, install...) }); err != nil {
			return err
		}
	}
	if len(backports) > 0 {
		install := append([]string{"install", "--no-install-recommends", "-t", host.codename + "-backports"}, backports...)
		return t.say.step("apt-get "+strings.Join(install, " "), func() error { return apt(ctx, install...) })
	}
	return nil
}

// addBackports lets apt see the backports of this release in the archive that
// it already uses. Pinned low: nothing else is upgraded by it.
func addBackports(t *trial, host osRelease) error {
	archive, err := debianArchive(host)
	if err != nil {
		return err
	}
	signedBy := archive.signedBy
	if signedBy == "" {
		signedBy = "/usr/share/keyrings/debian-archive-keyring.gpg"
	}
	suite := host.codename + "-backports"
	text := fmt.Sprintf("# Added by Gantry's trial: the qemu of Debian 12 crashes guests under software emulation.\nTypes: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n", archive.uri, suite, signedBy)
	if err := os.WriteFile(backportsFile, []byte(text), 0o644); err != nil {
		return fmt.Errorf("add backports: %w", err)
	}
	pin := fmt.Sprintf("Package: *\nPin: release n=%s\nPin-Priority: 100\n", suite)
	if err := os.WriteFile("/etc/apt/preferences.d/gantry-trial-backports", []byte(pin), 0o644); err != nil {
		return fmt.Errorf("pin backports: %w", err)
	}
	t.say.line("added %s: Debian 12's own qemu crashes guests under software emulation", backportsFile)
	return nil
}

func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-y", "-o", "Dpkg::Use-Pty=0"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return runQuiet(cmd)
}

// lookProgram finds a program also where a plain user's PATH does not look.
func lookProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: not installed; run: go run ./test/trial deps", name)
}

// runQuiet runs cmd and shows its output only when it fails.
func runQuiet(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, tail(string(out), 30))
	}
	return nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
