package etcdapi

import (
	"context"
	"errors"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
)

type watchServer struct {
	pb.UnimplementedWatchServer
	s *Server
}

const (
	// maxWatches bounds the watches of one stream, maxAllWatches those of the
	// server.
	maxWatches    = 100_000
	maxAllWatches = 1_000_000
	// noWatch is the ID of a response that belongs to no watch.
	noWatch = -1
)

// watchStream is one client's stream with its watches. One goroutine, run,
// sends all their events: what makes a watch ready only puts it into a list.
type watchStream struct {
	s      *Server
	ctx    context.Context
	stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]

	send sync.Mutex // one message at a time

	mu      sync.Mutex // taken before send and list
	watches map[int64]*watch
	nextID  int64

	list  sync.Mutex // taken by commits: held for a moment only
	ready []*watch   // those that may have something to send; each about once
	asked bool       // for the progress of the whole stream
	bell  chan struct{}

	// Only run's:
	spare []*watch // what ready is next
	last  shared
	out   encoded // being sent
}

// watch is one watch of a stream.
type watch struct {
	ws       *watchStream
	id       int64
	w        store.Watcher
	view     eventView
	fragment bool
	periodic bool       // tell progress now and then
	tail     mem.Buffer // the encoded ID

	seen int64 // every event up to here was sent; only run's
	sent bool  // something was sent since the last tick; only run's

	told     bool // the client knows of it; guarded by ws.mu
	canceled bool // guarded by ws.send: nothing more may be sent
}

// eventView is what a watch wants to see of its events.
type eventView struct{ prev, noPut, noDelete bool }

// Watch implements pb.WatchServer.
func (w *watchServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	ws := &watchStream{s: w.s, ctx: ctx, stream: stream, watches: map[int64]*watch{}, bell: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	defer ws.closeAll()
	defer wg.Wait()
	defer cancel()
	wg.Go(ws.run)
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			<-ctx.Done() // who asks no more may still listen
			return rpctypes.ErrGRPCWatchCanceled
		}
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = ws.create(r.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = ws.cancel(r.CancelRequest.GetWatchId())
		case *pb.WatchRequest_ProgressRequest:
			ws.rouse(nil)
		}
		if err != nil {
			return err
		}
	}
}

func (ws *watchStream) sendMsg(resp *pb.WatchResponse) error {
	ws.send.Lock()
	defer ws.send.Unlock()
	return ws.stream.Send(resp)
}

// refuse answers a create request that cannot be served.
func (ws *watchStream) refuse(reason string) error {
	return ws.sendMsg(&pb.WatchResponse{Header: ws.s.now(), WatchId: noWatch, Created: true, Canceled: true, CancelReason: reason})
}

func (ws *watchStream) create(r *pb.WatchCreateRequest) error {
	key, end := string(r.Key), string(r.RangeEnd)
	if key == "" {
		key = "\x00"
	}
	if r.StartRevision < 0 {
		return ws.refuse(rpctypes.ErrCompacted.Error())
	}
	if end != "" && end != "\x00" && end <= key {
		return ws.refuse("mvcc: watcher range is empty")
	}
	if err := ws.s.access.permitWatch(ws.ctx, key, end); err != nil {
		return ws.refuse(err.Error())
	}
	w := &watch{ws: ws, view: eventView{prev: r.PrevKv}, fragment: r.Fragment, periodic: r.ProgressNotify}
	for _, f := range r.Filters {
		w.view.noPut = w.view.noPut || f == pb.WatchCreateRequest_NOPUT
		w.view.noDelete = w.view.noDelete || f == pb.WatchCreateRequest_NODELETE
	}
	id, reason := ws.newID(r.WatchId)
	if reason != "" {
		return ws.refuse(reason)
	}
	w.id, w.tail = id, encodeID(id)
	header := ws.s.now() // from before, as a client that resumes asks for what came after
	var err error
	w.w, err = ws.s.cfg.Store.Watch(ws.ctx, store.WatchRequest{
		Key: key, End: end, StartRevision: r.StartRevision, Wake: func() { ws.rouse(w) },
	})
	compacted := errors.Is(err, store.ErrCompacted)
	if err != nil && !compacted {
		return toGRPC(err)
	}
	created := &pb.WatchResponse{Header: header, WatchId: id, Created: true}
	if compacted {
		if err := ws.sendMsg(created); err != nil {
			return err
		}
		return ws.sendMsg(ws.compacted(id))
	}
	// Before the client is told: no progress that the watch has not made may
	// reach it after that.
	ws.mu.Lock()
	ws.watches[id] = w
	ws.mu.Unlock()
	ws.s.watches.Add(1)
	if err := ws.sendMsg(created); err != nil {
		ws.remove(w)
		return err
	}
	ws.mu.Lock()
	w.told = true
	ws.mu.Unlock()
	ws.rouse(w)
	return nil
}

