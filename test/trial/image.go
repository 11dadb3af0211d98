package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// rootfs is laid over the Debian packages in the VM.
//
//go:embed all:rootfs
var rootfs embed.FS

const (
	suite = "trixie"
	// recipe changes whenever the code below makes a different image.
	recipe   = "6"
	diskSize = "12G"
)

// guestPackages is what the VM holds beyond a minimal Debian.
func guestPackages() []string {
	return []string{
		"systemd", "systemd-sysv", "dbus", "udev", "linux-image-cloud-amd64", "initramfs-tools", "zstd",
		"openssh-server", "iproute2", "iptables", "nftables", "conntrack", "containernetworking-plugins",
		"crun", "runc", "erofs-utils", "golang-github-containers-common", "apparmor",
		"busybox-static", "nginx-light", "netcat-openbsd", // what test images are made of
		"criu", "libcriu2", // checkpoints
		"qemu-system-x86", "virtiofsd", "e2fsprogs", // pods that are machines
		"selinux-policy-default", "policycoreutils", "selinux-utils", // asleep, unless the VM is booted with SELinux
		"util-linux", "kmod", "sudo", "procps", "psmisc", "curl", "jq", "strace", "ca-certificates", "less",
	}
}

// masked units do nothing for a test machine but take boot time or wake it up.
func maskedUnits() []string {
	return []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer",
		"e2scrub_reap.service", "getty@.service", "serial-getty@.service", "console-getty.service", "nginx.service",
		"sshd-keygen.service", "systemd-pstore.service", "systemd-hwdb-update.service", "systemd-firstboot.service",
		"systemd-update-done.service", "systemd-journal-catalog-update.service", "systemd-pcrmachine.service",
		"systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-tpm2-setup.service",
		"systemd-tpm2-setup-early.service", "systemd-hibernate-clear.service", "systemd-networkd.service",
		"systemd-networkd-wait-online.service", "ldconfig.service", "systemd-machine-id-commit.service",
		"systemd-ask-password-console.path", "systemd-ask-password-wall.path",
	}
}

// diskImage is a built VM: a disk that no VM writes to, and the kernel and
// initrd that boot it.
type diskImage struct {
	dir string
}

func (d diskImage) disk() string   { return filepath.Join(d.dir, "disk.raw") }
func (d diskImage) kernel() string { return filepath.Join(d.dir, "vmlinuz") }
func (d diskImage) initrd() string { return filepath.Join(d.dir, "initrd") }
func (d diskImage) id() string     { return strings.TrimPrefix(filepath.Base(d.dir), "image-") }

func runImage(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("image")
	rebuild := flags.Bool("rebuild", false, "build it again even if it is in the cache")
	if err := flags.Parse(args); err != nil {
		return err
	}
	image, err := findImage(ctx, t, *rebuild)
	if err != nil {
		return err
	}
	fmt.Println(image.disk())
	return nil
}

// image is the one for the recipe as it stands, built or not.
func (t *trial) image() (diskImage, error) {
	inputs := []string{suite, recipe, diskSize, strings.Join(guestPackages(), " "), strings.Join(maskedUnits(), " ")}
	err := fs.WalkDir(rootfs, "rootfs", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := rootfs.ReadFile(path)
		inputs = append(inputs, path, string(data))
		return err
	})
	if err != nil {
		return diskImage{}, fmt.Errorf("hash the image's inputs: %w", err)
	}
	return diskImage{t.cache.path("image-" + digest(inputs...))}, nil
}

// findImage returns the image for the recipe as it stands, building it if the
// cache has none.
func findImage(ctx context.Context, t *trial, rebuild bool) (diskImage, error) {
	image, err := t.image()
	if err != nil {
		return diskImage{}, err
	}
	if exists(image.disk()) && !rebuild {
		return image, nil
	}
	unlock, err := t.cache.lock("image")
	if err != nil {
		return diskImage{}, err
	}
	defer unlock()
	if exists(image.disk()) && !rebuild {
		return image, nil
	}
	err = t.say.group("build image "+image.id()+" (Debian "+suite+", about a minute)", func() error {
		return buildImage(ctx, t, image)
	})
	return image, err
}

func buildImage(ctx context.Context, t *trial, image diskImage) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("not root: a root filesystem has files of many owners; run it with sudo")
	}
	host, err := hostRelease()
	if err != nil {
		return err
	}
	archive, err := debianArchive(host)
	if err != nil {
		return err
	}
	// Beside the final place, so that the rename at the end is atomic.
	work, err := os.MkdirTemp(string(t.cache), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	err = t.say.step("install packages with mmdebstrap", func() error { return bootstrap(ctx, root, archive) })
	if err != nil {
		return err
	}
	if err := configureRoot(ctx, root); err != nil {
		return err
	}
	built := diskImage{filepath.Join(work, "image")}
	if err := os.Mkdir(built.dir, 0o755); err != nil {
		return err
	}
	if err := copyKernel(root, built); err != nil {
		return err
	}
	err = t.say.step("make the disk with mke2fs", func() error { return makeDisk(ctx, root, built) })
	if err != nil {
		return err
	}
	if err := os.RemoveAll(image.dir); err != nil {
		return err
	}
	return os.Rename(built.dir, image.dir)
}

