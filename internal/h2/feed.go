package h2

import (
	"net/http"
	"sync"
	"sync/atomic"
)

// Feed lets the connection write a long answer in place of its handler: what
// a thousand streams are to be told of would else wake a thousand goroutines.
type Feed struct {
	st     *stream
	step   func()
	roused atomic.Bool // in feeds.roused
}

// feeds are a connection's that have something to do.
type feeds struct {
	mu      sync.Mutex // held for a moment only
	roused  []*Feed
	spare   []*Feed // what roused is next; the goroutine's
	running bool
}

// NewFeed returns a feed of an answer whose header fields have been flushed,
// or nil if w is not this package's. After Rouse, step is called by one
// goroutine for all feeds of the connection, and what they wrote is sent when
// each has had its turn. It must not panic, nor wait for other than TryWrite.
func NewFeed(w http.ResponseWriter, step func()) *Feed {
	for {
		switch t := w.(type) {
		case *response:
			if !t.sent || t.ended || t.has.length {
				return nil
			}
			return &Feed{st: t.st, step: step}
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return nil
		}
	}
}

// Rouse has step called soon, at least once after this call. It does not wait.
func (f *Feed) Rouse() {
	if f.roused.Swap(true) {
		return
	}
	c := f.st.c
	c.feeds.mu.Lock()
	defer c.feeds.mu.Unlock()
	if c.feeds.roused = append(c.feeds.roused, f); !c.feeds.running {
		c.feeds.running = true
		go c.feed()
	}
}

// TryWrite adds p to the answer if the client takes all of it at once, in one
// frame. If not, it is for the handler to write, which learns why. Only step
// calls it, and only while the handler does not write. It waits for nothing
// but the connection, which all feeds share.
func (f *Feed) TryWrite(p []byte) bool {
	st, c := f.st, f.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.waitForRoom() != nil || int64(len(p)) > min(int64(c.peerFrame), st.sendWindow, c.sendWindow) {
		return false
	}
	st.addData(p, 0)
	return true
}

// feed lets the feeds that are roused have their turns until none is left.
func (c *conn) feed() {
	for {
		c.feeds.mu.Lock()
		list := c.feeds.roused
		if c.feeds.running = len(list) > 0; !c.feeds.running {
			c.feeds.mu.Unlock()
			return
		}
		c.feeds.roused = c.feeds.spare[:0]
		c.feeds.mu.Unlock()
		for _, f := range list {
			f.roused.Store(false)
			f.step()
		}
		c.mu.Lock()
		c.write()
		c.mu.Unlock()
		clear(list)
		c.feeds.spare = list
	}
}
