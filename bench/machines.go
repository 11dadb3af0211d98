package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// machinesOn is where Gantry reads that there are virtual machines.
	machinesOn    = "/etc/gantry/config.d/91-bench.toml"
	machineMemory = "256"
	machineBoot   = 3 * time.Minute
	// machinePods is how many are idle for memory.
	machinePods = 3
)

// measureMachines times starts of pods that are virtual machines, and takes what an idle
// one costs: all processes of the host that are there for it.
func measureMachines(ctx context.Context, b *bench, e *engine) error {
	if e.name != "gantry" {
		return nil
	}
	if err := loadModules(ctx); err != nil {
		return err
	}
	config := fmt.Sprintf("[kvm]\nmemory = \"%sMiB\"\nboot-time = \"%s\"\n", machineMemory, machineBoot)
	if err := os.MkdirAll(filepath.Dir(machinesOn), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(machinesOn, []byte(config), 0o644); err != nil {
		return err
	}
	err := b.restart(ctx, e)
	if err == nil {
		err = b.machines(ctx, e)
	}
	return errors.Join(err, b.removeAll(ctx, e), os.RemoveAll(machinesOn), b.restart(ctx, e))
}

// loadModules loads what systemd-modules-load has loaded where the product was installed
// before the boot.
func loadModules(ctx context.Context) error {
	vendor := "kvm_amd"
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(cpu), "vmx") {
		vendor = "kvm_intel"
	}
	return command(ctx, "modprobe", "-a", vendor, "vhost_vsock", "vhost_net", "tun")
}

func (b *bench) machines(ctx context.Context, e *engine) error {
	// The first one makes what all of them boot.
	if _, err := b.startOne(ctx, e, false, "kvm"); err != nil {
		return err
	}
	if err := b.removeAll(ctx, e); err != nil {
		return err
	}
	for range samples - 1 {
		if _, err := b.timeStart(ctx, e, mMachine, false, "kvm"); err != nil {
			return err
		}
		if err := b.removeAll(ctx, e); err != nil {
			return err
		}
	}
	before, err := b.restingMemory(ctx)
	if err != nil {
		return err
	}
	for range machinePods {
		if _, err := b.startOne(ctx, e, false, "kvm"); err != nil {
			return err
		}
	}
	after, err := b.restingMemory(ctx)
	if err != nil {
		return err
	}
	b.add(mMachineMemory, e, (after.total()-before.total())/machinePods)
	fmt.Fprintf(os.Stderr, "bench: memory of machines by program, KB with none and with %d pods: %s\n", machinePods, grown(before, after))
	return nil
}

// floorMachines times a bare boot: the same kernel, with an initramfs whose first process
// says that it is there, in a machine of the same size without any device.
func floorMachines(ctx context.Context, b *bench) error {
	if err := loadModules(ctx); err != nil {
		return err
	}
	initrd, err := b.bareInitrd(ctx)
	if err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	for range samples {
		took, err := bareBoot(ctx, "/boot/vmlinuz-"+unix.ByteSliceToString(uts.Release[:]), initrd)
		if err != nil {
			return err
		}
		b.addFloor(mBoot, ms(took))
	}
	return nil
}

const firstLine = "the first process is there"

func (b *bench) bareInitrd(ctx context.Context) (string, error) {
	out := filepath.Join(b.scratch, "initrd")
	script := fmt.Sprintf(`set -e
mkdir -p %[1]s.d/bin %[1]s.d/dev
cp /usr/bin/busybox %[1]s.d/bin/sh
test -e %[1]s.d/dev/console || mknod -m 600 %[1]s.d/dev/console c 5 1
printf '#!/bin/sh\necho %[2]s\nread forever\n' >%[1]s.d/init
chmod 755 %[1]s.d/init
cd %[1]s.d && find . | cpio --quiet -o -H newc >%[1]s`, out, firstLine)
	return out, command(ctx, "sh", "-c", script)
}

// bareBoot takes the time from the start of the emulator to the first process's line.
func bareBoot(ctx context.Context, kernel, initrd string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, machineBoot)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "1", "-m", machineMemory+"M",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on", "-serial", "stdio")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	var last string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if last = lines.Text(); strings.Contains(last, firstLine) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("bare boot: the first process did not come; the console ends with %q", last)
}
