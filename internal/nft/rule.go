package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg0 is the first of the kernel's sixteen 32-bit registers.
const reg0 = unix.NFT_REG32_00

// dynsetDelete is the kernel's NFT_DYNSET_OP_DELETE, which x/sys/unix lacks.
const dynsetDelete = 2

// Rule is one rule: what the kernel gets, and the same in nft's syntax. Two rules with
// equal text are equal.
type Rule struct {
	Text  string
	Exprs []expr.Any
}

// Part is one match or statement of a rule.
type Part struct {
	text  string
	exprs []expr.Any
}

// NewRule joins parts, left to right, into a rule.
func NewRule(parts ...Part) Rule {
	var r Rule
	texts := make([]string, 0, len(parts))
	for _, p := range parts {
		texts = append(texts, p.text)
		r.Exprs = append(r.Exprs, p.exprs...)
	}
	r.Text = strings.Join(texts, " ")
	return r
}

// Field is something of a packet that can be loaded into registers and so be part of a key.
type Field struct {
	text string
	regs uint32
	load func(reg uint32) []expr.Any
}

func (f Family) payload(text string, off4, off6 uint32) Field {
	off, n := off4, uint32(4)
	if f == IPv6 {
		off, n = off6, 16
	}
	return Field{f.String() + " " + text, n / 4, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n}}
	}}
}

// Saddr is the source address.
func (f Family) Saddr() Field { return f.payload("saddr", 12, 8) }

// Daddr is the destination address.
func (f Family) Daddr() Field { return f.payload("daddr", 16, 24) }

// ConstAddr is an address that does not depend on the packet.
func ConstAddr(a netip.Addr) Field {
	b := a.Unmap().AsSlice()
	return Field{a.String(), uint32(len(b) / 4), func(reg uint32) []expr.Any {
		var out []expr.Any
		for i := 0; i < len(b); i += 4 {
			out = append(out, &expr.Immediate{Register: reg + uint32(i/4), Data: b[i : i+4]})
		}
		return out
	}}
}

// L4Proto is the transport protocol.
func L4Proto() Field {
	return Field{"meta l4proto", 1, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}}
	}}
}

// Dport is the destination port of TCP, UDP or SCTP.
func Dport() Field {
	return Field{"th dport", 1, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
	}}
}

// Random is a random number in [offset, offset+mod).
func Random(mod, offset uint32) Field {
	text := fmt.Sprintf("numgen random mod %d", mod)
	if offset > 0 {
		text += fmt.Sprintf(" offset %d", offset)
	}
	return Field{text, 1, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: mod, Type: unix.NFT_NG_RANDOM, Offset: offset}}
	}}
}

// concat loads fields one after the other from register reg on.
func concat(reg uint32, fields []Field) (text string, regs uint32, exprs []expr.Any) {
	texts := make([]string, 0, len(fields))
	for _, f := range fields {
		texts = append(texts, f.text)
		exprs = append(exprs, f.load(reg+regs)...)
		regs += f.regs
	}
	return strings.Join(texts, " . "), regs, exprs
}

// In matches when the fields' concatenation is an element of the set.
func In(set string, fields ...Field) Part { return lookup(set, false, fields) }

// NotIn matches when the fields' concatenation is no element of the set.
func NotIn(set string, fields ...Field) Part { return lookup(set, true, fields) }

func lookup(set string, invert bool, fields []Field) Part {
	text, _, exprs := concat(reg0, fields)
	op := " @"
	if invert {
		op = " != @"
	}
	return Part{text + op + set, append(exprs, &expr.Lookup{SourceRegister: reg0, SetName: set, Invert: invert})}
}

// Vmap looks the fields up in a verdict map and takes its verdict.
func Vmap(set string, fields ...Field) Part {
	text, _, exprs := concat(reg0, fields)
	return Part{text + " vmap @" + set, append(exprs, &expr.Lookup{SourceRegister: reg0, DestRegister: 0, IsDestRegSet: true, SetName: set})}
}

