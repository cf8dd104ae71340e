// Package alloc hands out service addresses and node ports. Allocators hold a
// bitmap in memory, rebuilt from the stored Services at start; they are safe
// for concurrent use.
package alloc

import (
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
)

// Errors of an allocation.
var (
	ErrAllocated = errors.New("provided IP is already allocated")
	ErrFull      = errors.New("range is full")
)

// bitmap is a set of integers below size.
type bitmap struct {
	mu    sync.Mutex
	words []uint64
	size  int
	used  int
}

func newBitmap(size int) *bitmap { return &bitmap{words: make([]uint64, (size+63)/64), size: size} }

func (b *bitmap) take(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set(i)
}

func (b *bitmap) set(i int) bool {
	w, m := i/64, uint64(1)<<(i%64)
	if b.words[w]&m != 0 {
		return false
	}
	b.words[w] |= m
	b.used++
	return true
}

func (b *bitmap) free(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, m := i/64, uint64(1)<<(i%64)
	if b.words[w]&m != 0 {
		b.words[w] &^= m
		b.used--
	}
}

// next takes a free number from [low, size), starting at a random place; when
// that part is full, from [0, low).
func (b *bitmap) next(low int) (int, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, part := range [][2]int{{low, b.size}, {0, low}} {
		if n := part[1] - part[0]; n > 0 {
			start := part[0] + rand.IntN(n)
			if i, ok := b.scan(start, part[1]); ok {
				return i, b.set(i)
			}
			if i, ok := b.scan(part[0], start); ok {
				return i, b.set(i)
			}
		}
	}
	return 0, false
}

// scan finds a clear bit in [from, to).
func (b *bitmap) scan(from, to int) (int, bool) {
	for i := from; i < to; {
		free := ^b.words[i/64] >> (i % 64)
		if free == 0 {
			i = (i/64 + 1) * 64
			continue
		}
		if i += bits.TrailingZeros64(free); i < to {
			return i, true
		}
		return 0, false
	}
	return 0, false
}

// maxAddresses bounds the bitmap of a CIDR (IPv6 ranges are larger).
const maxAddresses = 1 << 20

// IPs allocates addresses of one CIDR. The network address and, for IPv4, the
// broadcast address are never used.
type IPs struct {
	prefix netip.Prefix
	first  netip.Addr
	low    int // addresses below this offset are left for those who ask for one by name
	set    *bitmap
}

// NewIPs returns an allocator for prefix.
func NewIPs(prefix netip.Prefix) (*IPs, error) {
	prefix = prefix.Masked()
	host := prefix.Addr().BitLen() - prefix.Bits()
	if host < 3 {
		return nil, fmt.Errorf("service CIDR %s is too small: use at least 8 addresses", prefix)
	}
	size := maxAddresses
	if host < 20 {
		size = 1 << host
	}
	size-- // the network address
	if prefix.Addr().Is4() && host <= 20 {
		size-- // the broadcast address
	}
	return &IPs{prefix: prefix, first: prefix.Addr().Next(), low: min(max(16, size/16), 256), set: newBitmap(size)}, nil
}

// Prefix returns the range.
func (a *IPs) Prefix() netip.Prefix { return a.prefix }

// offset returns the number of an address, or false when outside the range.
func (a *IPs) offset(ip netip.Addr) (int, bool) {
	if !a.prefix.Contains(ip) {
		return 0, false
	}
	x, y := new(big.Int).SetBytes(ip.AsSlice()), new(big.Int).SetBytes(a.first.AsSlice())
	d := x.Sub(x, y)
	if !d.IsInt64() || d.Sign() < 0 || d.Int64() >= int64(a.set.size) {
		return 0, false
	}
	return int(d.Int64()), true
}

// Take allocates a given address.
func (a *IPs) Take(ip netip.Addr) error {
	i, ok := a.offset(ip)
	if !ok {
		return fmt.Errorf("the provided network does not match the current range: the IP must be in %s", a.prefix)
	}
	if !a.set.take(i) {
		return ErrAllocated
	}
	return nil
}

// Next allocates any free address.
func (a *IPs) Next() (netip.Addr, error) {
	i, ok := a.set.next(min(a.low, a.set.size-1))
	if !ok {
		return netip.Addr{}, ErrFull
	}
	raw := new(big.Int).SetBytes(a.first.AsSlice())
	raw.Add(raw, big.NewInt(int64(i)))
	buf := make([]byte, len(a.first.AsSlice()))
	ip, _ := netip.AddrFromSlice(raw.FillBytes(buf))
	return ip, nil
}

// Free gives an address back; one outside the range is ignored.
func (a *IPs) Free(ip netip.Addr) {
	if i, ok := a.offset(ip); ok {
		a.set.free(i)
	}
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last int }

// Ports allocates node ports.
type Ports struct {
	r   PortRange
	set *bitmap
}

// NewPorts returns an allocator for r.
func NewPorts(r PortRange) (*Ports, error) {
	if r.First < 1 || r.Last < r.First || r.Last > 65535 {
		return nil, fmt.Errorf("node port range %d-%d is no port range", r.First, r.Last)
	}
	return &Ports{r, newBitmap(r.Last - r.First + 1)}, nil
}

// ErrPortAllocated and the range error are upstream's texts.
var ErrPortAllocated = errors.New("provided port is already allocated")

// Take allocates a given port.
func (p *Ports) Take(port int) error {
	if port < p.r.First || port > p.r.Last {
		return fmt.Errorf("provided port is not in the valid range. The range of valid ports is %d-%d", p.r.First, p.r.Last)
	}
	if !p.set.take(port - p.r.First) {
		return ErrPortAllocated
	}
	return nil
}

// Next allocates any free port.
func (p *Ports) Next() (int, error) {
	n := p.r.Last - p.r.First + 1
	i, ok := p.set.next(min(max(16, n/32), 128, n-1))
	if !ok {
		return 0, ErrFull
	}
	return p.r.First + i, nil
}

// Free gives a port back.
func (p *Ports) Free(port int) {
	if port >= p.r.First && port <= p.r.Last {
		p.set.free(port - p.r.First)
	}
}
