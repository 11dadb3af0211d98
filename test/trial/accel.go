package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// accel is how a VM's processors are run.
type accel struct {
	name string // "kvm" or "tcg"
	why  string
}

// args are qemu's. The processor model matters: "max" boots twice as slowly in
// software, and svm gives the guest a working /dev/kvm even there.
func (a accel) args() []string {
	if a.name == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "EPYC,+svm"}
}

const guestMarker = "trial-guest-is-up"

// chooseAccel finds out whether a guest boots under KVM here. That /dev/kvm
// exists says little: inside some virtual machines it opens, and guests hang.
func chooseAccel(ctx context.Context, t *trial, image diskImage) (accel, error) {
	switch forced := os.Getenv("GANTRY_VM_ACCEL"); forced {
	case "":
	case "kvm", "tcg":
		return accel{forced, "GANTRY_VM_ACCEL says so"}, nil
	default:
		return accel{}, fmt.Errorf("choose acceleration: GANTRY_VM_ACCEL is %q; use kvm or tcg", forced)
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return accel{"tcg", "no usable /dev/kvm"}, nil
	}
	dev.Close()
	key, err := probeKey(ctx, image)
	if err != nil {
		return accel{}, err
	}
	path := t.cache.path("accel-" + key)
	if known, err := os.ReadFile(path); err == nil {
		name, why, _ := strings.Cut(strings.TrimSpace(string(known)), " ")
		return accel{name, why + " (probed before)"}, nil
	}
	var found accel
	err = t.say.step("probe /dev/kvm with a guest that prints a line and ends (at most 20 s)", func() error {
		found = probeKVM(ctx, image)
		return ctx.Err()
	})
	if err != nil {
		return accel{}, err
	}
	if err := os.WriteFile(path, []byte(found.name+" "+found.why+"\n"), 0o644); err != nil {
		return accel{}, fmt.Errorf("remember the probe: %w", err)
	}
	return found, nil
}

// probeKey names all that decides whether KVM works: the host's kernel, qemu
// and the guest's kernel.
func probeKey(ctx context.Context, image diskImage) (string, error) {
	guest, err := kernelVersion(image.kernel())
	if err != nil {
		return "", err
	}
	qemu, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask qemu for its version: %w; run: go run ./test/trial deps", err)
	}
	var host syscall.Utsname
	if err := syscall.Uname(&host); err != nil {
		return "", fmt.Errorf("read the host's kernel version: %w", err)
	}
	return digest(guest, string(qemu), fmt.Sprint(host.Release), fmt.Sprint(host.Version)), nil
}

// probeKVM boots the VM's own kernel and initrd up to a shell that prints a
// marker, and never touches a disk.
func probeKVM(ctx context.Context, image diskImage) accel {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	args := append(accel{name: "kvm"}.args(),
		"-machine", "q35", "-m", "512", "-smp", "2", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", image.kernel(), "-initrd", image.initrd(),
		"-append", `console=ttyS0 panic=-1 loglevel=3 rdinit=/bin/sh -- -c "echo `+guestMarker+`"`)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), guestMarker):
		return accel{"kvm", "a guest boots"}
	case ctx.Err() != nil:
		return accel{"tcg", "/dev/kvm is there, but a guest hangs under it"}
	case err != nil:
		return accel{"tcg", "/dev/kvm is there, but qemu cannot use it: " + oneLine(string(out))}
	default:
		return accel{"tcg", "/dev/kvm is there, but a guest dies under it"}
	}
}

func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return text[:min(len(text), 70)]
}

// qemuMajor is the installed qemu's major version, 0 if there is none.
func qemuMajor(ctx context.Context) int {
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(out), "version ")
	major, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0
	}
	return n
}
