package etcdapi

import (
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A client takes a stream's progress at revision R to mean that it has seen
// every event up to R, and none after. Only a watch's own goroutine knows what
// it has sent; so for a progress report every goroutine of the stream stops
// between two sends, the report is sent, and they go on.

// maxRounds bounds how often a report waits for watches that others have
// overtaken; then the question stays unanswered, as etcd leaves it when a
// watch is behind. Clients ask again.
const maxRounds = 16

// barrier is a progress report in the making.
type barrier struct {
	target int64 // a watch stops once it has sent everything up to here
	parked map[*watch]bool
	rounds int
	again  bool // asked for again meanwhile
}

// gate is the part of a stream that makes progress reports. Guarded by the
// stream's mu, which cond uses.
type gate struct {
	cond    *sync.Cond
	barrier *barrier // under way, or nil
	closed  bool
}

// requestProgress begins a progress report.
func (ws *watchStream) requestProgress() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.gate.barrier != nil {
		ws.gate.barrier.again = true
		return nil
	}
	return ws.raise()
}

// raise stops the watches. The caller holds ws.mu.
func (ws *watchStream) raise() error {
	rev := ws.s.cfg.Store.Status().Revision
	if len(ws.watches) == 0 {
		return nil // as etcd: there is nothing to tell of
	}
	ws.gate.barrier = &barrier{target: rev, parked: map[*watch]bool{}}
	for _, w := range ws.watches {
		w.mu.Lock()
		w.poke()
		w.mu.Unlock()
	}
	return nil
}

// sendProgress tells the progress of the whole stream.
func (ws *watchStream) sendProgress(rev int64) error {
	return ws.sendMsg(&pb.WatchResponse{Header: ws.s.header(rev), WatchId: noWatch})
}

// park is called by the watch's goroutine between two sends. It returns when
// no report needs the watch to stand still.
func (ws *watchStream) park(w *watch) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for ws.gate.barrier != nil && !ws.gate.closed && ws.watches[w.id] == w {
		b := ws.gate.barrier
		if w.w.Progress() < b.target {
			return nil
		}
		b.parked[w] = true
		if err := ws.settle(); err != nil {
			return err
		}
		for ws.gate.barrier == b && b.parked[w] && !ws.gate.closed {
			ws.gate.cond.Wait()
		}
	}
	return nil
}

// settle sends the report if every watch stands still. If one has overtaken
// another, the ones behind go on to where the first is. The caller holds ws.mu.
func (ws *watchStream) settle() error {
	b := ws.gate.barrier
	if b == nil || len(b.parked) < len(ws.watches) {
		return nil
	}
	defer ws.gate.cond.Broadcast()
	sent, rev := ws.sent.Load(), ws.s.cfg.Store.Status().Revision
	for w := range b.parked {
		rev = min(rev, w.w.Progress())
	}
	if rev < sent && b.rounds < maxRounds {
		b.rounds++
		b.target = sent
		for w := range b.parked {
			if w.w.Progress() < sent {
				delete(b.parked, w)
			}
		}
		return nil
	}
	ws.gate.barrier = nil
	if rev >= sent {
		if err := ws.sendProgress(rev); err != nil {
			return err
		}
	}
	if b.again {
		return ws.raise()
	}
	return nil
}

// reportProgress is called by the watch's goroutine between two sends.
func (w *watch) reportProgress() error {
	w.mu.Lock()
	notify := w.notify
	w.notify = false
	w.mu.Unlock()
	if notify {
		if err := w.sendMsg(&pb.WatchResponse{Header: w.ws.s.header(w.w.Progress()), WatchId: w.id}); err != nil {
			return err
		}
	}
	return w.ws.park(w)
}

// tick lets idle watches that asked for it report their progress.
func (ws *watchStream) tick() {
	ticker := ws.s.cfg.Clock.NewTicker(ws.s.cfg.ProgressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ws.ctx.Done():
			ws.mu.Lock()
			ws.gate.closed = true
			ws.gate.cond.Broadcast()
			ws.mu.Unlock()
			return
		case <-ticker.C():
		}
		ws.mu.Lock()
		for _, w := range ws.watches {
			w.mu.Lock()
			if w.periodic && !w.sent {
				w.notify = true
				w.poke()
			}
			w.sent = false
			w.mu.Unlock()
		}
		ws.mu.Unlock()
	}
}