// DNAT sends the connection to the address and port the map holds for the fields.
func (f Family) DNAT(set string, fields ...Field) Part {
	text, regs, exprs := concat(reg0, fields)
	data := reg0 + regs
	exprs = append(exprs, &expr.Lookup{SourceRegister: reg0, DestRegister: data, IsDestRegSet: true, SetName: set})
	return Part{fmt.Sprintf("dnat %s to %s map @%s", f, text, set), append(exprs, f.nat(data))}
}

func (f Family) nat(data uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.kernel()), RegAddrMin: data,
		RegProtoMin: data + uint32(f.AddrType().bytes()/4), Specified: true}
}

// Sticky names the maps of client-address affinity:
//
//	Clients   client . frontend → endpoint number; filled by rules, forgotten after Timeout
//	Numbers   frontend . index → endpoint number
//	Targets   frontend . endpoint number → endpoint
//
// Clients remember a number, not an endpoint, so that an endpoint leaves at once when its
// target does. The price: the kernel looks up by what another lookup yielded, for which nft
// has no words. The nft command (seen with 1.0.6) aborts when it lists such a rule; rules
// without affinity list well.
type Sticky struct {
	Clients, Numbers, Targets string
	Timeout                   time.Duration
}

// stickyKey loads client . frontend; the register after it is for the endpoint number.
func (f Family) stickyKey(vip Field) (text string, frontend, number uint32, exprs []expr.Any) {
	text, regs, exprs := concat(reg0, []Field{f.Saddr(), vip, L4Proto(), Dport()})
	return text, reg0 + f.Saddr().regs, reg0 + regs, exprs
}

// StickyKnown sends a client to the endpoint it had, if that is still there, and renews
// the memory; otherwise the rule does not match.
func (f Family) StickyKnown(s Sticky, vip Field) Part {
	text, frontend, number, exprs := f.stickyKey(vip)
	after := number + 1
	exprs = append(exprs,
		&expr.Lookup{SourceRegister: reg0, DestRegister: number, IsDestRegSet: true, SetName: s.Clients},
		// The registers now read client . frontend . number: the target's key lies ready.
		&expr.Lookup{SourceRegister: frontend, DestRegister: after, IsDestRegSet: true, SetName: s.Targets},
		&expr.Dynset{SrcRegKey: reg0, SrcRegData: number, SetName: s.Clients, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout},
		f.nat(after))
	return Part{fmt.Sprintf("update @%s { %s timeout %s } dnat %s to map @%s", s.Clients, text, s.Timeout, f, s.Targets), exprs}
}

// StickyNew picks an endpoint number by the last field, remembers it for the client and
// sends the connection to its endpoint.
func (f Family) StickyNew(s Sticky, vip, pick Field) Part {
	text, frontend, number, exprs := f.stickyKey(vip)
	after := number + 1
	exprs = append(exprs, pick.load(number)...)
	exprs = append(exprs,
		&expr.Lookup{SourceRegister: frontend, DestRegister: number, IsDestRegSet: true, SetName: s.Numbers},
		// An update keeps the data of an entry that exists: forget a stale one first.
		&expr.Dynset{SrcRegKey: reg0, SrcRegData: number, SetName: s.Clients, Operation: dynsetDelete},
		&expr.Dynset{SrcRegKey: reg0, SrcRegData: number, SetName: s.Clients, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout},
		&expr.Lookup{SourceRegister: frontend, DestRegister: after, IsDestRegSet: true, SetName: s.Targets},
		f.nat(after))
	return Part{fmt.Sprintf("update @%s { %s timeout %s : %s map @%s } dnat %s to map @%s",
		s.Clients, text, s.Timeout, pick.text, s.Numbers, f, s.Targets), exprs}
}

// Src matches a source address inside (or, inverted, outside) the prefix.
func (f Family) Src(p netip.Prefix, invert bool) Part { return prefixMatch(f.Saddr(), p, invert) }

// Dst matches a destination address inside (or, inverted, outside) the prefix.
func (f Family) Dst(p netip.Prefix, invert bool) Part { return prefixMatch(f.Daddr(), p, invert) }

