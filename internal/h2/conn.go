package h2

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	prefaceTimeout = 10 * time.Second // for a client to say that it speaks HTTP/2
	partingTimeout = time.Second      // for a client to hang up after GOAWAY, or to end a request that is answered
	readFrame      = 16 << 10         // the largest payload we take; RFC 9113's default
	firstWindow    = 65535            // of every window before anything is said
	maxWindow      = 1<<31 - 1
	maxLingering   = 100  // requests that are answered while their bodies still come
	maxRefused     = 1000 // requests beyond the limit, in a row; a client may begin with some before it knows
	maxCanonical   = 64   // names of header fields that a connection remembers
)

var (
	errGone  = errors.New("the client has gone")      // for a handler whose stream is over
	errOver  = errors.New("the response is complete") // for one that writes after it returned
	errFlood = errors.New("the client asks for answers and reads none")
)

// conn is one connection. A goroutine reads its frames and never waits for
// writing; each request has one more that runs the handler and writes.
type conn struct {
	srv     *server
	nc      *tls.Conn
	gather  *gather // below nc, if the listener was Listen's; else nil
	tls     *tls.ConnectionState
	remote  string
	handler http.Handler
	ctx     context.Context
	cancel  context.CancelFunc

	// The reader's own.
	in        *bufio.Reader
	fr        *http2.Framer
	canonical map[string]string
	refused   int // requests turned away since one was taken

	mu       sync.Mutex
	err      error // why the connection is over
	streams  map[uint32]*stream
	orphans  int                 // handlers that still run for streams the client has reset
	lingers  map[uint32]struct{} // see linger
	lastID   uint32              // the newest stream's
	leaving  bool                // GOAWAY was sent
	idle     *time.Timer
	idleFrom uint32 // lastID when the timer was set
	idleFor  int    // times it found nothing new

	sendWindow   int64 // what the client takes on this connection
	short        bool  // a stream waits for more
	streamWindow int64 // the same for a new stream
	peerFrame    int   // the largest payload it takes
	recvWindow   int64 // what it may send on this connection
	recvDebt     int64 // what was read of that and not told yet

	feeds   feeds
	out     *[]byte   // frames to be written; nil: none
	writing bool      // somebody writes, and will see what is added
	room    sync.Cond // out was taken, or nobody writes any more
}

func newConn(s *server, nc *tls.Conn, handler http.Handler) *conn {
	ctx := context.Background()
	if h, ok := handler.(interface{ BaseContext() context.Context }); ok {
		ctx = h.BaseContext()
	}
	state := nc.ConnectionState()
	c := &conn{
		srv: s, nc: nc, tls: &state, remote: nc.RemoteAddr().String(), handler: handler,
		in: bufio.NewReader(nc), canonical: map[string]string{}, streams: map[uint32]*stream{}, lingers: map[uint32]struct{}{},
		sendWindow: firstWindow, streamWindow: firstWindow, peerFrame: 16 << 10, recvWindow: int64(s.cfg.ConnWindow),
	}
	c.gather, _ = nc.NetConn().(*gather)
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.room.L = &c.mu
	c.fr = http2.NewFramer(io.Discard, c.in)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(readFrame)
	c.fr.MaxHeaderListSize = uint32(s.cfg.MaxHeaderBytes)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return c
}

// serve reads frames until the connection is over.
func (c *conn) serve() {
	defer c.cancel()
	c.mu.Lock()
	c.idle = time.AfterFunc(c.srv.cfg.IdleTimeout/2, c.checkIdle)
	c.mu.Unlock()
	defer c.idle.Stop()
	err := c.greet()
	for err == nil {
		var f http2.Frame
		if f, err = c.fr.ReadFrame(); err == nil {
			err = c.take(f)
		}
		if stream := (http2.StreamError{}); errors.As(err, &stream) {
			c.debug("stream reset", "stream", stream.StreamID, "code", stream.Code, "cause", stream.Cause)
			err = c.reset(stream.StreamID, stream.Code)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
	for c.writing { // GOAWAY goes out before net/http hangs up
		c.room.Wait()
	}
}

func (c *conn) debug(what string, args ...any) {
	c.srv.cfg.Log.Debug("HTTP/2: "+what, append([]any{"client", c.remote}, args...)...)
}

// greet says what we take, and hears that the client speaks HTTP/2.
func (c *conn) greet() error {
	cfg := c.srv.cfg
	c.control(func(b []byte) []byte {
		b = appendSettings(b,
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(cfg.MaxStreams)},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(cfg.MaxHeaderBytes)},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(cfg.StreamWindow)})
		if more := cfg.ConnWindow - firstWindow; more > 0 {
			b = appendWindowUpdate(b, 0, uint32(more))
		}
		return b
	})
	if err := c.nc.SetReadDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return err
	}
	var preface [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(c.in, preface[:]); err != nil {
		return err
	}
	if string(preface[:]) != http2.ClientPreface {
		return c.wrong(http2.ErrCodeProtocol, "no preface")
	}
	f, err := c.fr.ReadFrame()
	if err != nil {
		return err
	}
	if f, ok := f.(*http2.SettingsFrame); !ok || f.IsAck() {
		return c.wrong(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.take(f)
}

// wrong is a fault of the client that ends the connection.
func (c *conn) wrong(code http2.ErrCode, why string) error {
	c.debug("connection ends", "code", code, "cause", why)
	return http2.ConnectionError(code)
}

// checkIdle parts from a client that has had nothing to ask for long.
func (c *conn) checkIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) > 0 || c.lastID != c.idleFrom {
		c.idleFrom, c.idleFor = c.lastID, 0
	} else if c.idleFor++; c.idleFor >= 2 {
		c.part()
		return
	}
	c.idle.Reset(c.srv.cfg.IdleTimeout / 2)
}

