package cgroup

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultDevices are the nodes every container may use.
func DefaultDevices() []Device {
	out := []Device{{'c', -1, -1, "m"}, {'b', -1, -1, "m"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}} {
		out = append(out, Device{'c', d[0], d[1], "rwm"})
	}
	return out
}

// AllowDevices denies all device nodes but those of rules.
func (g *Group) AllowDevices(rules []Device) error {
	if g.tree.V2 {
		return attachDeviceProgram(g.dir(), deviceProgram(rules))
	}
	dir := g.v1Path("devices")
	if err := os.WriteFile(filepath.Join(dir, "devices.deny"), []byte("a"), 0); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "devices.allow"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, r := range rules {
		if _, err := f.WriteString(fmt.Sprintf("%c %s:%s %s", r.Type, number(r.Major), number(r.Minor), r.Access)); err != nil {
			return fmt.Errorf("allow device %c %d:%d: %w", r.Type, r.Major, r.Minor, err)
		}
	}
	return nil
}

func number(n int64) string {
	if n < 0 {
		return "*"
	}
	return fmt.Sprint(n)
}

// eBPF, as much of it as device rules need (linux/bpf.h).
const (
	opLoadW   = 0x61 // dst = *(u32 *)(src + off)
	opMovImm  = 0xb7
	opMovReg  = 0xbf
	opAndImm  = 0x57
	opShrImm  = 0x77
	opJneImm  = 0x55
	opJneReg  = 0x5d
	opExit    = 0x95
	accessOff = 0
	majorOff  = 4
	minorOff  = 8
	mknodBit  = 1
	readBit   = 2
	writeBit  = 4
	typeBlock = 1
	typeChar  = 2
)

type program struct{ b []byte }

func (p *program) op(code, dst, src byte, off int16, imm int32) {
	p.b = append(p.b, code, dst|src<<4)
	p.b = binary.LittleEndian.AppendUint16(p.b, uint16(off))
	p.b = binary.LittleEndian.AppendUint32(p.b, uint32(imm))
}

// deviceProgram returns 1 for an access some rule allows entirely, else 0.
// Registers: r2 type, r3 access, r4 major, r5 minor.
func deviceProgram(rules []Device) []byte {
	p := &program{}
	p.op(opLoadW, 2, 1, accessOff, 0)
	p.op(opMovReg, 3, 2, 0, 0)
	p.op(opAndImm, 2, 0, 0, 0xffff)
	p.op(opShrImm, 3, 0, 0, 16)
	p.op(opLoadW, 4, 1, majorOff, 0)
	p.op(opLoadW, 5, 1, minorOff, 0)
	for _, r := range rules {
		rule := &program{}
		// Each test jumps over what is left of its rule; offsets are set once known.
		if r.Type != 'a' {
			t := int32(typeChar)
			if r.Type == 'b' {
				t = typeBlock
			}
			rule.op(opJneImm, 2, 0, 0, t)
		}
		var bits int32
		for ch, bit := range map[string]int32{"m": mknodBit, "r": readBit, "w": writeBit} {
			if strings.Contains(r.Access, ch) {
				bits |= bit
			}
		}
		if bits != mknodBit|readBit|writeBit {
			rule.op(opMovReg, 1, 3, 0, 0)
			rule.op(opAndImm, 1, 0, 0, bits)
			rule.op(opJneReg, 1, 3, 0, 0)
		}
		if r.Major >= 0 {
			rule.op(opJneImm, 4, 0, 0, int32(r.Major))
		}
		if r.Minor >= 0 {
			rule.op(opJneImm, 5, 0, 0, int32(r.Minor))
		}
		rule.op(opMovImm, 0, 0, 0, 1)
		rule.op(opExit, 0, 0, 0, 0)
		for i := 0; i < len(rule.b); i += 8 {
			if rule.b[i] == opJneImm || rule.b[i] == opJneReg {
				binary.LittleEndian.PutUint16(rule.b[i+2:], uint16(len(rule.b)/8-i/8-1))
			}
		}
		p.b = append(p.b, rule.b...)
	}
	p.op(opMovImm, 0, 0, 0, 0)
	p.op(opExit, 0, 0, 0, 0)
	return p.b
}

// attachDeviceProgram loads a program and attaches it to a v2 group; it stays attached
// as long as the group exists.
func attachDeviceProgram(dir string, insns []byte) error {
	license := []byte("Apache-2.0\x00")
	load := struct {
		progType, insnCnt             uint32
		insns, license                uint64
		logLevel, logSize             uint32
		logBuf                        uint64
		kernVersion, progFlags        uint32
		progName                      [16]byte
		progIfindex, expectedAttached uint32
	}{progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, insnCnt: uint32(len(insns) / 8),
		insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	prog, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	runtime.KeepAlive(insns) // load holds their addresses as plain numbers
	runtime.KeepAlive(license)
	if e != 0 {
		return fmt.Errorf("load device program: %w", e)
	}
	defer unix.Close(int(prog))
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attach := struct{ target, prog, kind, flags uint32 }{uint32(fd), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); e != 0 {
		return fmt.Errorf("attach device program: %w", e)
	}
	return nil
}
