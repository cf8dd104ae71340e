package h2

import (
	"encoding/binary"
	"runtime"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxPending is how many bytes of frames wait for the one who writes;
	// handlers wait beyond.
	maxPending = 128 << 10
	// maxControl is how many more the answers to a client's own frames may
	// be; who provokes more and reads none is cut off.
	maxControl = 64 << 10
)

// write sends what is pending, or leaves it to who is writing already. mu is
// held, and released meanwhile.
func (c *conn) write() {
	if c.writing || c.out == nil {
		return
	}
	c.writing = true
	c.mu.Unlock()
	runtime.Gosched() // whoever can run and has something for this client adds it first
	c.mu.Lock()
	c.writeOnce()
	if c.out != nil {
		go c.drain() // others' frames are not this handler's to write for ever
		return
	}
	c.writing = false
	c.room.Broadcast()
}

// drain writes until nothing is left.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out != nil {
		c.writeOnce()
	}
	c.writing = false
	c.room.Broadcast()
}

// writeOnce sends what is pending now. mu is held, and released meanwhile.
func (c *conn) writeOnce() {
	out := c.out
	c.out = nil
	c.room.Broadcast()
	c.mu.Unlock()
	err := c.send(*out)
	free(out)
	c.mu.Lock()
	if err != nil {
		c.fail(err)
	}
}

// send writes p through TLS in one call.
func (c *conn) send(p []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.WriteTimeout)); err != nil {
		return err
	}
	if c.gather == nil || len(p) < 16<<10 { // it fits a record
		_, err := c.nc.Write(p)
		return err
	}
	c.gather.hold()
	_, err := c.nc.Write(p)
	if sent := c.gather.release(); err == nil {
		err = sent
	}
	return err
}

// pending is where frames are added; mu is held.
func (c *conn) pending() *[]byte {
	if c.out == nil {
		c.out = buffers.Get().(*[]byte)
	}
	return c.out
}

// control adds a frame that nobody waits for.
func (c *conn) control(add func([]byte) []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.controlLocked(add)
}

func (c *conn) controlLocked(add func([]byte) []byte) {
	b := c.pending()
	if len(*b) > maxPending+c.peerFrame+maxControl {
		if c.err == nil {
			c.fail(errFlood)
		}
		return
	}
	*b = add(*b)
	if !c.writing {
		c.writing = true
		go c.drain()
	}
}

func appendFrame(b []byte, size int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	b = append(b, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	b = appendFrame(b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendSettingsAck(b []byte) []byte {
	return appendFrame(b, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
}

func appendPing(b []byte, data [8]byte) []byte {
	return append(appendFrame(b, len(data), http2.FramePing, http2.FlagPingAck, 0), data[:]...)
}

func appendWindowUpdate(b []byte, id, more uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameWindowUpdate, 0, id), more)
}

func appendReset(b []byte, id uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameRSTStream, 0, id), uint32(code))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode) []byte {
	b = binary.BigEndian.AppendUint32(appendFrame(b, 8, http2.FrameGoAway, 0, 0), last)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// appendHeaders adds a block of header fields, cut at the largest frame.
func appendHeaders(b []byte, id uint32, block []byte, largest int, end bool) []byte {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), largest)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders
		}
		b = append(appendFrame(b, n, kind, flags, id), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags = http2.FrameContinuation, 0
	}
}
