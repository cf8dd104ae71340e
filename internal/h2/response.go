package h2

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// chunk is how much of a response is collected before it is sent, as in
// net/http: a handler that writes less gets a Content-Length.
const chunk = 4 << 10

// chunks are lent to responses that have something written and not yet sent.
var chunks = sync.Pool{New: func() any {
	b := make([]byte, 0, chunk)
	return &b
}}

// response is a handler's http.ResponseWriter.
type response struct {
	st     *stream
	req    *http.Request
	header http.Header

	status  int    // 0: WriteHeader was not called
	fields  []byte // the block of header fields as they were then, without those finish may add
	sent    bool   // the header fields have gone out
	has     has    // what the handler has set
	length  int64  // the Content-Length it set, if it has
	written int64
	buf     *[]byte
	trailer []string // announced
	ended   bool     // END_STREAM has gone out
	aborted bool     // the handler panicked
}

type has struct{ kind, length, date, encoding bool }

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header, 8)
	}
	return w.header
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %v", status))
	case w.status != 0:
		return
	case status < 200 && status != http.StatusSwitchingProtocols:
		block := w.encode(appendStatus(nil, status))
		w.has = has{}
		w.st.send(block, nil, false) //nolint:errcheck // the response tells
		return
	}
	w.status = status
	w.fields = w.encode(appendStatus(make([]byte, 0, 256), status))
}

// encode adds the handler's header fields to a block.
func (w *response) encode(block []byte) []byte {
	for key, values := range w.header {
		if strings.HasPrefix(key, http.TrailerPrefix) {
			continue
		}
		switch key {
		case "Content-Type":
			w.has.kind = true
		case "Content-Encoding":
			w.has.encoding = len(values) > 0 && values[0] != ""
		case "Date":
			w.has.date = true // even if it says none
		case "Content-Length":
			if w.has.length {
				continue
			}
			n, err := strconv.ParseInt(first(values), 10, 64)
			if err != nil || n < 0 {
				continue // as net/http: it cannot be true
			}
			w.has.length, w.length = true, n
		case "Trailer":
			for _, names := range values {
				for name := range strings.SplitSeq(names, ",") {
					w.trailer = append(w.trailer, textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)))
				}
			}
		case "Connection":
			if first(values) == "close" {
				w.st.c.goAway()
			}
			continue
		case "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade":
			continue
		}
		for _, v := range values {
			block = appendField(block, key, v)
		}
	}
	return block
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	w.written += int64(len(p))
	if w.has.length && w.written > w.length {
		return 0, http.ErrContentLength
	}
	if w.buf == nil {
		w.buf = chunks.Get().(*[]byte)
	}
	if len(*w.buf)+len(p) > chunk && len(*w.buf) > 0 {
		if err := w.flush(*w.buf, false, false); err != nil {
			return 0, err
		}
		*w.buf = (*w.buf)[:0]
	}
	if len(p) > chunk {
		return len(p), w.flush(p, false, false)
	}
	*w.buf = append(*w.buf, p...)
	return len(p), nil
}

// FlushError sends what was written. http.ResponseController looks for it.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	var p []byte
	if w.buf != nil {
		p = *w.buf
	}
	if len(p) == 0 && w.sent {
		return w.st.alive()
	}
	err := w.flush(p, false, false)
	w.free() // a stream that rests holds no buffer
	return err
}

// Flush implements http.Flusher.
func (w *response) Flush() { w.FlushError() } //nolint:errcheck // the next write tells

// EnableFullDuplex is how it always is. http.ResponseController looks for it.
func (w *response) EnableFullDuplex() error { return nil }

func (w *response) free() {
	if w.buf != nil {
		*w.buf = (*w.buf)[:0]
		chunks.Put(w.buf)
		w.buf = nil
	}
}

