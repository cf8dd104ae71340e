package nodeipam

import (
	"fmt"
	"math/big"
	"net/netip"
)

// maxBlocks bounds how many blocks one pool may have, and so its memory (1 bit each).
const maxBlocks = 1 << 20

// pool hands out equal blocks of one address range. Not safe for concurrent use.
type pool struct {
	all  netip.Prefix
	bits int // prefix length of a block
	used []uint64
	size int
	next int
}

func newPool(all netip.Prefix, bits int) (*pool, error) {
	all = all.Masked()
	if bits < all.Bits() || bits > all.Addr().BitLen() {
		return nil, fmt.Errorf("node mask /%d does not fit into cluster CIDR %s", bits, all)
	}
	shift := bits - all.Bits()
	if shift > 20 {
		return nil, fmt.Errorf("cluster CIDR %s has more than %d blocks of /%d; choose a narrower range or a wider mask", all, maxBlocks, bits)
	}
	n := 1 << shift
	return &pool{all: all, bits: bits, size: n, used: make([]uint64, (n+63)/64)}, nil
}

// block returns the i-th block.
func (p *pool) block(i int) netip.Prefix {
	n := new(big.Int).SetBytes(p.all.Addr().AsSlice())
	step := new(big.Int).Lsh(big.NewInt(int64(i)), uint(p.all.Addr().BitLen()-p.bits))
	raw := n.Add(n, step).FillBytes(make([]byte, p.all.Addr().BitLen()/8))
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, p.bits)
}

// span returns the first and last index of the blocks that c touches; ok is false outside the pool.
func (p *pool) span(c netip.Prefix) (first, last int, ok bool) {
	c = c.Masked()
	if !c.Overlaps(p.all) {
		return 0, 0, false
	}
	if c.Bits() <= p.all.Bits() {
		return 0, p.size - 1, true
	}
	base := new(big.Int).SetBytes(p.all.Addr().AsSlice())
	off := new(big.Int).SetBytes(c.Addr().AsSlice())
	off.Sub(off, base)
	first = int(off.Rsh(off, uint(p.all.Addr().BitLen()-p.bits)).Int64())
	last = first
	if c.Bits() < p.bits {
		last = first + 1<<(p.bits-c.Bits()) - 1
	}
	return first, last, true
}

// occupy marks every block that c touches as used; blocks used already stay so.
func (p *pool) occupy(c netip.Prefix) { p.mark(c, true) }

// release gives every block that c touches back.
func (p *pool) release(c netip.Prefix) { p.mark(c, false) }

func (p *pool) mark(c netip.Prefix, used bool) {
	first, last, ok := p.span(c)
	if !ok {
		return
	}
	for i := first; i <= last; i++ {
		if used {
			p.used[i/64] |= 1 << (i % 64)
		} else {
			p.used[i/64] &^= 1 << (i % 64)
		}
	}
}

// take returns a free block and marks it used; it goes round, so that a block given back is not
// given out again at once. ok is false if all are used.
func (p *pool) take() (netip.Prefix, bool) {
	for n := range p.size {
		i := (p.next + n) % p.size
		if p.used[i/64]&(1<<(i%64)) == 0 {
			p.used[i/64] |= 1 << (i % 64)
			p.next = (i + 1) % p.size
			return p.block(i), true
		}
	}
	return netip.Prefix{}, false
}
