// Package inprocess connects clients in the same process to an HTTP handler
// without a network: streaming responses, cancellation and an identity
// carried in the context instead of a credential.
package inprocess

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/internal/deepstack"
)

type userKey struct{}

// User returns the identity an in-process client carries.
func User(req *http.Request) (auth.User, bool) {
	u, ok := req.Context().Value(userKey{}).(auth.User)
	return u, ok
}

// Transport is an http.RoundTripper that calls a handler as a user.
type Transport struct {
	Handler http.Handler
	User    auth.User
}

// RoundTrip implements http.RoundTripper. It returns as soon as the handler
// has finished or flushed for the first time.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), userKey{}, t.User))
	in := req.WithContext(ctx)
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Header == nil {
		in.Header = http.Header{}
	} else {
		in.Header = in.Header.Clone()
	}
	w := &localResponse{header: http.Header{}, started: make(chan struct{}), req: req, cancel: cancel}
	w.cond.L = &w.mu
	stop := context.AfterFunc(ctx, w.abort)
	go func() {
		deepstack.For(in.Method)
		defer cancel()
		defer stop()
		defer w.finish()
		defer func() {
			if p := recover(); p != nil {
				w.abort()
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
			}
		}()
		defer in.Body.Close()
		t.Handler.ServeHTTP(w, in)
	}()
	select {
	case <-w.started:
		return w.response(), nil
	case <-req.Context().Done():
		cancel()
		return nil, req.Context().Err()
	}
}

// maxLocalBuffer bounds what a handler may be ahead of its reader on a
// streaming response, in bytes.
const maxLocalBuffer = 1 << 20

// keptBuffer is what a stream that was read to its end keeps of that for the
// next burst, in bytes.
const keptBuffer = 64 << 10

// localResponse carries a response from the handler's goroutine to the
// client's. Until the first flush everything is buffered; a response never
// flushed needs one hand-over.
type localResponse struct {
	header  http.Header
	req     *http.Request
	cancel  context.CancelFunc
	started chan struct{}

	mu        sync.Mutex
	cond      sync.Cond
	buf       bytes.Buffer
	code      int
	sent      http.Header // the header as it was when the response began
	streaming bool
	done      bool
	closed    bool // the reader went away
	aborted   bool
}

// Header implements http.ResponseWriter.
func (w *localResponse) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *localResponse) WriteHeader(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(code)
}

func (w *localResponse) begin(code int) {
	if w.code == 0 {
		w.code = code
		w.sent = w.header.Clone()
	}
}

// Write implements http.ResponseWriter.
func (w *localResponse) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(http.StatusOK)
	for w.streaming && w.buf.Len() > maxLocalBuffer && !w.closed && !w.aborted {
		w.cond.Wait()
	}
	if w.closed || w.aborted {
		return 0, io.ErrClosedPipe
	}
	w.buf.Write(p)
	if w.streaming {
		w.cond.Broadcast()
	}
	return len(p), nil
}

// WriteOwned is Write of bytes the caller gives away: a whole response is
// handed over without a copy.
func (w *localResponse) WriteOwned(p []byte) {
	w.mu.Lock()
	if w.buf.Len() > 0 || w.streaming {
		w.mu.Unlock()
		w.Write(p) //nolint:errcheck // the reader went away
		return
	}
	defer w.mu.Unlock()
	w.begin(http.StatusOK)
	w.buf = *bytes.NewBuffer(p)
}

// Flush implements http.Flusher: the client sees the response from now on.
func (w *localResponse) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(http.StatusOK)
	w.start()
}

func (w *localResponse) start() {
	if !w.streaming {
		w.streaming = true
		close(w.started)
	}
}

func (w *localResponse) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(http.StatusOK)
	w.done = true
	w.start()
	w.cond.Broadcast()
}

func (w *localResponse) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.aborted = true
	w.cond.Broadcast()
}

func (w *localResponse) response() *http.Response {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Request: w.req, ContentLength: -1, Body: &localBody{w},
	}
	if w.done {
		r.ContentLength = int64(w.buf.Len())
	}
	return r
}

// localBody is the client's end of a localResponse.
type localBody struct{ w *localResponse }

// Read implements io.Reader.
func (b *localBody) Read(p []byte) (int, error) {
	w := b.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.buf.Len() == 0 && !w.done && !w.aborted && !w.closed {
		w.cond.Wait()
	}
	switch {
	case w.closed:
		return 0, http.ErrBodyReadAfterClose
	case w.buf.Len() > 0:
		n, _ := w.buf.Read(p)
		if w.buf.Len() == 0 && w.buf.Cap() > keptBuffer {
			w.buf = bytes.Buffer{}
		}
		w.cond.Broadcast()
		return n, nil
	case w.done:
		return 0, io.EOF
	}
	if err := w.req.Context().Err(); err != nil {
		return 0, err
	}
	return 0, io.ErrUnexpectedEOF
}

// Close implements io.Closer: it tells the handler that the client left.
func (b *localBody) Close() error {
	b.w.mu.Lock()
	b.w.closed = true
	b.w.cond.Broadcast()
	b.w.mu.Unlock()
	b.w.cancel()
	return nil
}
