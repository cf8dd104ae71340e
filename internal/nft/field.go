package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// Family is the address family of a table; every table here holds one family.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf says which family an address belongs to.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// String gives nft's keyword for the family: ip or ip6.
func (f Family) String() string {
	if f == IPv4 {
		return "ip"
	}
	return "ip6"
}

// AddrType is the element type of an address of this family.
func (f Family) AddrType() Type {
	if f == IPv4 {
		return TypeAddr4
	}
	return TypeAddr6
}

// Unspecified is the family's all-zero address.
func (f Family) Unspecified() netip.Addr {
	if f == IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (f Family) kernel() nftables.TableFamily {
	if f == IPv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// Type is the type of one field of a set's key or data.
type Type uint8

// The field types in use. Each takes a whole number of 32-bit registers.
const (
	TypeAddr4 Type = iota + 1
	TypeAddr6
	TypeProto // IP protocol number
	TypePort  // transport port, network order
	TypeIndex // a number in host order, as numgen yields it
)

func (t Type) bytes() int {
	if t == TypeAddr6 {
		return 16
	}
	return 4
}

func (t Type) kernel() nftables.SetDatatype {
	switch t {
	case TypeAddr4:
		return nftables.TypeIPAddr
	case TypeAddr6:
		return nftables.TypeIP6Addr
	case TypeProto:
		return nftables.TypeInetProto
	case TypePort:
		return nftables.TypeInetService
	default:
		// nft's own integer type has no size, and nft crashes on listing a key made of it.
		return nftables.TypeMark
	}
}

// String is nft's name of the type.
func (t Type) String() string { return t.kernel().Name }

// Proto is an IP protocol number.
type Proto uint8

// The protocols a Service can name.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// String is the protocol's lower-case name, or its number.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// Key collects the fields of an element's key or data in the kernel's layout:
// each field padded to 32-bit registers.
type Key []byte

// Addr appends an address (4 or 16 bytes).
func (k Key) Addr(a netip.Addr) Key { return append(k, a.Unmap().AsSlice()...) }

// Proto appends a protocol number.
func (k Key) Proto(p Proto) Key { return append(k, byte(p), 0, 0, 0) }

// Port appends a port.
func (k Key) Port(p uint16) Key { return append(k, byte(p>>8), byte(p), 0, 0) }

// Index appends a number in host order.
func (k Key) Index(n uint32) Key { return binary.NativeEndian.AppendUint32(k, n) }

// String gives the bytes as an immutable string, the form Elem wants.
func (k Key) String() string { return string(k) }

// fieldsText prints packed fields in nft's syntax.
func fieldsText(packed string, types []Type) string {
	parts := make([]string, 0, len(types))
	for _, t := range types {
		if len(packed) < t.bytes() {
			return "0x" + hex.EncodeToString([]byte(packed))
		}
		parts = append(parts, fieldText(packed[:t.bytes()], t))
		packed = packed[t.bytes():]
	}
	return strings.Join(parts, " . ")
}

func fieldText(b string, t Type) string {
	switch t {
	case TypeAddr4, TypeAddr6:
		a, _ := netip.AddrFromSlice([]byte(b))
		return a.String()
	case TypeProto:
		return Proto(b[0]).String()
	case TypePort:
		return strconv.Itoa(int(b[0])<<8 | int(b[1]))
	default:
		return fmt.Sprint(binary.NativeEndian.Uint32([]byte(b)))
	}
}