func prefixMatch(field Field, p netip.Prefix, invert bool) Part {
	p = p.Masked()
	b := p.Addr().AsSlice()
	n := uint32(len(b))
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	op, sign := expr.CmpOpEq, " "
	if invert {
		op, sign = expr.CmpOpNeq, " != "
	}
	exprs := append(field.load(1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: 1, Data: b})
	return Part{field.text + sign + p.String(), exprs}
}

// OutIface matches the outgoing interface by name; a trailing * matches any ending.
func OutIface(name string) Part { return iface("oifname", expr.MetaKeyOIFNAME, name) }

// NotOutIface matches any other outgoing interface.
func NotOutIface(name string) Part {
	p := iface("oifname !=", expr.MetaKeyOIFNAME, name)
	p.exprs[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return p
}

func iface(word string, key expr.MetaKey, name string) Part {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		data = []byte(prefix)
	}
	return Part{fmt.Sprintf("%s %q", word, name),
		[]expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}}
}

// SrcLocal matches packets whose source is one of the host's own addresses.
func SrcLocal() Part {
	return Part{"fib saddr type local", fibType(&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true})}
}

// DstLocal matches packets addressed to one of the host's own addresses.
func DstLocal() Part {
	return Part{"fib daddr type local", fibType(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true})}
}

func fibType(e *expr.Fib) []expr.Any {
	return []expr.Any{e, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native32(unix.RTN_LOCAL)}}
}

// StateNew matches the packets that open a connection.
func StateNew() Part {
	return Part{"ct state new", ctBits(expr.CtKeySTATE, expr.CtStateBitNEW)}
}

// StateInvalid matches packets conntrack could not place; NAT leaves them untouched.
func StateInvalid() Part {
	return Part{"ct state invalid", ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID)}
}

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)},
	}
}

// ICMPType matches an ICMP (or, in IPv6, ICMPv6) type.
func (f Family) ICMPType(n uint8, name string) Part {
	proto, word := byte(unix.IPPROTO_ICMP), "icmp"
	if f == IPv6 {
		proto, word = unix.IPPROTO_ICMPV6, "icmpv6"
	}
	return Part{word + " type " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}},
	}}
}

// MarkSet matches packets carrying the mark bit.
func MarkSet(bit uint32) Part {
	return Part{fmt.Sprintf("meta mark & %#x != 0", bit), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(bit), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)},
	}}
}

// AddMark puts the mark bit on a packet.
func AddMark(bit uint32) Part {
	return Part{fmt.Sprintf("meta mark set meta mark | %#x", bit), setMark(^bit, bit)}
}

// DropMark takes the mark bit off a packet.
func DropMark(bit uint32) Part {
	return Part{fmt.Sprintf("meta mark set meta mark & %#x", ^bit), setMark(^bit, 0)}
}

func setMark(mask, xor uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mask), Xor: native32(xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// Masquerade rewrites the source to the outgoing interface's address, with a random port.
func Masquerade() Part {
	return Part{"masquerade fully-random", []expr.Any{&expr.Masq{FullyRandom: true}}}
}

// Reject answers with ICMP port unreachable, which clients see as connection refused.
func (f Family) Reject() Part {
	code := uint8(3)
	if f == IPv6 {
		code = 4
	}
	return Part{"reject", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}}}
}

// Drop discards the packet.
func Drop() Part { return verdict("drop", expr.VerdictDrop, "") }

// Accept ends this hook's chain for the packet.
func Accept() Part { return verdict("accept", expr.VerdictAccept, "") }

// Return goes back to the calling chain.
func Return() Part { return verdict("return", expr.VerdictReturn, "") }

// Jump calls a chain.
func Jump(chain string) Part { return verdict("jump "+chain, expr.VerdictJump, chain) }

// Goto continues in a chain without coming back.
func Goto(chain string) Part { return verdict("goto "+chain, expr.VerdictGoto, chain) }

func verdict(text string, kind expr.VerdictKind, chain string) Part {
	return Part{text, []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