// goAway lets the connection end with the requests it has.
func (c *conn) goAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.part()
}

// part tells the client to ask elsewhere; mu is held.
func (c *conn) part() {
	if c.leaving || c.err != nil {
		return
	}
	c.leaving = true
	c.controlLocked(func(b []byte) []byte { return appendGoAway(b, c.lastID, http2.ErrCodeNo) })
	c.hangUpIfDone()
}

// hangUpIfDone ends the reading of a connection that has no requests left and
// takes none; mu is held.
func (c *conn) hangUpIfDone() {
	if c.leaving && len(c.streams) == 0 {
		c.nc.SetReadDeadline(time.Now().Add(partingTimeout)) //nolint:errcheck // a closed connection has ended, too
	}
}

// fail ends the connection with all its streams; mu is held. The first cause
// counts.
func (c *conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	var code http2.ConnectionError
	switch {
	case errors.As(err, &code):
		c.controlLocked(func(b []byte) []byte { return appendGoAway(b, c.lastID, http2.ErrCode(code)) })
	case errors.Is(err, http2.ErrFrameTooLarge):
		c.controlLocked(func(b []byte) []byte { return appendGoAway(b, c.lastID, http2.ErrCodeFrameSize) })
	default:
		c.nc.NetConn().Close() //nolint:errcheck // whoever reads or writes it is to stop
	}
	for _, st := range c.streams {
		st.end(errGone)
	}
	c.room.Broadcast()
}

// reset ends one stream for a fault of its client.
func (c *conn) reset(id uint32, code http2.ErrCode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.streams[id]; st != nil {
		st.end(errGone)
	} else if !c.leaving {
		c.lastID = max(c.lastID, id) // its header fields were never taken
	}
	c.controlLocked(func(b []byte) []byte { return appendReset(b, id, code) })
	return c.err
}

// take acts on one frame. A StreamError ends the stream, any other error the
// connection.
func (c *conn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.takeHeaders(f)
	case *http2.DataFrame:
		return c.takeData(f)
	case *http2.SettingsFrame:
		return c.takeSettings(f)
	case *http2.WindowUpdateFrame:
		return c.takeWindow(f.StreamID, int64(f.Increment))
	case *http2.RSTStreamFrame:
		c.mu.Lock()
		defer c.mu.Unlock()
		if f.StreamID > c.lastID {
			return c.wrong(http2.ErrCodeProtocol, "reset of a stream that was never opened")
		}
		if st := c.streams[f.StreamID]; st != nil {
			st.end(errGone)
		}
		delete(c.lingers, f.StreamID)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.control(func(b []byte) []byte { return appendPing(b, f.Data) })
		}
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol, Cause: errors.New("a stream that depends on itself")}
		}
	case *http2.PushPromiseFrame:
		return c.wrong(http2.ErrCodeProtocol, "a client cannot push")
	case *http2.GoAwayFrame:
		c.goAway()
	}
	return nil
}

func (c *conn) takeSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingMaxFrameSize:
			c.peerFrame = min(int(s.Val), maxPending)
		case http2.SettingInitialWindowSize:
			more := int64(s.Val) - c.streamWindow
			c.streamWindow = int64(s.Val)
			for _, st := range c.streams {
				if st.sendWindow += more; st.sendWindow > maxWindow {
					return c.wrong(http2.ErrCodeFlowControl, "a window too large")
				}
				st.window.Broadcast()
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.controlLocked(appendSettingsAck)
	return c.err
}

func (c *conn) takeWindow(id uint32, more int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.sendWindow += more; c.sendWindow > maxWindow {
			return c.wrong(http2.ErrCodeFlowControl, "a window too large")
		}
		if c.short {
			c.short = false
			for _, st := range c.streams {
				st.window.Broadcast()
			}
		}
		return nil
	}
	st := c.streams[id]
	if st == nil {
		if id > c.lastID {
			return c.wrong(http2.ErrCodeProtocol, "a window for a stream that was never opened")
		}
		return nil
	}
	if st.sendWindow += more; st.sendWindow > maxWindow {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl, Cause: errors.New("a window too large")}
	}
	st.window.Broadcast()
	return nil
}

