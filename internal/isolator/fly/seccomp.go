package fly

import (
	"encoding/binary"
	"fmt"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// filter is the app's seccomp profile for the kernel; nil is none.
func (f *Fly) filter(in isolator.App) (*initproc.Seccomp, error) {
	caps, err := recipe.CapabilitiesOf(in.App.Security)
	if err != nil {
		return nil, err
	}
	profile, err := f.seccomp.For(in, f.cfg.Arch, caps.Bounding)
	if err != nil || profile == nil {
		return nil, err
	}
	flags, err := filterFlags(profile.Flags)
	if err != nil {
		return nil, err
	}
	program, err := compile(profile, f.cfg.Arch)
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	return &initproc.Seccomp{Filter: encode(raw), Flags: flags}, nil
}

func filterFlags(names []specs.LinuxSeccompFlag) (flags uint, err error) {
	for _, name := range names {
		switch name {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread when the app begins
		default:
			return 0, fmt.Errorf("flag %s: %w by this isolator", name, pod.ErrUnsupported)
		}
	}
	return flags, nil
}

// encode is the kernel's struct sock_filter, on the machines we have system calls of:
// all are little-endian.
func encode(program []bpf.RawInstruction) []byte {
	var out []byte
	for _, i := range program {
		out = binary.LittleEndian.AppendUint16(out, i.Op)
		out = append(out, i.Jt, i.Jf)
		out = binary.LittleEndian.AppendUint32(out, i.K)
	}
	return out
}

// Where the kernel's struct seccomp_data has things, in words of four bytes.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	word      = 4
)

// x32Bit marks the calls of an interface that nothing uses. They are not there, whatever
// a profile says: their numbers would have to be looked at a second time.
const x32Bit = 0x40000000

// maxFilter is the kernel's bound, in instructions.
const maxFilter = 4096

// compile turns a profile into a filter. The rules of a system call are tried in
// their order. A call of a machine that the profile does not name ends the process.
func compile(p *specs.LinuxSeccomp, goarch string) ([]bpf.Instruction, error) {
	machines, err := machinesOf(p.Architectures, goarch)
	if err != nil {
		return nil, err
	}
	byDefault, err := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: word}}
	for _, m := range machines {
		calls, err := callsOf(p, m, byDefault)
		if err != nil {
			return nil, err
		}
		body := machineBody(m, calls, byDefault)
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(m.ID), SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		program = append(program, body...)
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	if len(program) > maxFilter {
		return nil, recipe.Invalid("the filter has %d instructions, and the kernel takes %d", len(program), maxFilter)
	}
	return program, nil
}

// machinesOf are those that a profile names, of those that this one can execute.
func machinesOf(named []specs.Arch, goarch string) ([]*arch.Info, error) {
	known := map[string][]struct {
		name specs.Arch
		info *arch.Info
	}{
		"amd64": {{specs.ArchX86_64, arch.X86_64}, {specs.ArchX86, arch.I386}},
		"arm64": {{specs.ArchAARCH64, arch.AARCH64}, {specs.ArchARM, arch.ARM}},
	}
	own, ok := known[goarch]
	if !ok {
		return nil, fmt.Errorf("seccomp on %s: %w by this isolator", goarch, pod.ErrUnsupported)
	}
	out := []*arch.Info{own[0].info} // what is not said is the machine's own
	for _, m := range own[1:] {
		for _, n := range named {
			if n == m.name {
				out = append(out, m.info)
			}
		}
	}
	return out, nil
}

// call is a system call and what becomes of it.
type call struct {
	number uint32
	rules  []rule
}

// rule holds if all conditions do.
type rule struct {
	conditions []specs.LinuxSeccompArg
	verdict    uint32
}

func callsOf(p *specs.LinuxSeccomp, m *arch.Info, byDefault uint32) ([]call, error) {
	var calls []call
	at := map[int]int{} // by number
	for _, s := range p.Syscalls {
		v, err := verdict(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if v == byDefault {
			continue
		}
		rules, err := rulesOf(s, v)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			number, ok := numberOf(m, name)
			if !ok {
				continue // another machine's, or too new: all engines leave it out
			}
			i, ok := at[number]
			if !ok {
				i = len(calls)
				at[number], calls = i, append(calls, call{number: uint32(number)})
			}
			calls[i].rules = append(calls[i].rules, rules...)
		}
	}
	return calls, nil
}

// numberOf knows one name that the table has in another spelling: with it, programs of 64-bit
// ARM look at files.
func numberOf(m *arch.Info, name string) (int, bool) {
	if m == arch.AARCH64 && name == "newfstatat" {
		name = "fstatat"
	}
	number, ok := m.SyscallNames[name]
	return number, ok
}

