package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

const (
	// tryTime bounds one attempt to read, and how long the mirror may stand
	// still while it is behind. A member that hangs costs that much.
	tryTime = time.Second
	// readTime bounds all attempts together, and how long a reader waits for a
	// mirror that stands still.
	readTime = 10 * time.Second
	// retryPause is between two attempts.
	retryPause = 50 * time.Millisecond
)

// index finds out how new etcd is and tells how far the mirror is.
type index struct {
	sync.Mutex
	asking bool
	next   *question // those who ask after the present one was sent
	moved  chan struct{}
	watch  int                // counts watches of the mirror
	cancel context.CancelFunc // ends the present one
	at     atomic.Int64       // revision of the mirror, shown or not
}

// question is one read of etcd's revision, for any number of callers.
type question struct {
	done chan struct{}
	rev  int64
	err  error
}

// current returns a revision that is no older than what etcd had committed
// when it was called. Callers that come while a read is under way share the next.
func (s *Store) current(ctx context.Context) (int64, error) {
	s.index.Lock()
	q := s.index.next
	if q == nil {
		q = &question{done: make(chan struct{})}
		s.index.next = q
	}
	if !s.index.asking && s.ctx.Err() == nil {
		s.index.asking = true
		s.work.Go(s.ask)
	}
	s.index.Unlock()
	select {
	case <-q.done:
		return q.rev, q.err
	case <-ctx.Done():
		return 0, s.failure(ctx, ctx.Err(), false)
	case <-s.ctx.Done():
		return 0, store.ErrClosed
	}
}

// ask answers questions until there is none.
func (s *Store) ask() {
	for {
		s.index.Lock()
		q := s.index.next
		s.index.next = nil
		if q == nil {
			s.index.asking = false
			s.index.Unlock()
			return
		}
		s.index.Unlock()
		q.rev, q.err = s.revision(s.ctx)
		close(q.done)
	}
}

// revision reads etcd's newest revision: a linearizable read of no key.
func (s *Store) revision(ctx context.Context) (int64, error) {
	resp, err := retry(ctx, s, func(ctx context.Context) (*pb.RangeResponse, error) {
		had := s.hub.View().Revision()
		resp, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte(s.opt.Prefix + "\x00"), CountOnly: true})
		if err == nil && resp.Header.Revision < had {
			s.rewatch(-1, true)
			return nil, status.Errorf(codes.Unavailable, "etcd went back from revision %d to %d: was it restored from a snapshot?", had, resp.Header.Revision)
		}
		return resp, err
	})
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// retry reads until it works, etcd refuses, or readTime is over.
func retry[T any](ctx context.Context, s *Store, read func(context.Context) (T, error)) (T, error) {
	for end := time.Now().Add(readTime); ; {
		try, cancel := context.WithTimeout(ctx, tryTime)
		got, err := read(try)
		cancel()
		if err == nil {
			return got, nil
		}
		if !transient(err) || ctx.Err() != nil || s.ctx.Err() != nil || time.Now().After(end) {
			return got, s.failure(ctx, err, false)
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
}

// reach returns a view no older than rev, which etcd has committed, as soon as
// the mirror has it. A watch that does not move meanwhile is made anew: it may
// hang on a member that does.
func (s *Store) reach(ctx context.Context, rev int64) (*mvcc.View, error) {
	v := s.hub.View()
	if v.Revision() >= rev {
		return v, nil
	}
	tick := time.NewTicker(tryTime)
	defer tick.Stop()
	last, end := s.index.at.Load(), time.Now().Add(readTime)
	for {
		s.index.Lock()
		moved, watch := s.index.moved, s.index.watch
		s.index.Unlock()
		if v = s.hub.View(); v.Revision() >= rev {
			return v, nil
		}
		select {
		case <-moved:
			continue
		case <-tick.C:
		case <-ctx.Done():
			return nil, s.failure(ctx, ctx.Err(), false)
		case <-s.ctx.Done():
			return nil, store.ErrClosed
		}
		if at := s.index.at.Load(); at != last {
			last, end = at, time.Now().Add(readTime)
			continue
		}
		s.rewatch(watch, false)
		if time.Now().After(end) {
			return nil, fmt.Errorf("etcd %v is at revision %d, but its watch has come to %d only", s.opt.Endpoints, rev, last)
		}
	}
}

// rewatch ends the mirror's watch if it is still the given one (-1: in any
// case); run opens the next, which gRPC gives to another member if it can.
func (s *Store) rewatch(watch int, lost bool) {
	if lost {
		s.mu.Lock()
		s.core = nil
		s.mu.Unlock()
	}
	s.index.Lock()
	defer s.index.Unlock()
	if s.index.cancel != nil && (watch < 0 || watch == s.index.watch) {
		s.index.cancel()
	}
}

// show publishes the mirror's state once it is as new as it must be. The
// caller holds s.mu.
func (s *Store) show() {
	v := s.core.View()
	s.index.at.Store(v.Revision())
	switch {
	case s.target == 0:
		s.hub.Publish(v)
	case v.Revision() >= s.target:
		s.target = 0
		s.hub.Reset(v)
	default:
		return
	}
	s.index.Lock()
	close(s.index.moved)
	s.index.moved = make(chan struct{})
	s.index.Unlock()
}

var errLost = errors.New("the mirror has lost track")