// flush sends the header fields, if they are not yet, and p. The handler may
// be done; the response ends then unless trailers follow.
func (w *response) flush(p []byte, done, trailers bool) error {
	head := w.req.Method == http.MethodHead
	var block []byte
	if !w.sent {
		w.sent = true
		block, w.fields = w.fields, nil
		if done && !w.has.length && bodyAllowed(w.status) && (len(p) > 0 || !head) {
			block = appendField(block, "Content-Length", strconv.Itoa(len(p)))
		}
		if !w.has.kind && !w.has.encoding && bodyAllowed(w.status) && len(p) > 0 {
			block = appendField(block, "Content-Type", http.DetectContentType(p))
		}
		if !w.has.date {
			block = appendDate(block)
		}
	}
	if w.ended {
		return nil
	}
	if head {
		p = nil
	}
	// A client that has all that was declared need not wait for the handler.
	all := w.has.length && w.written == w.length && len(w.trailer) == 0
	w.ended = head || all || done && !trailers
	return w.st.send(block, p, w.ended)
}

// finish ends the response.
func (w *response) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	var p []byte
	if w.buf != nil {
		p = *w.buf
	}
	trailers := w.trailers()
	if w.flush(p, true, len(trailers) > 0) == nil && !w.ended {
		w.st.send(trailers, nil, true) //nolint:errcheck // nobody is left to be told
	}
}

// trailers is the block of those that were announced, or are marked as such.
func (w *response) trailers() []byte {
	var block []byte
	for _, key := range w.trailer {
		if !httpguts.ValidTrailerHeader(key) {
			continue
		}
		for _, v := range w.header[key] {
			block = appendField(block, key, v)
		}
	}
	for key, values := range w.header {
		name, marked := strings.CutPrefix(key, http.TrailerPrefix)
		if !marked {
			continue
		}
		for _, v := range values {
			block = appendField(block, name, v)
		}
	}
	return block
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// alive tells whether the client still listens.
func (st *stream) alive() error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	return st.err
}

// send adds frames to what goes out, and sees to it that they do: a block of
// header fields, if there is one, then p. end is the end of the stream. It
// waits for the client to take them, but for the last 128 KiB.
func (st *stream) send(block, p []byte, end bool) error {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.waitForRoom(); err != nil || block == nil && len(p) == 0 && !end {
		return err
	}
	if block != nil {
		st.invite = false
		out := c.pending()
		*out = appendHeaders(*out, st.id, block, c.peerFrame, end && len(p) == 0)
		if len(p) == 0 {
			return st.sent(end)
		}
	}
	for first := true; first || len(p) > 0; first = false {
		n, err := st.room(len(p))
		if err != nil {
			return err
		}
		flags := http2.Flags(0)
		if end && n == len(p) {
			flags = http2.FlagDataEndStream
		}
		st.addData(p[:n], flags)
		p = p[n:]
	}
	return st.sent(end)
}

// addData adds a frame that the client has room for. mu is held.
func (st *stream) addData(p []byte, flags http2.Flags) {
	c := st.c
	st.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	out := c.pending()
	*out = append(appendFrame(*out, len(p), http2.FrameData, flags, st.id), p...)
}

// sent lets the frames go that were added. mu is held.
func (st *stream) sent(end bool) error {
	if end && st.remoteDone {
		st.forget()
	}
	st.c.write()
	return st.err
}

// room waits until some of n bytes can be sent. mu is held.
func (st *stream) room(n int) (int, error) {
	c := st.c
	for {
		if err := st.waitForRoom(); err != nil || n == 0 {
			return 0, err
		}
		if can := min(int64(n), int64(c.peerFrame), st.sendWindow, c.sendWindow); can > 0 {
			return int(can), nil
		}
		c.write() // what the client is to read before it lets us send more
		if st.err == nil && min(st.sendWindow, c.sendWindow) <= 0 {
			c.short = c.short || c.sendWindow <= 0
			st.window.Wait()
		}
	}
}

// waitForRoom waits while others' frames fill what is pending. mu is held.
func (st *stream) waitForRoom() error {
	c := st.c
	for st.err == nil && c.out != nil && len(*c.out) >= maxPending {
		if c.writing {
			c.room.Wait()
		} else {
			c.write()
		}
	}
	return st.err
}
