package initproc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFilteredHolder runs this test again as a holder: it goes on, and can do little.
func TestFilteredHolder(t *testing.T) {
	t.Parallel()
	if _, ok := auditArch(); !ok {
		t.Skip("the holder is not filtered on this machine")
	}
	if os.Getenv("GANTRY_TEST_FILTERED") != "" {
		if err := filtered(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("well")
		os.Exit(0)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestFilteredHolder$")
	cmd.Env = append(os.Environ(), "GANTRY_TEST_FILTERED=1")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), errCgo.Error()) {
		t.Skip(errCgo)
	}
	if err != nil || !strings.HasSuffix(string(out), "well\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// errCgo: the race detector brings cgo, whose threads are made otherwise. Gantry is built
// without.
var errCgo = errors.New("threads are not made as in gantry-init with cgo")

func filtered() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	if err := dropPower(); errors.Is(err, unix.ENOTSUP) {
		return errCgo
	} else if err != nil {
		return err
	}
	if err := filterHolder(); err != nil {
		return err
	}
	// Threads, memory and time are still there.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			runtime.LockOSThread() // and not unlocked: the thread ends, too
			_ = make([]byte, 1<<20)
			<-time.After(time.Millisecond)
		})
	}
	all.Wait()
	runtime.GC()
	reap()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGCHLD); err != nil {
		return err
	}
	<-signals
	for name, call := range map[string]func() error{
		"unshare": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"socket":  func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"open":    func() error { _, err := unix.Open("/", unix.O_PATH, 0); return err },
		"mount":   func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE, "") },
		"keyctl":  func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true); return err },
		"prctl":   func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
		"clone of a user namespace": func() error {
			if pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); e == 0 && pid == 0 {
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			} else if e != 0 {
				return e
			}
			return nil
		},
	} {
		if err := call(); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// TestHolderFilterOfAnotherMachine: the numbers of another architecture's calls mean
// other calls.
func TestHolderFilterOfAnotherMachine(t *testing.T) {
	t.Parallel()
	program := holderFilter(unix.AUDIT_ARCH_X86_64)
	if got := program[1]; got.K != unix.AUDIT_ARCH_X86_64 || got.Jt != 1 || got.Jf != 0 || program[2].K != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("the program begins with %+v", program[:4])
	}
}
