// Command trial makes and drives the machine that Gantry is tested in: a Debian
// 13 virtual machine with systemd as PID 1 and cgroup v2, under KVM where that
// works and in software where it does not.
//
//	go run ./test/trial up             boot it (the first time, build it)
//	go run ./test/trial install        build Gantry and put it in
//	go run ./test/trial test           run the end-to-end tests inside
//
// See docs/testing.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// command is one subcommand of trial.
type command struct {
	name string
	args string
	help string
	run  func(ctx context.Context, t *trial, args []string) error
}

func commands() []command {
	return []command{
		{"deps", "", "install the host's packages (apt-get, only what is missing)", runDeps},
		{"image", "[--rebuild]", "build the VM's disk image, or find it in the cache", runImage},
		{"up", "[--fresh|--keep-disk] [--selinux]", "boot the VM from a clean disk unless it runs", runUp},
		{"ssh", "[command...]", "run a command in the VM, or open a shell", runSSH},
		{"push", "SRC DST", "copy a file or a directory into the VM", runPush},
		{"pull", "SRC DST", "copy a file or a directory out of the VM", runPull},
		{"install", "[--node-only]", "build Gantry and put it in the VM, with a registry and a CNI network", runInstall},
		{"test", "[-run REGEX] [-suite S] [-v] [-keep]", "install, then run the suites in the VM", runTest},
		{"test-all", "[--serial] [--again]", "run all suites, some of them at the same time, in a second VM", runAll},
		{"node-e2e", "[--focus REGEX] [--skip REGEX] [--record]", "run Kubernetes' own node suite in the VM; it goes on where it was cut off", runNodeE2E},
		{"bench", "[--record] [-keep] [-- ...]", "measure Gantry and containerd in the VM (-- -h: its options)", runBench},
		{"kubelet", "[--build-only]", "build the stock kubelet and put it in the VM", runKubelet},
		{"controlplane", "[--build-only]", "the same for an API server and its etcd", runControlPlane},
		{"agnhost", "[--build-only]", "the same for the test program of Kubernetes' own images", runAgnhost},
		{"containerd", "[--build-only]", "the same for containerd, to compare with", runContainerd},
		{"gvisor", "[--build-only]", "the same for gVisor's runtime, runsc", runGVisor},
		{"reboot", "[--hard]", "reboot the VM and wait until it is back (--hard: as if the power went)", runReboot},
		{"stop", "", "power the VM off; its disk is thrown away at the next up", runStop},
		{"status", "", "list the VMs: running or not, ports, acceleration", runStatus},
		{"clean", "", "remove disks of VMs that are off, and images, peers and results not used for a day", runClean},
		{"logs", "[-f]", "print the serial console", runLogs},
	}
}

// trial is what all subcommands share: where things are cached and which VM is
// meant.
type trial struct {
	cache cache
	name  string
	say   printer
	// selinux boots the VM with SELinux in AppArmor's place.
	selinux bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	if err == nil {
		return
	}
	code := 1
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		code = exit.ExitCode()
	}
	var quiet *remoteError
	if !errors.As(err, &quiet) {
		fmt.Fprintln(os.Stderr, "trial:", err)
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("trial", flag.ContinueOnError)
	name := flags.String("name", envOr("GANTRY_VM", "default"), "which VM, several may run at once (also GANTRY_VM)")
	flags.Usage = func() { usage(flags) }
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() == 0 {
		usage(flags)
		return nil
	}
	if !validName(*name) {
		return fmt.Errorf("name %q: use letters, digits and dashes, at most 24", *name)
	}
	dir, err := openCache()
	if err != nil {
		return err
	}
	t := &trial{cache: dir, name: *name, say: printer{os.Stderr}}
	for _, c := range commands() {
		if c.name == flags.Arg(0) {
			return c.run(ctx, t, flags.Args()[1:])
		}
	}
	return fmt.Errorf("command %q is unknown: run trial without arguments for the list", flags.Arg(0))
}

func usage(flags *flag.FlagSet) {
	out := flags.Output()
	fmt.Fprintln(out, "usage: go run ./test/trial [--name VM] command [arguments]")
	fmt.Fprintln(out)
	for _, c := range commands() {
		fmt.Fprintf(out, "  %-38s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprintln(out)
	flags.PrintDefaults()
}

// flags is the flag set of one subcommand. It takes --name as well, so that the
// name may stand behind the subcommand too.
func (t *trial) flags(command string) *flag.FlagSet {
	f := flag.NewFlagSet("trial "+command, flag.ContinueOnError)
	f.Func("name", "which VM", func(s string) error {
		if !validName(s) {
			return fmt.Errorf("use letters, digits and dashes, at most 24")
		}
		t.name = s
		return nil
	})
	return f
}

func validName(s string) bool {
	if s == "" || len(s) > 24 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
