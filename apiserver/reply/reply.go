// Package reply sends the bodies of answers, whole or in pieces while they
// are being made: a list of 100,000 objects takes no more memory than one of 100.
package reply

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// piece is how much goes out at once of a body that is being made, and the
// size from which compression pays, as upstream.
const piece = 128 << 10

// largestKept is what a buffer may have grown to and still be used again.
const largestKept = 4 * piece

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, piece+piece/4) // the object that completes a piece goes beyond it
	return &b
}}

var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	return w
}}

// ErrGone tells that the client does not take the answer any more.
var ErrGone = errors.New("the client is gone")

// Body is the body of one answer. It is made by appending to what Buffer and
// Spill return, and ends with End. Not safe for concurrent use.
type Body struct {
	To    http.ResponseWriter // its header fields are set but for those about the body
	Media string              // the Content-Type
	Code  int
	Gzip  bool // the client takes it compressed
	Keep  bool // until it is whole, however large: somebody wants it in one piece

	pooled *[]byte
	begun  bool
	gz     *gzip.Writer
}

// Accepted tells whether a client takes compressed bodies.
func Accepted(req *http.Request) bool {
	for encoding := range strings.SplitSeq(req.Header.Get("Accept-Encoding"), ",") {
		if strings.TrimSpace(encoding) == "gzip" {
			return true
		}
	}
	return false
}

// Member is p as a gzip stream of its own; such streams one after another are
// one again. A reader has all of p before it needs the end of the member: it
// does not wait for the next. Nothing is kept, as the compressors of answers
// are that take most of a megabyte each: a thousand watches would hold them.
func Member(p []byte) []byte {
	out := bytes.NewBuffer(make([]byte, 0, len(p)/3+64))
	gz, _ := gzip.NewWriterLevel(out, gzip.StatelessCompression) //nolint:errcheck // the level exists, and a Buffer takes all
	gz.Write(p)
	gz.Close()
	return out.Bytes()
}

// Buffer is where the body begins. size is what is expected of it, if known.
func (b *Body) Buffer(size int) []byte {
	if b.Keep {
		return make([]byte, 0, size)
	}
	b.pooled = buffers.Get().(*[]byte)
	return (*b.pooled)[:0]
}

// Begun tells that it is too late to answer anything else.
func (b *Body) Begun() bool { return b.begun }

// Spill sends what was made, once it is a piece, and returns where to go on.
// The error is ErrGone.
func (b *Body) Spill(buf []byte) ([]byte, error) {
	if b.Keep || len(buf) < piece {
		return buf, nil
	}
	b.begin(b.Gzip)
	return buf[:0], b.write(buf)
}

// End sends the rest, which is given away. The error is ErrGone.
func (b *Body) End(buf []byte) (err error) {
	switch {
	case b.begun:
		err = b.write(buf)
	case b.Gzip && len(buf) > piece:
		b.begin(true)
		err = b.write(buf)
	default:
		b.To.Header().Set("Content-Length", strconv.Itoa(len(buf)))
		b.begin(false)
		err = b.whole(buf)
	}
	if b.gz != nil && err == nil {
		if failed := b.gz.Close(); failed != nil {
			err = fmt.Errorf("%w: %w", ErrGone, failed)
		}
	}
	b.free(buf)
	return err
}

// Drop gives up on a body without an end.
func (b *Body) Drop() { b.free(nil) }

func (b *Body) begin(compressed bool) {
	if b.begun {
		return
	}
	b.begun = true
	h := b.To.Header()
	h.Set("Content-Type", b.Media)
	if compressed {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		b.gz = gzipWriters.Get().(*gzip.Writer)
		b.gz.Reset(b.To)
	}
	b.To.WriteHeader(b.Code)
}

func (b *Body) write(p []byte) error {
	to := io.Writer(b.To)
	if b.gz != nil {
		to = b.gz
	}
	if _, err := to.Write(p); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// whole gives a body away to who takes it without a copy: a client in this process.
func (b *Body) whole(p []byte) error {
	to := b.To
	if w, ok := to.(interface{ Unwrap() http.ResponseWriter }); ok {
		to = w.Unwrap()
	}
	if o, ok := to.(interface{ WriteOwned([]byte) }); ok && b.pooled == nil {
		o.WriteOwned(p)
		return nil
	}
	return b.write(p)
}

func (b *Body) free(buf []byte) {
	if b.gz != nil {
		gzipWriters.Put(b.gz)
		b.gz = nil
	}
	if b.pooled == nil {
		return
	}
	if cap(buf) > 0 && cap(buf) <= largestKept {
		*b.pooled = buf[:0] // it may have grown
	}
	buffers.Put(b.pooled)
	b.pooled = nil
}
