package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/skiff-project/skiff/store"
)

// A client takes a stream's progress at revision R to mean that it has seen
// every event up to R, and none after. So run goes about in passes: each has a
// revision, and what it sends is up to there. After a pass over all watches
// in which none is left behind, that revision is the stream's progress.

// rouse lets a watch be looked at in the next pass; nil asks for progress.
func (ws *watchStream) rouse(w *watch) {
	ws.list.Lock()
	if w == nil {
		ws.asked = true
	} else {
		ws.ready = append(ws.ready, w)
	}
	ws.list.Unlock()
	select {
	case ws.bell <- struct{}{}:
	default:
	}
}

// run sends what the watches have until the stream ends. An error in sending
// ends it.
func (ws *watchStream) run() {
	ticker := ws.s.cfg.Clock.NewTicker(ws.s.cfg.ProgressInterval)
	defer ticker.Stop()
	for err := error(nil); err == nil; {
		select {
		case <-ws.ctx.Done():
			return
		case <-ticker.C():
			err = ws.tick()
		case <-ws.bell:
			err = ws.pass()
		}
	}
}

// pass lets the watches that are ready send what they have, once each; all
// watches if progress was asked for.
func (ws *watchStream) pass() error {
	ws.list.Lock()
	list, asked := ws.ready, ws.asked
	ws.ready, ws.asked = ws.spare[:0], false
	ws.list.Unlock()
	if asked {
		list = ws.all(list[:0])
	}
	// If the store has stopped, each Poll says so too.
	upTo := int64(0)
	if snap, err := ws.s.cfg.Store.Snapshot(ws.ctx, store.Local); err == nil {
		upTo = snap.Revision()
	}
	for _, w := range list {
		if err := w.step(upTo); err != nil {
			return err
		}
	}
	ws.last = shared{} // else an idle stream would hold on to it
	clear(list)
	ws.spare = list
	if asked {
		return ws.sendProgress(upTo)
	}
	return nil
}

// step sends the watch's next events up to a revision.
func (w *watch) step(upTo int64) error {
	b, more, err := w.w.Poll(upTo)
	if err != nil {
		return w.end(err)
	}
	if err := w.sendBatch(b); err != nil {
		return err
	}
	w.seen = max(w.seen, b.Revision)
	if more {
		w.ws.rouse(w)
	}
	return nil
}

// sendProgress tells the progress of the whole stream after a pass, if no
// watch is behind; else it is asked for again, as those are ready again. No
// watch begins meanwhile.
func (ws *watchStream) sendProgress(rev int64) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.watches {
		if w.seen < rev {
			ws.list.Lock()
			ws.asked = true
			ws.list.Unlock()
			return nil
		}
	}
	if len(ws.watches) == 0 { // as etcd: there is nothing to tell of
		return nil
	}
	return ws.sendMsg(&pb.WatchResponse{Header: ws.s.header(rev), WatchId: noWatch})
}

// tick lets idle watches that asked for it report their progress.
func (ws *watchStream) tick() error {
	for _, w := range ws.all(nil) {
		if w.periodic && !w.sent {
			if err := w.sendMsg(&pb.WatchResponse{Header: ws.s.header(w.w.Progress()), WatchId: w.id}); err != nil {
				return err
			}
		}
		w.sent = false
	}
	return nil
}
