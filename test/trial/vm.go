package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// vm is one virtual machine of this cache, running or not. Its directory holds
// all there is to know about it.
type vm struct {
	name string
	dir  string
}

func (t *trial) vm() vm { return vm{t.name, t.cache.path("vm", t.name)} }

// processors is how many each VM has.
func processors() int {
	if n, err := strconv.Atoi(os.Getenv("GANTRY_VM_CPUS")); err == nil && n > 0 {
		return n
	}
	return 2
}

func (v vm) path(file string) string { return filepath.Join(v.dir, file) }

// read returns one of the VM's small files, empty if it has none.
func (v vm) read(file string) string {
	data, err := os.ReadFile(v.path(file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// pid is the process id of the VM's qemu, 0 if it does not run. A number in a
// file proves nothing, so the process must also name this VM's directory.
func (v vm) pid() int {
	pid, err := strconv.Atoi(v.read("qemu.pid"))
	if err != nil {
		return 0
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), v.path("qemu.pid")) {
		return 0
	}
	return pid
}

// power starts the VM's qemu. The disk is a layer above the image, new unless
// keep.
func (v vm) power(ctx context.Context, image diskImage, how accel, keep bool, lsm string) error {
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return fmt.Errorf("make the VM's directory: %w", err)
	}
	key, err := v.makeKey(ctx)
	if err != nil {
		return err
	}
	if !keep || !exists(v.path("disk.qcow2")) {
		if err := v.makeDisk(ctx, image); err != nil {
			return err
		}
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	args := append(how.args(), v.args(image, port, key, lsm)...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := runQuiet(cmd); err != nil {
		return err
	}
	for file, text := range map[string]string{"port": strconv.Itoa(port), "accel": how.name + " (" + how.why + ")", "image": image.id(), "size": sizeOfVM(), "lsm": lsm} {
		if err := os.WriteFile(v.path(file), []byte(text+"\n"), 0o600); err != nil {
			return fmt.Errorf("write down the VM's %s: %w", file, err)
		}
	}
	return nil
}

// memory is that of a VM, in MiB or as qemu reads it.
func memory() string { return envOr("GANTRY_VM_MEM", "4096") }

// sizeOfVM is what a VM that is booted now gets.
func sizeOfVM() string { return fmt.Sprintf("%d CPUs, %s", processors(), memory()) }

func (v vm) args(image diskImage, port int, publicKey, lsm string) []string {
	// The guest learns whom to let in from a systemd credential, so that the
	// image itself holds no key of anybody.
	credential := base64.StdEncoding.EncodeToString([]byte(publicKey + "\n"))
	append := strings.Join([]string{
		"root=/dev/vda rw console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off tsc=reliable panic=10 oops=panic",
		"random.trust_cpu=on systemd.show_status=false systemd.ssh_auto=no systemd.default_device_timeout_sec=300",
		"security=" + lsm, "selinux=1 enforcing=0", // the second is for the one that is chosen
		"systemd.set_credential_binary=ssh.authorized_keys.root:" + credential,
	}, " ")
	return []string{
		"-name", "gantry-trial-" + v.name,
		"-machine", "q35", "-smp", strconv.Itoa(processors()), "-m", memory(),
		"-nodefaults", "-display", "none", "-daemonize", "-pidfile", v.path("qemu.pid"),
		"-serial", "file:" + v.path("serial.log"),
		"-monitor", "unix:" + v.path("monitor.sock") + ",server=on,wait=off",
		"-kernel", image.kernel(), "-initrd", image.initrd(), "-append", append,
		"-drive", "file=" + v.path("disk.qcow2") + ",if=virtio,format=qcow2,cache=unsafe,discard=unmap",
		"-netdev", fmt.Sprintf("user,id=net0,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", port),
		"-device", "virtio-net-pci,netdev=net0",
		"-device", "virtio-rng-pci",
	}
}

func (v vm) makeDisk(ctx context.Context, image diskImage) error {
	if err := os.RemoveAll(v.path("disk.qcow2")); err != nil {
		return fmt.Errorf("remove the old disk: %w", err)
	}
	return runQuiet(exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
		"-b", image.disk(), v.path("disk.qcow2")))
}

// makeKey returns the public half of the VM's own ssh key.
func (v vm) makeKey(ctx context.Context) (string, error) {
	if !exists(v.path("key.pub")) {
		if err := os.RemoveAll(v.path("key")); err != nil {
			return "", fmt.Errorf("remove the old key: %w", err)
		}
		err := runQuiet(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gantry-trial-"+v.name, "-f", v.path("key")))
		if err != nil {
			return "", err
		}
	}
	return v.read("key.pub"), nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// wait returns when ssh answers in the VM and, unless bootID is empty, it is
// another boot than that one.
func (v vm) wait(ctx context.Context, bootID string, limit time.Duration) error {
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		if v.pid() == 0 {
			return fmt.Errorf("wait for ssh: qemu has ended; the last of its console:\n%s", tail(v.read("serial.log"), 20))
		}
		if v.answers() {
			id, err := v.output(ctx, "cat /proc/sys/kernel/random/boot_id")
			if err == nil && strings.TrimSpace(id) != bootID {
				return nil
			}
			v.dropMaster(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for ssh: %w", context.Cause(ctx))
		case <-late.C:
			return fmt.Errorf("wait for ssh: none after %s; look at: go run ./test/trial --name %s logs", limit, v.name)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// answers says whether an ssh server greets: qemu accepts the connection long
// before the guest does.
func (v vm) answers() bool {
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:"+v.read("port"), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.HasPrefix(line, "SSH-")
}

// monitor gives qemu one command.
func (v vm) monitor(command string) error {
	conn, err := net.DialTimeout("unix", v.path("monitor.sock"), 5*time.Second)
	if err != nil {
		return fmt.Errorf("tell qemu %q: %w", command, err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return fmt.Errorf("tell qemu %q: %w", command, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	// The monitor echoes; a quit closes the connection instead.
	buf := bufio.NewReader(conn)
	for range 2 {
		if _, err := buf.ReadString('\n'); err != nil {
			break
		}
	}
	return nil
}

// stop ends qemu. The disk keeps what the guest had synced.
func (v vm) stop(ctx context.Context) error {
	pid := v.pid()
	if pid == 0 {
		return nil
	}
	v.dropMaster(ctx)
	if err := v.monitor("quit"); err != nil {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop qemu: %w", err)
		}
	}
	for range 100 {
		if v.pid() == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill qemu: %w", err)
	}
	return nil
}
