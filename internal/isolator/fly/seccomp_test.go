package fly

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// decide runs a filter as the kernel does. The machine of package bpf is one for packets,
// and loads words with the high byte first.
func decide(t *testing.T, program []bpf.Instruction, machine, number uint32, args [6]uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNumber:], number)
	binary.BigEndian.PutUint32(data[offArch:], machine)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offArgs+8*i+word:], uint32(a>>32))
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

const (
	allow = unix.SECCOMP_RET_ALLOW
	eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

func TestDefaultProfile(t *testing.T) {
	t.Parallel()
	p, err := recipe.DefaultSeccomp(nil)
	if err != nil {
		t.Fatal(err)
	}
	x86, x32 := uint32(arch.X86_64.ID), uint32(x32Bit)
	program, err := compile(p.Resolve("amd64", nil), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	nr := func(name string) uint32 { return uint32(arch.X86_64.SyscallNames[name]) }
	for _, c := range []struct {
		what    string
		machine uint32
		number  uint32
		arg     uint64
		want    uint32
	}{
		{"read", x86, nr("read"), 0, allow},
		{"mount", x86, nr("mount"), 0, eperm},
		{"clone of a process", x86, nr("clone"), uint64(unix.SIGCHLD), allow},
		{"clone with a user namespace", x86, nr("clone"), unix.CLONE_NEWUSER, eperm},
		{"clone3", x86, nr("clone3"), 0, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{"personality of Linux", x86, nr("personality"), 0, allow},
		{"another personality", x86, nr("personality"), 0x42, eperm},
		{"read of x32", x86, x32 + nr("read"), 0, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{"read of i386", uint32(arch.I386.ID), uint32(arch.I386.SyscallNames["read"]), 0, allow},
		{"mount of i386", uint32(arch.I386.ID), uint32(arch.I386.SyscallNames["mount"]), 0, eperm},
		{"a call of another machine", uint32(arch.AARCH64.ID), 63, 0, unix.SECCOMP_RET_KILL_PROCESS},
	} {
		if got := decide(t, program, c.machine, c.number, [6]uint64{c.arg}); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
	program, err = compile(p.Resolve("amd64", []string{"CAP_SYS_ADMIN"}), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got := decide(t, program, x86, nr("mount"), [6]uint64{}); got != allow {
		t.Errorf("mount with the capability for it: %#x", got)
	}
}

// holds is what a condition says, written another way.
func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	default:
		return v&a.Value == a.ValueTwo
	}
}

// TestRandomProfiles compares filters with what profiles say.
func TestRandomProfiles(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	names := []string{"read", "write", "openat", "clone", "socket"}
	operators := []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual,
	}
	// Few values, in both halves, so that they meet.
	value := func() uint64 { return uint64(r.IntN(4))<<32 | uint64(r.IntN(4)) }
	for range 300 {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for range 1 + r.IntN(8) {
			errno := uint(2 + r.IntN(60))
			s := specs.LinuxSyscall{Names: []string{names[r.IntN(len(names))], "no_such_call"}, Action: specs.ActErrno, ErrnoRet: &errno}
			for _, i := range r.Perm(6)[:r.IntN(4)] {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(i), Op: operators[r.IntN(len(operators))], Value: value(), ValueTwo: value()})
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		program, err := compile(p, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			name := names[r.IntN(len(names))]
			args := [6]uint64{value(), value(), value(), value(), value(), value()}
			want := eperm
			for _, s := range p.Syscalls {
				if slices.Contains(s.Names, name) && !slices.ContainsFunc(s.Args, func(a specs.LinuxSeccompArg) bool { return !holds(a, args[a.Index]) }) {
					want = unix.SECCOMP_RET_ERRNO | uint32(*s.ErrnoRet)
					break
				}
			}
			got := decide(t, program, uint32(arch.X86_64.ID), uint32(arch.X86_64.SyscallNames[name]), args)
			if got != want {
				t.Fatalf("seed %d: %s%v: %#x, want %#x of %+v", seed, name, args, got, want, p.Syscalls)
			}
		}
	}
}

// TestNarrowMachine: the upper half of an argument is not looked at where there is none.
func TestNarrowMachine(t *testing.T) {
	t.Parallel()
	for _, op := range []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual} {
		p := &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: op, Value: 40}}}},
		}
		program, err := compile(p, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		low := uint64(40)
		if op == specs.OpGreaterEqual {
			low = 39
		}
		if got := decide(t, program, uint32(arch.I386.ID), uint32(arch.I386.SyscallNames["socket"]), [6]uint64{1<<32 | low}); got != eperm {
			t.Errorf("%s on i386, with an upper half: %#x", op, got)
		}
		if got := decide(t, program, uint32(arch.X86_64.ID), uint32(arch.X86_64.SyscallNames["socket"]), [6]uint64{1<<32 | low}); got != allow {
			t.Errorf("%s on amd64, with an upper half: %#x", op, got)
		}
	}
}