func bootstrap(ctx context.Context, root string, archive aptSource) error {
	program, err := lookProgram("mmdebstrap")
	if err != nil {
		return err
	}
	// A small initrd: only what finds the disk, and the network card so that
	// it is there before the first unit wants it.
	initramfs := `mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nBUSYBOX=y\n' >"$1/etc/initramfs-tools/conf.d/trial"
printf 'virtio_pci\nvirtio_blk\nvirtio_net\next4\n' >"$1/etc/initramfs-tools/modules"`
	cmd := exec.CommandContext(ctx, program,
		"--variant=minbase", "--architectures=amd64", "--include="+strings.Join(guestPackages(), ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-confdef", "--dpkgopt=force-confold",
		"--essential-hook="+initramfs,
		suite, root, archive.uri)
	return runQuiet(cmd)
}

// configureRoot lays our files over the packages' and makes what must differ
// from one build to the next.
func configureRoot(ctx context.Context, root string) error {
	if err := copyTree(rootfs, "rootfs", root); err != nil {
		return err
	}
	if err := dropProfiles(root); err != nil {
		return err
	}
	// Where containerd and most documentation look for CNI plugins.
	if err := os.MkdirAll(filepath.Join(root, "opt/cni"), 0o755); err != nil {
		return err
	}
	if err := os.Symlink("/usr/lib/cni", filepath.Join(root, "opt/cni/bin")); err != nil {
		return err
	}
	units := filepath.Join(root, "etc/systemd/system")
	for _, unit := range maskedUnits() {
		path := filepath.Join(units, unit)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.Symlink("/dev/null", path); err != nil {
			return err
		}
	}
	wants := filepath.Join(units, "sysinit.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.Symlink("../trial-network.service", filepath.Join(wants, "trial-network.service")); err != nil {
		return err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte(hex.EncodeToString(id)+"\n"), 0o444); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "var/log/journal"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "root/.hushlogin"), nil, 0o644); err != nil {
		return err
	}
	return makeHostKey(ctx, root)
}

// makeHostKey gives the VM one ssh host key now: making keys in the VM takes
// seconds of its boot.
func makeHostKey(ctx context.Context, root string) error {
	old, err := filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return runQuiet(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gantry-trial",
		"-f", filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")))
}

// dropProfiles removes the AppArmor profiles of programs that the VM does not
// have: compiling them all takes a third of its boot. Those that a real node
// applies to containers stay.
func dropProfiles(root string) error {
	keep := []string{"crun", "runc", "busybox", "virtiofsd", "rootlesskit", "slirp4netns"}
	dir := filepath.Join(root, "etc/apparmor.d")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() || slices.Contains(keep, entry.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyTree lays the files below from over the directory to.
func copyTree(files fs.FS, from, to string) error {
	return fs.WalkDir(files, from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.WriteFile(target, data, 0o644)
	})
}

func copyKernel(root string, image diskImage) error {
	for pattern, target := range map[string]string{"boot/vmlinuz-*": image.kernel(), "boot/initrd.img-*": image.initrd()} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("find %s: %d files, want one", pattern, len(found))
		}
		data, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func makeDisk(ctx context.Context, root string, image diskImage) error {
	program, err := lookProgram("mke2fs")
	if err != nil {
		return err
	}
	err = runQuiet(exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-L", "gantry-trial", "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,discard", "-d", root, image.disk(), diskSize))
	if err != nil {
		return err
	}
	return checkSpace(image.disk())
}

// checkSpace refuses a disk that came out cut short because the cache is full.
func checkSpace(path string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return err
	}
	if st.Blocks*512 < 100<<20 {
		return fmt.Errorf("check %s: only %d MiB in it; is the cache's filesystem full?", path, st.Blocks*512>>20)
	}
	return nil
}

// kernelVersion reads the version out of a kernel image's header.
func kernelVersion(kernel string) (string, error) {
	data, err := os.ReadFile(kernel)
	if err != nil {
		return "", err
	}
	if len(data) < 0x210 || string(data[0x202:0x206]) != "HdrS" {
		return "", fmt.Errorf("read %s: not an x86 kernel", kernel)
	}
	at := int(data[0x20e]) + int(data[0x20f])<<8 + 0x200
	if at >= len(data) {
		return "", fmt.Errorf("read %s: no version in it", kernel)
	}
	text, _, _ := bytes.Cut(data[at:min(at+128, len(data))], []byte{0})
	return string(text), nil
}
