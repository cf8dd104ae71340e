// Package seccomp turns seccomp profiles, as the OCI runtime specification writes
// them, into classic BPF programs.
//
// It is an assembler of its own because libseccomp needs cgo. System call tables come
// from elastic/go-seccomp-bpf. Calls are found by a binary tree over their numbers, so
// the 350 names of the default profile cost about nine comparisons a call.
// A field it does not understand is an error: a profile fails closed.
package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// insn is one classic BPF instruction.
type insn struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opJA   = unix.BPF_JMP | unix.BPF_JA
	opJEQ  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJGT  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opJGE  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opRet  = unix.BPF_RET | unix.BPF_K

	offNr   = 0
	offArch = 4
	offArgs = 16

	x32Bit = 0x40000000
	// maxInsns is the kernel's limit (BPF_MAXINSNS).
	maxInsns = 4096
)

// rule is one way to an action: all conditions hold.
type rule struct {
	action uint32
	args   []specs.LinuxSeccompArg
}

var arches = map[specs.Arch]*arch.Info{
	specs.ArchX86_64:  arch.X86_64,
	specs.ArchX86:     arch.I386,
	specs.ArchAARCH64: arch.AARCH64,
	specs.ArchARM:     arch.ARM,
}

// NativeArches are the architectures this kernel runs that a default profile covers.
func NativeArches() []specs.Arch {
	if runtime.GOARCH == "arm64" {
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
}

// Assemble returns the program as the kernel takes it: 8 bytes an instruction, in this
// machine's byte order, and the SECCOMP_FILTER_FLAG_* bits to load it with.
func Assemble(p *specs.LinuxSeccomp) ([]byte, uint32, error) {
	flags, err := filterFlags(p)
	if err != nil {
		return nil, 0, err
	}
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, 0, err
	}
	list := p.Architectures
	if len(list) == 0 {
		list = NativeArches()[:1]
	}
	prog := []insn{{opLoad, 0, 0, offArch}}
	known := 0
	for _, a := range list {
		if a == specs.ArchX32 || a == "SCMP_ARCH_NATIVE" && slices.Contains(list, NativeArches()[0]) {
			continue // x32 calls are refused below, whatever the profile says
		}
		if a == "SCMP_ARCH_NATIVE" {
			a = NativeArches()[0]
		}
		info := arches[a]
		if info == nil {
			continue // an architecture of another machine
		}
		known++
		body, err := assembleArch(p, info, def)
		if err != nil {
			return nil, 0, err
		}
		// arch == this ? fall into the jump over the next : skip the body
		prog = append(prog, insn{opJEQ, 1, 0, uint32(info.ID)}, insn{opJA, 0, 0, uint32(len(body))})
		prog = append(prog, body...)
	}
	if known == 0 {
		return nil, 0, errors.New("seccomp profile names no architecture this node knows")
	}
	prog = append(prog, insn{opRet, 0, 0, unix.SECCOMP_RET_KILL_PROCESS})
	if len(prog) > maxInsns {
		return nil, 0, fmt.Errorf("seccomp profile needs %d instructions, the kernel takes %d", len(prog), maxInsns)
	}
	out := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		out = binary.NativeEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return out, flags, nil
}

func filterFlags(p *specs.LinuxSeccomp) (uint32, error) {
	var f uint32
	for _, fl := range p.Flags {
		switch fl {
		case specs.LinuxSeccompFlagLog:
			f |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			f |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
		default:
			return 0, fmt.Errorf("seccomp flag %q is not supported", fl)
		}
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return 0, errors.New("seccomp profiles with a notify listener are not supported")
	}
	return f, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	n := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 4095 {
			return 0, fmt.Errorf("seccomp errno %d is out of range", *errno)
		}
		n = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | n, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | n, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp action %q is not supported", a)
}