// TestCallsAreKnown: what the default profile allows and this machine's kernel has must
// be in the table, or programs fail for no reason that anybody sees.
func TestCallsAreKnown(t *testing.T) {
	t.Parallel()
	for _, m := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		for name, x86 := range map[string]int{
			"read": unix.SYS_READ, "openat": unix.SYS_OPENAT, "newfstatat": unix.SYS_NEWFSTATAT, "statx": unix.SYS_STATX, "futex": unix.SYS_FUTEX,
			"clone3": unix.SYS_CLONE3, "rseq": unix.SYS_RSEQ, "execve": unix.SYS_EXECVE, "faccessat2": unix.SYS_FACCESSAT2, "mseal": unix.SYS_MSEAL,
		} {
			number, ok := numberOf(m, name)
			if !ok || m == arch.X86_64 && runtime.GOARCH == "amd64" && number != x86 {
				t.Errorf("%s of %s is %d, %v", name, m.Name, number, ok)
			}
		}
	}
	p, err := recipe.DefaultSeccomp(nil)
	if err != nil {
		t.Fatal(err)
	}
	program, err := compile(p.Resolve("arm64", nil), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	const newfstatat = 79
	if got := decide(t, program, uint32(arch.AARCH64.ID), newfstatat, [6]uint64{}); got != allow {
		t.Errorf("newfstatat on arm64: %#x", got)
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	raw, err := bpf.Assemble([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x01020304, SkipTrue: 5, SkipFalse: 6}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := encode(raw), []byte{0x15, 0, 5, 6, 4, 3, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestSeveralConditionsOnOneArgument(t *testing.T) {
	t.Parallel()
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
		Names: []string{"personality"}, Action: specs.ActAllow,
		Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: 1}, {Index: 0, Op: specs.OpEqualTo, Value: 2}},
	}}}
	program, err := compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[uint64]uint32{0: eperm, 1: allow, 2: allow, 3: eperm} {
		if got := decide(t, program, uint32(arch.X86_64.ID), uint32(arch.X86_64.SyscallNames["personality"]), [6]uint64{arg}); got != want {
			t.Errorf("personality(%d): %#x, want %#x", arg, got, want)
		}
	}
}

func TestBadProfiles(t *testing.T) {
	t.Parallel()
	call := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		s.Names = []string{"read"}
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
	}
	big := uint(1 << 20)
	for what, p := range map[string]*specs.LinuxSeccomp{
		"action":   call(specs.LinuxSyscall{Action: "SCMP_ACT_FANCY"}),
		"default":  {DefaultAction: "SCMP_ACT_FANCY"},
		"argument": call(specs.LinuxSyscall{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		"operator": call(specs.LinuxSyscall{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_FANCY"}}}),
		"errno":    call(specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &big}),
	} {
		if _, err := compile(p, "amd64"); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: want pod.ErrInvalid, got %v", what, err)
		}
	}
	if _, err := compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "s390x"); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("a machine without a table: %v", err)
	}
}
