package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is one system call as a filter sees it.
type call struct {
	nr   uint32
	arch uint32
	args [6]uint64
}

// run executes a program in x/net/bpf's machine. That machine loads big-endian words,
// so the data is laid out for it word by word.
func run(t testing.TB, prog []byte, c call) uint32 {
	t.Helper()
	var raw []bpf.RawInstruction
	for i := 0; i < len(prog); i += 8 {
		raw = append(raw, bpf.RawInstruction{Op: binary.NativeEndian.Uint16(prog[i:]), Jt: prog[i+2], Jf: prog[i+3], K: binary.NativeEndian.Uint32(prog[i+4:])})
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program does not disassemble")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], c.nr)
	binary.BigEndian.PutUint32(data[4:], c.arch)
	for i, a := range c.args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// holds is the specification of one condition.
func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	}
	return v&a.Value == a.ValueTwo
}

// TestAgainstTheSpecification compares random profiles with their plain reading.
func TestAgainstTheSpecification(t *testing.T) {
	names := make([]string, 0, 400)
	for n := range arch.X86_64.SyscallNames {
		names = append(names, n)
	}
	slices.Sort(names)
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	rnd := rand.New(rand.NewPCG(1, 2))
	word := func() uint64 { return []uint64{0, 1, 5, 1 << 31, 1 << 32, 1<<32 + 5, 1 << 63, ^uint64(0)}[rnd.IntN(8)] }
	for round := range 150 {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}}
		type seen struct {
			args []specs.LinuxSeccompArg
			ret  uint32
		}
		want := map[string][]seen{}
		for i := range 1 + rnd.IntN(60) {
			n := names[rnd.IntN(len(names))]
			errno := uint(i + 2)
			var args []specs.LinuxSeccompArg
			for _, idx := range rnd.Perm(6)[:rnd.IntN(3)] {
				args = append(args, specs.LinuxSeccompArg{Index: uint(idx), Value: word(), ValueTwo: word(), Op: ops[rnd.IntN(len(ops))]})
			}
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{n}, Action: specs.ActErrno, ErrnoRet: &errno, Args: args})
			want[n] = append(want[n], seen{args, unix.SECCOMP_RET_ERRNO | uint32(errno)})
		}
		prog, _, err := Assemble(p)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			n := p.Syscalls[rnd.IntN(len(p.Syscalls))].Names[0]
			if rnd.IntN(4) == 0 {
				n = names[rnd.IntN(len(names))]
			}
			c := call{nr: uint32(arch.X86_64.SyscallNames[n]), arch: uint32(arch.X86_64.ID)}
			for i := range c.args {
				c.args[i] = word()
			}
			expect := uint32(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
			for _, s := range want[n] {
				if !slices.ContainsFunc(s.args, func(a specs.LinuxSeccompArg) bool { return !holds(a, c.args[a.Index]) }) {
					expect = s.ret
					break
				}
			}
			if got := run(t, prog, c); got != expect {
				t.Fatalf("round %d: %s%v: %#x, want %#x\nrules %+v", round, n, c.args, got, expect, want[n])
			}
		}
	}
}

func TestDefaultProfile(t *testing.T) {
	nr := func(n string) uint32 {
		v, ok := number(arch.X86_64, n)
		if !ok {
			t.Fatalf("no number for %s", n)
		}
		return v
	}
	const eperm, enosys, allow = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), unix.SECCOMP_RET_ALLOW
	x86 := uint32(arch.X86_64.ID)
	for _, tc := range []struct {
		name string
		caps uint64
		call call
		want uint32
	}{
		{"read", 0, call{nr: nr("read"), arch: x86}, allow},
		{"mount", 0, call{nr: nr("mount"), arch: x86}, eperm},
		{"mount with SYS_ADMIN", 1 << unix.CAP_SYS_ADMIN, call{nr: nr("mount"), arch: x86}, allow},
		{"keyctl", ^uint64(0), call{nr: nr("keyctl"), arch: x86}, eperm},
		{"io_uring_setup", 0, call{nr: nr("io_uring_setup"), arch: x86}, eperm},
		{"clone of a thread", 0, call{nr: nr("clone"), arch: x86, args: [6]uint64{0x3d0f00}}, allow},
		{"clone of a user namespace", 0, call{nr: nr("clone"), arch: x86, args: [6]uint64{unix.CLONE_NEWUSER}}, eperm},
		{"clone3", 0, call{nr: nr("clone3"), arch: x86}, enosys},
		{"clone3 with SYS_ADMIN", 1 << unix.CAP_SYS_ADMIN, call{nr: nr("clone3"), arch: x86}, allow},
		{"x32", 0, call{nr: x32Bit | 1, arch: x86}, enosys},
		{"unknown number", 0, call{nr: 9999, arch: x86}, eperm},
		{"32-bit read", 0, call{nr: uint32(arch.I386.SyscallNames["read"]), arch: uint32(arch.I386.ID)}, allow},
		{"32-bit mount", 0, call{nr: uint32(arch.I386.SyscallNames["mount"]), arch: uint32(arch.I386.ID)}, eperm},
		{"foreign architecture", 0, call{nr: 0, arch: uint32(arch.ARM.ID)}, unix.SECCOMP_RET_KILL_PROCESS},
		{"socket AF_UNIX", 0, call{nr: nr("socket"), arch: x86, args: [6]uint64{1}}, allow},
		{"socket AF_ALG", 0, call{nr: nr("socket"), arch: x86, args: [6]uint64{38}}, eperm},
		{"socket AF_VSOCK", 0, call{nr: nr("socket"), arch: x86, args: [6]uint64{40}}, eperm},
	} {
		p := Default(tc.caps)
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86}
		prog, _, err := Assemble(p)
		if err != nil {
			t.Fatal(err)
		}
		if got := run(t, prog, tc.call); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
}

func TestEveryDefaultNameIsKnownSomewhere(t *testing.T) {
	for _, n := range strings.Fields(allowed) {
		known := false
		for _, a := range []*arch.Info{arch.X86_64, arch.I386, arch.AARCH64, arch.ARM} {
			_, ok := number(a, n)
			known = known || ok
		}
		// What no table knows stays refused; these few are of little use.
		if !known && !slices.Contains([]string{"uretprobe", "cacheflush", "breakpoint", "set_tls", "sync_file_range2"}, n) {
			t.Errorf("%s is in no table", n)
		}
	}
	if _, ok := number(arch.X86_64, "futex_waitv"); !ok {
		t.Error("calls newer than the tables are unknown")
	}
}

func TestBadProfilesAreRefused(t *testing.T) {
	for _, s := range []string{``, `{}`, `[]`, `{"defaultAction":"SCMP_ACT_WHAT"}`, `{"defaultAction":"SCMP_ACT_ALLOW","x":1}`,
		`{"defaultAction":"SCMP_ACT_NOTIFY"}`, `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`, `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_XX"}]}]}`} {
		p, err := Parse([]byte(s))
		if err == nil {
			_, _, err = Assemble(p)
		}
		if err == nil {
			t.Errorf("accepted: %s", s)
		}
	}
}

func FuzzAssemble(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		prog, _, err := Assemble(p)
		if err != nil {
			return
		}
		run(t, prog, call{nr: 1, arch: uint32(arch.X86_64.ID)})
	})
}
