package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// bootLimit is how long a boot may take before it counts as failed. In
// software on a busy machine it takes many times its usual ten seconds.
const bootLimit = 5 * time.Minute

func runUp(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("up")
	fresh := flags.Bool("fresh", false, "power a running VM off first, so that it starts from a clean disk")
	keep := flags.Bool("keep-disk", false, "boot from the disk of the last time")
	flags.BoolVar(&t.selinux, "selinux", false, "boot it with SELinux, permissive, in AppArmor's place")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return t.up(ctx, *fresh, *keep)
}

func (t *trial) up(ctx context.Context, fresh, keep bool) error {
	image, err := findImage(ctx, t, false)
	if err != nil {
		return err
	}
	v := t.vm()
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return fmt.Errorf("make the VM's directory: %w", err)
	}
	unlock, err := t.cache.lock("vm/" + t.name)
	if err != nil {
		return err
	}
	defer unlock()
	if v.pid() != 0 && v.read("lsm") != lsm(t.selinux) {
		t.say.line("VM %s runs with %s, and %s is wanted", v.name, v.read("lsm"), lsm(t.selinux))
		fresh = true
	}
	if v.pid() != 0 && !fresh {
		t.say.line("VM %s runs already, %s", v.name, v.read("accel"))
		if v.read("image") != image.id() {
			t.say.line("note: it runs an older image than the recipe's; --fresh boots the new one")
		}
		return v.wait(ctx, "", bootLimit)
	}
	if err := v.stop(ctx); err != nil {
		return err
	}
	if keep && v.read("image") != image.id() {
		return fmt.Errorf("keep the disk of VM %s: it lies above another image; boot without --keep-disk", v.name)
	}
	how, err := chooseAccel(ctx, t, image)
	if err != nil {
		return err
	}
	t.say.line("acceleration: %s, %s", how.name, how.why)
	return t.say.step("boot VM "+v.name, func() error {
		if err := v.power(ctx, image, how, keep, lsm(t.selinux)); err != nil {
			return err
		}
		return v.wait(ctx, "", bootLimit)
	})
}

// lsm names what confines programs in a VM.
func lsm(selinux bool) string {
	if selinux {
		return "selinux"
	}
	return "apparmor"
}

// upFor boots the VM for one command unless it runs. end is for the command's end: it
// stops the VM that this one booted, unless it is to be kept.
func (t *trial) upFor(ctx context.Context, keep bool) (booted bool, end func(), err error) {
	v := t.vm()
	booted = v.pid() == 0 || v.read("lsm") != lsm(t.selinux)
	if err := t.up(ctx, false, false); err != nil {
		return booted, nil, err
	}
	return booted, func() {
		if !booted || keep {
			return
		}
		if err := v.stop(context.WithoutCancel(ctx)); err != nil {
			t.say.line("stop VM %s: %v", v.name, err)
		}
	}, nil
}

func runStop(ctx context.Context, t *trial, args []string) error {
	if err := t.flags("stop").Parse(args); err != nil {
		return err
	}
	v := t.vm()
	if v.pid() == 0 {
		t.say.line("VM %s does not run", v.name)
		return nil
	}
	return t.say.step("stop VM "+v.name, func() error {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := v.output(short, "sync"); err != nil {
			t.say.line("sync in the VM: %v; powering off all the same", err)
		}
		return v.stop(ctx)
	})
}

func runReboot(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("reboot")
	hard := flags.Bool("hard", false, "reset the processors, as if the power went for a moment")
	if err := flags.Parse(args); err != nil {
		return err
	}
	v := t.vm()
	if err := v.mustRun(); err != nil {
		return err
	}
	return t.reboot(ctx, v, *hard)
}

// reboot returns when the VM has come up again.
func (t *trial) reboot(ctx context.Context, v vm, hard bool) error {
	bootID, err := v.output(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	what := "reboot VM " + v.name
	if hard {
		what = "reset VM " + v.name
	}
	return t.say.step(what, func() error {
		if hard {
			if err := v.monitor("system_reset"); err != nil {
				return err
			}
		} else if _, err := v.output(ctx, "systemctl reboot"); err != nil {
			t.say.line("systemctl reboot: %v", err)
		}
		v.dropMaster(ctx)
		return v.wait(ctx, strings.TrimSpace(bootID), bootLimit)
	})
}

func runStatus(_ context.Context, t *trial, args []string) error {
	if err := t.flags("status").Parse(args); err != nil {
		return err
	}
	entries, err := os.ReadDir(t.cache.path("vm"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list VMs: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		v := vm{entry.Name(), t.cache.path("vm", entry.Name())}
		if pid := v.pid(); pid != 0 {
			fmt.Printf("%-16s running  pid %d  ssh port %s  image %s  %s\n", v.name, pid, v.read("port"), v.read("image"), v.read("accel"))
		} else {
			fmt.Printf("%-16s off\n", v.name)
		}
	}
	if len(entries) == 0 {
		t.say.line("no VM yet; boot one with: go run ./test/trial up")
	}
	return nil
}

func runLogs(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("logs")
	follow := flags.Bool("f", false, "go on as more comes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	tailArgs := []string{"-n", "+1"}
	if *follow {
		tailArgs = append(tailArgs, "-f")
	}
	cmd := exec.CommandContext(ctx, "tail", append(tailArgs, t.vm().path("serial.log"))...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func (v vm) mustRun() error {
	if v.pid() == 0 {
		return fmt.Errorf("reach VM %s: it does not run; boot it with: go run ./test/trial --name %s up", v.name, v.name)
	}
	return nil
}