func (c *conn) takeHeaders(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	if id%2 == 0 {
		return c.wrong(http2.ErrCodeProtocol, "a client's stream has an even number")
	}
	c.mu.Lock()
	st, last, leaving := c.streams[id], c.lastID, c.leaving
	busy := len(c.streams)+c.orphans >= c.srv.cfg.MaxStreams
	lingers := c.lingered(id, f.StreamEnded())
	c.mu.Unlock()
	switch {
	case lingers:
		return nil
	case st != nil:
		return st.takeTrailers(f)
	case id <= last:
		return c.wrong(http2.ErrCodeStreamClosed, "headers of a closed stream")
	case leaving:
		return nil // GOAWAY has told that it is not taken
	case f.HasPriority() && f.Priority.StreamDep == id:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol, Cause: errors.New("a stream that depends on itself")}
	case busy:
		if c.refused++; c.refused > maxRefused {
			return c.wrong(http2.ErrCodeEnhanceYourCalm, "requests go on beyond the limit")
		}
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream, Cause: errors.New("too many requests at once")}
	}
	c.refused = 0
	st = newStream(c, id, f.StreamEnded())
	req, err := c.request(st, f)
	if err != nil {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol, Cause: err}
	}
	handler := c.handler
	if f.Truncated {
		handler = http.HandlerFunc(headersTooLarge)
	}
	c.mu.Lock()
	c.lastID = id
	c.streams[id] = st
	st.sendWindow, st.recvWindow = c.streamWindow, int64(c.srv.cfg.StreamWindow)
	c.mu.Unlock()
	go st.run(handler, req)
	return nil
}

func headersTooLarge(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "request header fields too large", http.StatusRequestHeaderFieldsTooLarge)
}

func (c *conn) takeData(f *http2.DataFrame) error {
	id, size := f.StreamID, int64(f.Length) // with padding: it counts
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recvWindow -= size; c.recvWindow < 0 {
		return c.wrong(http2.ErrCodeFlowControl, "more data than the connection may send")
	}
	st := c.streams[id]
	if st == nil || st.remoteDone {
		c.refund(nil, size)
		switch {
		case id > c.lastID && !c.leaving:
			return c.wrong(http2.ErrCodeProtocol, "data of a stream that was never opened")
		case id > c.lastID:
			return nil
		case c.lingered(id, f.StreamEnded()):
			return c.err
		}
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed, Cause: errors.New("data of a closed stream")}
	}
	if st.recvWindow -= size; st.recvWindow < 0 {
		c.refund(nil, size)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl, Cause: errors.New("more data than the stream may send")}
	}
	data := f.Data()
	if st.declared >= 0 {
		if st.declared -= int64(len(data)); st.declared < 0 || f.StreamEnded() && st.declared > 0 {
			c.refund(nil, size)
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol, Cause: errors.New("the body has another length than declared")}
		}
	}
	kept := int64(0)
	if !st.discard {
		st.body = append(st.body, data...)
		kept = int64(len(data))
	}
	c.refund(st, size-kept)
	if f.StreamEnded() {
		st.remoteDone, st.bodyErr = true, io.EOF
	}
	st.arrived.Broadcast()
	return c.err
}

// linger drops what comes of a request that is answered already, for a moment
// before it is asked to stop: curl, asked at once, throws the answer away. mu is held.
func (c *conn) linger(id uint32) {
	stop := func(b []byte) []byte { return appendReset(b, id, http2.ErrCodeNo) }
	if len(c.lingers) >= maxLingering {
		c.controlLocked(stop)
		return
	}
	c.lingers[id] = struct{}{}
	time.AfterFunc(partingTimeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.lingered(id, true) && c.err == nil {
			c.controlLocked(stop)
		}
	})
}

// lingered tells whether the stream lingers; once it ends it does no more. mu is held.
func (c *conn) lingered(id uint32, ends bool) bool {
	_, lingers := c.lingers[id]
	if ends {
		delete(c.lingers, id)
	}
	return lingers
}

// refund lets the client send n bytes more, on the stream if there is one. It
// is told once it is worth a frame. mu is held.
func (c *conn) refund(st *stream, n int64) {
	if n == 0 {
		return
	}
	if c.recvDebt += n; c.recvDebt >= int64(c.srv.cfg.ConnWindow)/2 {
		c.controlLocked(func(b []byte) []byte { return appendWindowUpdate(b, 0, uint32(c.recvDebt)) })
		c.recvWindow, c.recvDebt = c.recvWindow+c.recvDebt, 0
	}
	if st == nil || st.remoteDone || st.err != nil {
		return
	}
	if st.recvDebt += n; st.recvDebt >= int64(c.srv.cfg.StreamWindow)/2 {
		c.controlLocked(func(b []byte) []byte { return appendWindowUpdate(b, st.id, uint32(st.recvDebt)) })
		st.recvWindow, st.recvDebt = st.recvWindow+st.recvDebt, 0
	}
}

// panicked tells of a handler's panic.
func (c *conn) panicked(v any, stack []byte) {
	c.srv.cfg.Log.Error("HTTP/2: handler panicked", "client", c.remote, "panic", fmt.Sprint(v), "stack", string(stack))
}
