// Package watchstream sends what a watch sees to its client.
//
// The handler of the request begins and ends the answer, tells bookmarks and
// errors, and waits for a client that is slow. The changes that a client takes
// at once are written by the feed of its HTTP/2 connection: one goroutine then
// serves all watches of a connection, and no handler wakes.
package watchstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/apiserver/metrics"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/internal/h2"
	"github.com/skiff-project/skiff/store"
)

// flushAbove is how much of a burst is sent at once.
const flushAbove = 64 * 1024

// Form makes the events of one stream. It is used by one goroutine at a time.
type Form interface {
	// Frame is a change's event; the caller does not change it.
	Frame(ch registry.Change) ([]byte, error)
	// Compressed is Frame as a whole member of a gzip stream.
	Compressed(ch registry.Change) ([]byte, error)
	// Bookmark says that everything up to a revision has been sent, or that
	// with it all that was there at first has been.
	Bookmark(rev int64, initialEnd bool) ([]byte, error)
	// Error is the event that ends a stream.
	Error(err error) ([]byte, error)
}

// Config is what a stream is made for.
type Config struct {
	W    http.ResponseWriter // with its header fields
	Form Form
	Sent *metrics.Events // counts the events, or nil
	// Alone keeps it off the feed: Frame or the watch may wait for another
	// server, or Frame cannot be called twice for a change.
	Alone     bool
	Gzip      bool // the answer is compressed
	Bookmarks bool
	Listed    func()        // is called when the bookmark after the present objects is sent; or nil
	Interval  time.Duration // between bookmarks
	Stopping  <-chan struct{}
	Gone      <-chan struct{} // what is watched is served no more; or nil
}

// Stream is the answer to one watch.
type Stream struct {
	Config
	w    *registry.Watch
	out  *http.ResponseController
	buf  []byte        // to be sent, not compressed; the handler's
	feed *h2.Feed      // or nil: the handler does everything
	bell chan struct{} // there is something for the handler to do

	mu      sync.Mutex        // held by a step of the feed
	handled bool              // by the handler: the feed keeps off
	rest    []registry.Change // what is to be sent, and then
	err     error             // why there is nothing more
	fault   any               // the feed's panic
}

// New returns a stream that has not begun.
func New(cfg Config) *Stream {
	return &Stream{Config: cfg, out: http.NewResponseController(cfg.W), bell: make(chan struct{}, 1), handled: true}
}

// Wake is for the watch's options.
func (st *Stream) Wake() {
	if st.feed != nil {
		st.feed.Rouse()
		return
	}
	st.ring()
}

func (st *Stream) ring() {
	select {
	case st.bell <- struct{}{}:
	default:
	}
}

func (st *Stream) start() {
	if st.Gzip {
		st.W.Header().Set("Content-Encoding", "gzip")
		st.W.Header().Add("Vary", "Accept-Encoding")
	}
	st.W.WriteHeader(http.StatusOK)
	st.out.Flush() //nolint:errcheck // the next write tells
}

// Refuse answers with an error in the stream, for a watch that cannot begin.
func (st *Stream) Refuse(err error) {
	st.start()
	st.fail(err)
}

// Run sends the events of w until the client's ctx ends, the time is up or the
// server stops. With initialEnd a bookmark follows the present objects.
func (st *Stream) Run(ctx context.Context, w *registry.Watch, initialEnd bool, timeout time.Duration) {
	end := time.NewTimer(timeout)
	defer end.Stop()
	st.w = w
	st.start()
	items, rev := w.Initial()
	for _, kv := range items {
		if !st.add(registry.Change{Type: watch.Added, KV: kv, ResourceVersion: kv.ModRevision}) || len(st.buf) > flushAbove && !st.flush() {
			return
		}
	}
	sent := false
	if initialEnd && st.Bookmarks {
		if sent = st.bookmark(rev, true); sent && st.Listed != nil {
			st.Listed()
		}
	} else {
		sent = st.flush()
	}
	if !sent {
		return
	}
	st.buf = nil // a stream at rest holds no buffer
	if !st.Alone {
		st.feed = h2.NewFeed(st.W, st.step)
	}
	st.follow(ctx, end)
}