// newID returns the ID asked for, or chosen; or why there is none.
func (ws *watchStream) newID(want int64) (id int64, reason string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.watches) >= maxWatches || ws.s.watches.Load() >= maxAllWatches {
		return 0, "etcdserver: too many watches"
	}
	if want != 0 {
		if ws.watches[want] != nil {
			return 0, "mvcc: duplicate watch ID provided on the WatchStream"
		}
		return want, ""
	}
	for ws.watches[ws.nextID] != nil {
		ws.nextID++
	}
	ws.nextID++
	return ws.nextID - 1, ""
}

// compacted tells that a watch has lost its place.
func (ws *watchStream) compacted(id int64) *pb.WatchResponse {
	return &pb.WatchResponse{Header: ws.s.header(0), WatchId: id, Canceled: true, CompactRevision: ws.s.cfg.Store.Status().CompactRevision}
}

func (ws *watchStream) cancel(id int64) error {
	ws.mu.Lock()
	w := ws.watches[id]
	ws.mu.Unlock()
	if w == nil || !ws.remove(w) {
		return nil
	}
	ws.send.Lock()
	defer ws.send.Unlock()
	w.canceled = true
	return ws.stream.Send(&pb.WatchResponse{Header: ws.s.now(), WatchId: id, Canceled: true})
}

// remove ends a watch and reports whether it was there.
func (ws *watchStream) remove(w *watch) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.watches[w.id] != w {
		return false
	}
	delete(ws.watches, w.id)
	w.w.Close()
	ws.s.watches.Add(-1)
	return true
}

func (ws *watchStream) closeAll() {
	for _, w := range ws.all(nil) {
		ws.remove(w)
	}
}

// all appends the watches the client knows of to list.
func (ws *watchStream) all(list []*watch) []*watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.watches {
		if w.told {
			list = append(list, w)
		}
	}
	return list
}

// end tells the client why a watch ends by itself.
func (w *watch) end(err error) error {
	switch {
	case !w.ws.remove(w):
	case errors.Is(err, store.ErrCompacted):
		return w.sendMsg(w.ws.compacted(w.id))
	case status.Code(toGRPC(err)) == codes.Unavailable:
		// The store has stopped and the server goes with it: clients resume on
		// a stream that breaks, but would give up a watch that is canceled.
	default:
		return w.sendMsg(&pb.WatchResponse{Header: w.ws.s.now(), WatchId: w.id, Canceled: true, CancelReason: toGRPC(err).Error()})
	}
	return nil
}

// sendMsg sends a message of this watch, unless it has been canceled.
func (w *watch) sendMsg(resp any) error {
	w.ws.send.Lock()
	defer w.ws.send.Unlock()
	if w.canceled {
		return nil
	}
	return w.ws.stream.SendMsg(resp)
}

// sendBatch sends events, in parts if the watch wants that of large ones.
func (w *watch) sendBatch(b store.Batch) error {
	ws := w.ws
	if len(b.Events) == 0 {
		return nil
	}
	if !ws.last.is(b, w.view) {
		var err error
		if ws.last, err = share(b, w.view, ws.s.header(b.Revision)); err != nil {
			return err
		}
	}
	if ws.last.events == nil {
		return nil
	}
	w.sent = true
	limit := ws.s.cfg.MaxRequestBytes + messageOverhead
	if w.fragment && ws.last.data.Len()+w.tail.Len() >= limit {
		return w.sendFragments(ws.last.events, ws.s.header(b.Revision), limit)
	}
	ws.out.data = mem.BufferSlice{ws.last.data, w.tail}
	return w.sendMsg(&ws.out)
}

// sendFragments sends events in responses of at most limit bytes, at least one
// event each; no other response comes between them.
func (w *watch) sendFragments(events []*mvccpb.Event, header *pb.ResponseHeader, limit int) error {
	w.ws.send.Lock()
	defer w.ws.send.Unlock()
	for len(events) > 0 && !w.canceled {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size+proto.Size(events[n]) < limit) {
			size += proto.Size(events[n])
			n++
		}
		part := &pb.WatchResponse{Header: header, WatchId: w.id, Events: events[:n], Fragment: n < len(events)}
		if err := w.ws.stream.Send(part); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}
