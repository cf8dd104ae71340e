package etcdapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	// server: each has a goroutine.
	maxWatches    = 100_000
	maxAllWatches = 1_000_000
	// noWatch is the ID of a response that belongs to no watch.
	noWatch = -1
)

// watchStream is one client's stream with its watches. Each watch has a
// goroutine that waits for events and sends them.
type watchStream struct {
	s      *Server
	ctx    context.Context
	stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	wg     sync.WaitGroup

	send sync.Mutex   // one message at a time
	sent atomic.Int64 // newest revision of an event sent

	mu      sync.Mutex // taken before send
	watches map[int64]*watch
	nextID  int64
	gate    gate
}

// watch is one watch of a stream.
type watch struct {
	ws       *watchStream
	id       int64
	w        store.Watcher
	prev     bool
	fragment bool
	noPut    bool
	noDelete bool
	periodic bool // tell progress now and then

	mu        sync.Mutex
	interrupt context.CancelFunc // ends the current wait
	poked     bool               // the next wait is to end at once
	notify    bool               // periodic progress is due
	sent      bool               // something was sent since the last tick

	canceled bool // guarded by ws.send: nothing more may be sent
}

// Watch implements pb.WatchServer.
func (w *watchServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	ws := &watchStream{s: w.s, ctx: ctx, stream: stream, watches: map[int64]*watch{}}
	ws.gate.cond = sync.NewCond(&ws.mu)
	defer ws.wg.Wait()
	defer cancel()
	ws.wg.Go(ws.tick)
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
			err = ws.requestProgress()
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
	w := &watch{ws: ws, prev: r.PrevKv, fragment: r.Fragment, periodic: r.ProgressNotify}
	for _, f := range r.Filters {
		w.noPut = w.noPut || f == pb.WatchCreateRequest_NOPUT
		w.noDelete = w.noDelete || f == pb.WatchCreateRequest_NODELETE
	}
	id, reason := ws.newID(r.WatchId)
	if reason != "" {
		return ws.refuse(reason)
	}
	w.id = id
	var err error
	w.w, err = ws.s.cfg.Store.Watch(ws.ctx, store.WatchRequest{Key: key, End: end, StartRevision: r.StartRevision})
	if err != nil && !errors.Is(err, store.ErrCompacted) {
		return toGRPC(err)
	}
	created := &pb.WatchResponse{Header: ws.s.now(), WatchId: id, Created: true}
	if sendErr := ws.sendMsg(created); sendErr != nil || err != nil {
		if w.w != nil {
			w.w.Close()
		}
		if sendErr == nil {
			sendErr = ws.sendMsg(ws.compacted(id))
		}
		return sendErr
	}
	ws.mu.Lock()
	ws.watches[id] = w
	w.poked = ws.gate.barrier != nil
	ws.mu.Unlock()
	ws.wg.Go(w.run)
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
	w := ws.remove(id)
	if w == nil {
		return nil
	}
	w.w.Close()
	ws.send.Lock()
	defer ws.send.Unlock()
	w.canceled = true
	return ws.stream.Send(&pb.WatchResponse{Header: ws.s.now(), WatchId: id, Canceled: true})
}

func (ws *watchStream) remove(id int64) *watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.watches[id]
	if w == nil {
		return nil
	}
	delete(ws.watches, id)
	if b := ws.gate.barrier; b != nil {
		delete(b.parked, w)
		ws.settle() // an error ends the stream at its next message
		ws.gate.cond.Broadcast()
	}
	return w
}

// run sends a watch's events until it ends.
func (w *watch) run() {
	w.ws.s.watches.Add(1)
	defer w.ws.s.watches.Add(-1)
	defer w.w.Close()
	for {
		ctx, stop := w.wait()
		b, err := w.w.Next(ctx)
		interrupted := ctx.Err() != nil
		stop()
		if err == nil {
			err = w.sendBatch(b)
		}
		switch {
		case err == nil || interrupted && w.ws.ctx.Err() == nil && errors.Is(err, context.Canceled):
			if w.reportProgress() != nil {
				return
			}
		default:
			w.end(err)
			return
		}
	}
}

// wait returns the context of the next wait for events, which poke ends.
func (w *watch) wait() (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(w.ws.ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interrupt = stop
	if w.poked {
		w.poked = false
		stop()
	}
	return ctx, stop
}

// poke makes the watch's goroutine look up, now or before its next wait. The
// caller holds w.mu.
func (w *watch) poke() {
	w.poked = true
	if w.interrupt != nil {
		w.interrupt()
	}
}

// end tells the client why a watch ends by itself.
func (w *watch) end(err error) {
	w.ws.remove(w.id)
	switch {
	case w.ws.ctx.Err() != nil:
	case errors.Is(err, store.ErrCompacted):
		w.sendMsg(w.ws.compacted(w.id))
	case status.Code(toGRPC(err)) == codes.Unavailable:
		// The store has stopped and the server goes with it: clients resume on
		// a stream that breaks, but would give up a watch that is canceled.
	default:
		w.sendMsg(&pb.WatchResponse{Header: w.ws.s.now(), WatchId: w.id, Canceled: true, CancelReason: toGRPC(err).Error()})
	}
}

// sendMsg sends a message of this watch, unless it has been canceled.
func (w *watch) sendMsg(resp *pb.WatchResponse) error {
	w.ws.send.Lock()
	defer w.ws.send.Unlock()
	if w.canceled {
		return nil
	}
	return w.ws.stream.Send(resp)
}

func (w *watch) sendBatch(b store.Batch) error {
	events := make([]*mvccpb.Event, 0, len(b.Events))
	for _, ev := range b.Events {
		if (ev.Type == store.EventPut && w.noPut) || (ev.Type == store.EventDelete && w.noDelete) {
			continue
		}
		out := &mvccpb.Event{Kv: toPB(ev.KV)}
		if ev.Type == store.EventDelete {
			out.Type = mvccpb.Event_DELETE
		}
		if w.prev {
			out.PrevKv = toPB(ev.Prev)
		}
		events = append(events, out)
	}
	if len(events) == 0 {
		return nil
	}
	w.mu.Lock()
	w.sent = true
	w.mu.Unlock()
	w.ws.raiseSent(b.Revision)
	resp := &pb.WatchResponse{Header: w.ws.s.header(b.Revision), WatchId: w.id, Events: events}
	limit := w.ws.s.cfg.MaxRequestBytes + messageOverhead
	if !w.fragment || proto.Size(resp) < limit {
		return w.sendMsg(resp)
	}
	return w.sendFragments(resp, limit)
}

// raiseSent notes the newest revision the stream has told of.
func (ws *watchStream) raiseSent(rev int64) {
	for {
		old := ws.sent.Load()
		if rev <= old || ws.sent.CompareAndSwap(old, rev) {
			return
		}
	}
}

// sendFragments sends a response in parts of at most limit bytes, at least
// one event each; no other response comes between them.
func (w *watch) sendFragments(whole *pb.WatchResponse, limit int) error {
	w.ws.send.Lock()
	defer w.ws.send.Unlock()
	for events := whole.Events; len(events) > 0 && !w.canceled; {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size+proto.Size(events[n]) < limit) {
			size += proto.Size(events[n])
			n++
		}
		part := &pb.WatchResponse{Header: whole.Header, WatchId: w.id, Events: events[:n], Fragment: n < len(events)}
		if err := w.ws.stream.Send(part); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}