// assembleArch is the part of the program for one architecture.
func assembleArch(p *specs.LinuxSeccomp, info *arch.Info, def uint32) ([]insn, error) {
	byNr := map[uint32][]rule{}
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			nr, ok := number(info, name)
			if !ok {
				continue // a call another architecture or a newer kernel has
			}
			byNr[nr] = append(byNr[nr], split(act, s.Args)...)
		}
	}
	nrs := make([]uint32, 0, len(byNr))
	for nr := range byNr {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	var spans []span
	add := func(start uint32, code []insn) {
		if n := len(spans); n > 0 && slices.Equal(spans[n-1].code, code) {
			return // the span before goes on
		}
		spans = append(spans, span{start, code})
	}
	defCode := []insn{{opRet, 0, 0, def}}
	next := uint32(0)
	for _, nr := range nrs {
		if nr > next || len(spans) == 0 && nr != 0 {
			add(next, defCode)
		}
		code, err := ruleCode(byNr[nr], def)
		if err != nil {
			return nil, err
		}
		add(nr, code)
		next = nr + 1
	}
	add(next, defCode)
	out := []insn{{opLoad, 0, 0, offNr}}
	if info == arch.X86_64 {
		out = append(out, insn{opJGE, 0, 1, x32Bit}, insn{opRet, 0, 0, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	return append(out, tree(spans)...), nil
}

func number(info *arch.Info, name string) (uint32, bool) {
	if nr, ok := info.SyscallNames[name]; ok {
		return uint32(nr), true
	}
	// Calls from 424 on have one number everywhere; the table may be older than they.
	nr, ok := newCalls[name]
	return nr, ok
}

// split makes alternatives of conditions on one argument given twice (runc's reading
// of the specification), and one rule of all others.
func split(act uint32, args []specs.LinuxSeccompArg) []rule {
	seen := map[uint]int{}
	for _, a := range args {
		seen[a.Index]++
		if seen[a.Index] > 1 {
			var out []rule
			for _, a := range args {
				out = append(out, rule{act, []specs.LinuxSeccompArg{a}})
			}
			return out
		}
	}
	return []rule{{act, args}}
}

// span is code for call numbers from start up to the next span's.
type span struct {
	start uint32
	code  []insn
}

// tree finds the span of the number in the accumulator.
func tree(spans []span) []insn {
	if len(spans) == 1 {
		return spans[0].code
	}
	mid := len(spans) / 2
	left, right := tree(spans[:mid]), tree(spans[mid:])
	var out []insn
	if len(left) <= 255 {
		out = []insn{{opJGE, uint8(len(left)), 0, spans[mid].start}}
	} else {
		out = []insn{{opJGE, 0, 1, spans[mid].start}, {opJA, 0, 0, uint32(len(left))}}
	}
	return append(append(out, left...), right...)
}

func ruleCode(rules []rule, def uint32) ([]insn, error) {
	var out []insn
	for _, r := range rules {
		if len(r.args) == 0 {
			return append(out, insn{opRet, 0, 0, r.action}), nil
		}
		code, err := oneRule(r)
		if err != nil {
			return nil, err
		}
		out = append(out, code...)
	}
	return append(out, insn{opRet, 0, 0, def}), nil
}

// Jump targets inside one rule, replaced when its length is known.
const (
	toNextRule = 255
	toNextArg  = 254
)

func oneRule(r rule) ([]insn, error) {
	var out []insn
	for _, a := range r.args {
		code, err := compare(a)
		if err != nil {
			return nil, err
		}
		patch(code, toNextArg, len(code))
		out = append(out, code...)
	}
	out = append(out, insn{opRet, 0, 0, r.action})
	if len(out) > 250 {
		return nil, errors.New("seccomp rule has too many conditions")
	}
	patch(out, toNextRule, len(out))
	return out, nil
}

func patch(code []insn, mark uint8, end int) {
	for i := range code {
		if code[i].code&0x07 != unix.BPF_JMP {
			continue
		}
		if code[i].jt == mark {
			code[i].jt = uint8(end - i - 1)
		}
		if code[i].jf == mark {
			code[i].jf = uint8(end - i - 1)
		}
	}
}

// compare tests one 64-bit argument, high word first.
func compare(a specs.LinuxSeccompArg) ([]insn, error) {
	if a.Index > 5 {
		return nil, fmt.Errorf("seccomp argument %d does not exist", a.Index)
	}
	lowOff := uint32(offArgs + 8*a.Index)
	low, high := insn{opLoad, 0, 0, lowOff}, insn{opLoad, 0, 0, lowOff + 4}
	lo, hi := uint32(a.Value), uint32(a.Value>>32)
	const no, yes = toNextRule, toNextArg
	switch a.Op {
	case specs.OpEqualTo:
		return []insn{high, {opJEQ, 0, no, hi}, low, {opJEQ, yes, no, lo}}, nil
	case specs.OpNotEqual:
		return []insn{high, {opJEQ, 0, yes, hi}, low, {opJEQ, no, yes, lo}}, nil
	case specs.OpGreaterThan:
		return []insn{high, {opJGT, yes, 0, hi}, {opJEQ, 0, no, hi}, low, {opJGT, yes, no, lo}}, nil
	case specs.OpGreaterEqual:
		return []insn{high, {opJGT, yes, 0, hi}, {opJEQ, 0, no, hi}, low, {opJGE, yes, no, lo}}, nil
	case specs.OpLessThan:
		return []insn{high, {opJGT, no, 0, hi}, {opJEQ, 0, yes, hi}, low, {opJGE, no, yes, lo}}, nil
	case specs.OpLessEqual:
		return []insn{high, {opJGT, no, 0, hi}, {opJEQ, 0, yes, hi}, low, {opJGT, no, yes, lo}}, nil
	case specs.OpMaskedEqual: // value is the mask, valueTwo what must be left
		lo2, hi2 := uint32(a.ValueTwo), uint32(a.ValueTwo>>32)
		return []insn{high, {opAnd, 0, 0, hi}, {opJEQ, 0, no, hi2}, low, {opAnd, 0, 0, lo}, {opJEQ, yes, no, lo2}}, nil
	}
	return nil, fmt.Errorf("seccomp operator %q is not supported", a.Op)
}