// rulesOf makes one rule of conditions on several arguments. Where two are on the same
// one, any of them will do: what other engines make of that is what profiles count on.
func rulesOf(s specs.LinuxSyscall, verdict uint32) ([]rule, error) {
	seen, twice := map[uint]bool{}, false
	for _, a := range s.Args {
		const arguments = 6
		if a.Index >= arguments {
			return nil, recipe.Invalid("condition on argument %d of %v", a.Index, s.Names)
		}
		if !knownOperator(a.Op) {
			return nil, recipe.Invalid("condition with operator %q of %v", a.Op, s.Names)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []rule{{s.Args, verdict}}, nil
	}
	var out []rule
	for _, a := range s.Args {
		out = append(out, rule{[]specs.LinuxSeccompArg{a}, verdict})
	}
	return out, nil
}

func verdict(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > unix.SECCOMP_RET_DATA {
			return 0, recipe.Invalid("error number %d", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	default:
		return 0, recipe.Invalid("action %q", a)
	}
}

func machineBody(m *arch.Info, calls []call, byDefault uint32) []bpf.Instruction {
	number := bpf.LoadAbsolute{Off: offNumber, Size: word}
	out := []bpf.Instruction{number}
	if m.ID == arch.X86_64.ID {
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	for _, c := range calls {
		body := callBody(c, m == arch.I386 || m == arch.ARM)
		if !unconditional(c) {
			body = append(body, number) // the conditions have loaded arguments
		}
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.number, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		out = append(out, body...)
	}
	return append(out, bpf.RetConstant{Val: byDefault})
}

// unconditional tells whether a rule of a call always holds.
func unconditional(c call) bool {
	for _, r := range c.rules {
		if len(r.conditions) == 0 {
			return true
		}
	}
	return false
}

// callBody tries the rules; none behind one that always holds.
func callBody(c call, narrow bool) (out []bpf.Instruction) {
	for _, r := range c.rules {
		b := block{narrow: narrow}
		for _, a := range r.conditions {
			b.condition(a)
		}
		out = append(append(out, b.resolve()...), bpf.RetConstant{Val: r.verdict})
		if len(r.conditions) == 0 {
			break
		}
	}
	return out
}

// block is the conditions of a rule: who gets to its end is met by the rule's return,
// and who fails jumps over that.
type block struct {
	// narrow is for machines of 32 bits: the upper half of an argument is nobody's there,
	// but a program of 64 bits may set it when it makes a call of that machine.
	narrow bool
	steps  []step
	begun  int // where the condition began that is being written
}

type jumpTo int

const (
	next jumpTo = iota
	hold        // the condition holds: on to what follows it
	fail
)

type step struct {
	do      bpf.Instruction // nil for a jump
	test    bpf.JumpTest
	value   uint32
	yes, no jumpTo
	end     int // of its condition
}

func (b *block) do(i bpf.Instruction) { b.steps = append(b.steps, step{do: i}) }

func (b *block) jump(test bpf.JumpTest, value uint32, yes, no jumpTo) {
	b.steps = append(b.steps, step{test: test, value: value, yes: yes, no: no})
}

func (b *block) load(arg uint, high bool) {
	off := uint32(offArgs + 2*word*arg)
	if high {
		off += word
	}
	b.do(bpf.LoadAbsolute{Off: off, Size: word})
}

func knownOperator(o specs.LinuxSeccompOperator) bool {
	switch o {
	case specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		return true
	}
	return false
}

// condition compares 64 bits, the high half first.
func (b *block) condition(a specs.LinuxSeccompArg) {
	if !b.narrow {
		b.upper(a)
	}
	b.lower(a)
	for i := b.begun; i < len(b.steps); i++ {
		b.steps[i].end = len(b.steps)
	}
	b.begun = len(b.steps)
}

func (b *block) upper(a specs.LinuxSeccompArg) {
	high := uint32(a.Value >> 32)
	b.load(a.Index, true)
	switch a.Op {
	case specs.OpMaskedEqual:
		b.do(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: high})
		b.jump(bpf.JumpEqual, uint32(a.ValueTwo>>32), next, fail)
	case specs.OpEqualTo:
		b.jump(bpf.JumpEqual, high, next, fail)
	case specs.OpNotEqual:
		b.jump(bpf.JumpEqual, high, next, hold)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		b.jump(bpf.JumpGreaterThan, high, hold, next)
		b.jump(bpf.JumpEqual, high, next, fail)
	case specs.OpLessThan, specs.OpLessEqual:
		b.jump(bpf.JumpGreaterThan, high, fail, next)
		b.jump(bpf.JumpEqual, high, next, hold)
	}
}

func (b *block) lower(a specs.LinuxSeccompArg) {
	low := uint32(a.Value)
	b.load(a.Index, false)
	switch a.Op {
	case specs.OpMaskedEqual:
		b.do(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: low})
		b.jump(bpf.JumpEqual, uint32(a.ValueTwo), next, fail)
	case specs.OpEqualTo:
		b.jump(bpf.JumpEqual, low, next, fail)
	case specs.OpNotEqual:
		b.jump(bpf.JumpEqual, low, fail, next)
	case specs.OpGreaterThan:
		b.jump(bpf.JumpGreaterThan, low, next, fail)
	case specs.OpGreaterEqual:
		b.jump(bpf.JumpGreaterOrEqual, low, next, fail)
	case specs.OpLessThan:
		b.jump(bpf.JumpGreaterOrEqual, low, fail, next)
	case specs.OpLessEqual:
		b.jump(bpf.JumpGreaterThan, low, fail, next)
	}
}

// resolve turns targets into distances. Six conditions are far from the 255 that a jump
// reaches.
func (b *block) resolve() []bpf.Instruction {
	var out []bpf.Instruction
	for i, s := range b.steps {
		if s.do != nil {
			out = append(out, s.do)
			continue
		}
		distance := func(t jumpTo) uint8 {
			switch t {
			case hold:
				return uint8(s.end - i - 1)
			case fail:
				return uint8(len(b.steps) - i) // over the return, too
			default:
				return 0
			}
		}
		out = append(out, bpf.JumpIf{Cond: s.test, Val: s.value, SkipTrue: distance(s.yes), SkipFalse: distance(s.no)})
	}
	return out
}
