package h2

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"sync"

	"golang.org/x/net/http2"

	"github.com/skiff-project/skiff/internal/deepstack"
)

// stream is one request and its response. conn.mu guards what both the reader
// and the handler touch.
type stream struct {
	c      *conn
	id     uint32
	cancel context.CancelFunc

	err        error // over for the handler: the client has gone
	sendWindow int64
	window     sync.Cond // sendWindow grew, or the stream is over

	body       []byte // what has come, from read on
	read       int
	bodyErr    error     // io.EOF once all has come
	arrived    sync.Cond // body or bodyErr changed
	declared   int64     // bytes still to come by Content-Length; -1: unknown
	trailer    http.Header
	remoteDone bool // END_STREAM has come
	discard    bool // nobody reads the body any more
	recvWindow int64
	recvDebt   int64
	invite     bool // the client waits to be told to send the body
	orphan     bool // the handler runs for nobody
}

func newStream(c *conn, id uint32, ended bool) *stream {
	return &stream{c: c, id: id, declared: -1, remoteDone: ended, window: sync.Cond{L: &c.mu}, arrived: sync.Cond{L: &c.mu}}
}

// run answers the request.
func (st *stream) run(handler http.Handler, req *http.Request) {
	deepstack.For(req.Method)
	w := &response{st: st, req: req}
	defer st.leave(w)
	defer func() {
		if v := recover(); v != nil {
			w.aborted = true
			if v != http.ErrAbortHandler { //nolint:errorlint // net/http compares, too
				st.c.panicked(v, debug.Stack())
			}
		}
	}()
	handler.ServeHTTP(w, req)
}

// leave sends what is left of the response and forgets the stream.
func (st *stream) leave(w *response) {
	if !w.aborted {
		w.finish()
	}
	w.free()
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.orphan {
		c.orphans--
	}
	switch {
	case st.err != nil:
	case w.aborted:
		c.controlLocked(func(b []byte) []byte { return appendReset(b, st.id, http2.ErrCodeInternal) })
	case !st.remoteDone:
		c.linger(st.id)
	}
	st.end(errOver)
}

// forget takes the stream off those the client may count: it has seen, or will
// see, the end. mu is held.
func (st *stream) forget() {
	delete(st.c.streams, st.id)
	st.c.hangUpIfDone()
}

// end closes the stream for the handler; mu is held.
func (st *stream) end(err error) {
	if st.err != nil {
		return
	}
	st.err = err
	if st.bodyErr == nil {
		st.bodyErr = err
	}
	c := st.c
	if st.orphan = err == errGone; st.orphan {
		c.orphans++
	}
	c.refund(nil, int64(len(st.body)-st.read))
	st.body, st.read, st.discard = nil, 0, true
	st.window.Broadcast()
	st.arrived.Broadcast()
	st.cancel()
	st.forget()
}

func (st *stream) takeTrailers(f *http2.MetaHeadersFrame) error {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	fault := func(code http2.ErrCode, why string) error {
		return http2.StreamError{StreamID: st.id, Code: code, Cause: errors.New(why)}
	}
	switch {
	case st.remoteDone:
		return fault(http2.ErrCodeStreamClosed, "headers after the end of the request")
	case !f.StreamEnded():
		return fault(http2.ErrCodeProtocol, "trailers that do not end the request")
	case len(f.PseudoFields()) > 0:
		return fault(http2.ErrCodeProtocol, "trailers with pseudo header fields")
	case st.declared > 0:
		return fault(http2.ErrCodeProtocol, "the body is shorter than declared")
	}
	st.trailer = http.Header{}
	for _, field := range f.RegularFields() {
		st.trailer.Add(c.canonicalKey(field.Name), field.Value)
	}
	st.remoteDone, st.bodyErr = true, io.EOF
	st.arrived.Broadcast()
	return nil
}

// body is a request's.
type body struct {
	st  *stream
	req *http.Request
}

func (b body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	st, c := b.st, b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.invite && st.err == nil && st.bodyErr == nil && len(st.body) == 0 {
		c.controlLocked(func(b []byte) []byte {
			return appendHeaders(b, st.id, appendStatus(nil, http.StatusContinue), c.peerFrame, false)
		})
	}
	st.invite = false
	for len(st.body) == st.read && st.bodyErr == nil && !st.discard {
		st.arrived.Wait()
	}
	if st.discard && st.err == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	n := copy(p, st.body[st.read:])
	if n == 0 {
		for k := range b.req.Trailer { // those that were announced
			if v, ok := st.trailer[k]; ok {
				b.req.Trailer[k] = v
			}
		}
		return 0, st.bodyErr
	}
	if st.read += n; st.read == len(st.body) {
		st.body, st.read = st.body[:0], 0
	}
	c.refund(st, int64(n))
	return n, nil
}

// Close lets the client send no more than it has.
func (b body) Close() error {
	st, c := b.st, b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !st.discard {
		st.discard = true
		c.refund(nil, int64(len(st.body)-st.read))
		st.body, st.read = nil, 0
		st.arrived.Broadcast()
	}
	return nil
}