func (st *Stream) follow(ctx context.Context, end *time.Timer) {
	tick := time.NewTicker(st.Interval)
	defer tick.Stop()
	gone := st.Gone
	st.ring() // the first look; the watch wakes us from then on
	for over := false; !over; {
		mark := false
		select {
		case <-st.bell:
		case <-tick.C:
			mark = true
		case <-end.C:
			over = true
		case <-st.Stopping:
			over = true
		case <-gone: // what is left to tell is told within a second
			gone = nil
			end.Reset(time.Second)
			continue
		case <-ctx.Done():
			over = true
		}
		st.handle(true)
		if ctx.Err() != nil || !st.turn() {
			return
		}
		if st.Bookmarks && (mark || over) && !st.bookmark(st.w.Progress(), false) { // so that the client resumes from here
			return
		}
		if !over {
			st.handle(false)
		}
	}
}

// handle gives the stream to the handler, or to the feed.
func (st *Stream) handle(handled bool) {
	if st.feed == nil {
		return
	}
	st.mu.Lock()
	st.handled = handled
	st.mu.Unlock()
	if !handled {
		st.feed.Rouse()
	}
}

func (st *Stream) poll() (more bool) {
	st.rest, more, st.err = st.w.Poll()
	return more
}

// step sends what the client takes at once, for the feed. All else it leaves
// to the handler.
func (st *Stream) step() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.handled {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			st.fault = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
		if st.handled = len(st.rest) > 0 || st.err != nil || st.fault != nil; st.handled {
			st.ring()
		}
	}()
	if st.poll() {
		st.feed.Rouse()
	}
	for len(st.rest) > 0 {
		frame, err := st.single(st.rest[0])
		if err != nil || !st.feed.TryWrite(frame) {
			return
		}
		st.count(frame, st.Gzip)
		st.rest = st.rest[1:]
	}
}

// turn sends what the feed has left, or what there is if there is no feed.
func (st *Stream) turn() bool {
	if st.feed == nil && st.poll() {
		st.ring()
	}
	switch {
	case st.fault != nil:
		panic(st.fault)
	case errors.Is(st.err, store.ErrClosed):
		return false
	case st.err != nil:
		st.fail(st.err)
		return false
	}
	changes := st.rest
	st.rest = nil
	return len(changes) == 0 || st.send(changes)
}

func (st *Stream) send(changes []registry.Change) bool {
	if len(changes) == 1 { // by far the most frequent
		frame, err := st.single(changes[0])
		if err != nil {
			st.fail(err)
			return false
		}
		st.count(frame, st.Gzip)
		_, err = st.W.Write(frame)
		return err == nil && st.out.Flush() == nil
	}
	for _, ch := range changes {
		if !st.add(ch) {
			return false
		}
	}
	return st.flush()
}

// single is the event of a change that is sent by itself, in bytes that all
// watchers share.
func (st *Stream) single(ch registry.Change) ([]byte, error) {
	if st.Gzip {
		return st.Form.Compressed(ch)
	}
	return st.Form.Frame(ch)
}

// count notes that an event was sent.
func (st *Stream) count(frame []byte, compressed bool) {
	switch {
	case st.Sent == nil:
	case compressed:
		st.Sent.Sent(metrics.PlainSize(frame))
	default:
		st.Sent.Sent(len(frame))
	}
}

// add appends the event of one change, or sends it if it is large.
func (st *Stream) add(ch registry.Change) bool {
	frame, err := st.Form.Frame(ch)
	if err != nil {
		st.fail(err)
		return false
	}
	st.count(frame, false)
	if len(st.buf) == 0 && len(frame) > flushAbove {
		return st.write(frame)
	}
	st.buf = append(st.buf, frame...)
	return true
}

func (st *Stream) flush() bool {
	if len(st.buf) > 0 {
		if !st.write(st.buf) {
			return false
		}
		if st.buf = st.buf[:0]; cap(st.buf) > 4*flushAbove {
			st.buf = nil
		}
	}
	return st.out.Flush() == nil
}

// write sends p, and holds nothing of a compressor while the client is slow:
// not even its stack, which would stay the handler's.
func (st *Stream) write(p []byte) bool {
	if st.Gzip {
		made := make(chan []byte)
		go func(p []byte) { made <- reply.Member(p) }(p)
		p = <-made
	}
	_, err := st.W.Write(p)
	return err == nil
}

func (st *Stream) bookmark(rev int64, initialEnd bool) bool {
	data, err := st.Form.Bookmark(rev, initialEnd)
	if err != nil {
		return false
	}
	st.count(data, false)
	st.buf = append(st.buf, data...)
	return st.flush()
}

// fail ends the stream with an error event.
func (st *Stream) fail(err error) {
	if data, err := st.Form.Error(err); err == nil {
		st.buf = append(st.buf, data...)
		st.flush()
	}
}
