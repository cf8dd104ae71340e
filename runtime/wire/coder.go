// Package wire is the small versioned protocol between the runtime, the per-pod
// monitor and the processes that enter containers.
//
// It is part of the embedded helper, so it imports nothing: encoding/json and fmt
// together would add a megabyte to every monitor. One Walk method per message reads
// and writes it, so the two directions cannot drift apart.
package wire

// Version is the first byte of every packet. A monitor outlives the agent that
// started it, so an agent must be able to speak every version it ever shipped.
const Version = 1

// MaxPacket bounds one packet on the monitor's socket, in bytes.
const MaxPacket = 16 << 10

// Walker is a message that can walk its own fields.
type Walker interface{ Walk(c *Coder) }

// Error is a protocol error.
type Error string

func (e Error) Error() string { return string(e) }

// ErrShort says that a packet ended early or names a length past its end.
const ErrShort = Error("wire: packet is truncated")

// Coder encodes or decodes, depending on how it was made.
type Coder struct {
	b      []byte
	decode bool
	err    error
}

// Encode returns v's bytes.
func Encode(v Walker) []byte {
	c := &Coder{}
	v.Walk(c)
	return c.b
}

// Decode fills v from b. Bytes after the last known field are ignored, so a newer
// sender may append fields.
func Decode(b []byte, v Walker) error {
	c := &Coder{b: b, decode: true}
	v.Walk(c)
	return c.err
}

func (c *Coder) take(n int) []byte {
	if c.err != nil || n < 0 || n > len(c.b) {
		c.err = ErrShort
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

// U64 walks an unsigned 64-bit number, little endian.
func (c *Coder) U64(p *uint64) {
	if !c.decode {
		v := *p
		c.b = append(c.b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24),
			byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
		return
	}
	b := c.take(8)
	if b == nil {
		return
	}
	*p = 0
	for i := 7; i >= 0; i-- {
		*p = *p<<8 | uint64(b[i])
	}
}

// I64 walks a signed 64-bit number.
func (c *Coder) I64(p *int64) {
	u := uint64(*p)
	c.U64(&u)
	*p = int64(u)
}

// Int walks an int.
func (c *Coder) Int(p *int) {
	u := uint64(*p)
	c.U64(&u)
	*p = int(u)
}

// U32 walks an unsigned 32-bit number.
func (c *Coder) U32(p *uint32) {
	if !c.decode {
		v := *p
		c.b = append(c.b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
		return
	}
	if b := c.take(4); b != nil {
		*p = uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	}
}

// Bool walks a truth value as one byte.
func (c *Coder) Bool(p *bool) {
	if !c.decode {
		v := byte(0)
		if *p {
			v = 1
		}
		c.b = append(c.b, v)
		return
	}
	if b := c.take(1); b != nil {
		*p = b[0] == 1
	}
}

func (c *Coder) length(n int) int {
	l := uint32(n)
	c.U32(&l)
	if c.decode && (c.err != nil || int(l) > len(c.b)) {
		c.err = ErrShort
		return 0
	}
	return int(l)
}

// Bytes walks a byte string; decoding copies.
func (c *Coder) Bytes(p *[]byte) {
	n := c.length(len(*p))
	if !c.decode {
		c.b = append(c.b, *p...)
		return
	}
	*p = append([]byte(nil), c.take(n)...)
}

// Str walks a string.
func (c *Coder) Str(p *string) {
	n := c.length(len(*p))
	if !c.decode {
		c.b = append(c.b, *p...)
		return
	}
	*p = string(c.take(n))
}

// Strs walks a list of strings.
func (c *Coder) Strs(p *[]string) { list(c, p, c.Str) }

// Ints walks a list of ints.
func (c *Coder) Ints(p *[]int) { list(c, p, c.Int) }

// list walks a list whose element walks itself through f.
func list[T any](c *Coder, p *[]T, f func(*T)) {
	n := c.length(len(*p))
	if c.decode {
		*p = make([]T, n)
	}
	for i := range *p {
		f(&(*p)[i])
	}
}
