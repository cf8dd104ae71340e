// Package alloc hands out service addresses and node ports. Who has an address
// is kept as an IPAddress object; who has a port in a bitmap in memory, made
// from the stored Services at start. Both are repaired from time to time.
// Allocators are safe for concurrent use.
package alloc

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
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

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last int }

// String writes the range as "first-last".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

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
	if !p.holds(port) {
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
	if p.holds(port) {
		p.set.free(port - p.r.First)
	}
}

func (p *Ports) holds(port int) bool { return port >= p.r.First && port <= p.r.Last }

// taken lists the allocated ports.
func (p *Ports) taken() []int {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	var out []int
	for w, word := range p.set.words {
		for ; word != 0; word &= word - 1 {
			out = append(out, p.r.First+w*64+bits.TrailingZeros64(word))
		}
	}
	return out
}
