package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/hub"
	"github.com/skiff-project/skiff/store/mvcc"
)

// pageKeys is how many keys are listed at a time.
const pageKeys = 1000

// list makes the mirror anew: from a list at the oldest revision that etcd and
// the bound on history allow; the watch brings the rest.
func (s *Store) list(ctx context.Context) error {
	var core *mvcc.Core
	now, err := s.revision(ctx)
	base := max(1, now-int64(s.opt.HistoryEvents)/2)
	for try := 0; try < 3 && err == nil; try++ {
		if core, now, err = s.load(ctx, base); !errors.Is(err, store.ErrCompacted) {
			break
		}
		base, err = retry(ctx, s, s.compacted)
	}
	if err == nil && core == nil {
		err = fmt.Errorf("etcd %v was compacted three times while its keys were being listed", s.opt.Endpoints)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core, s.target = core, now
	s.show()
	return nil
}

// load returns a core with the mirrored keys as they were at revision rev, and
// etcd's newest revision. Versions the mirror holds are not made again.
func (s *Store) load(ctx context.Context, rev int64) (core *mvcc.Core, now int64, err error) {
	core, have := mvcc.NewAt(rev, s.opt.Decorate, s.opt.Index), s.hub.View()
	key, end := s.outer("\x00"), "\x00"
	if s.opt.Prefix != "" {
		key, end = s.opt.Prefix, hub.PrefixEnd(s.opt.Prefix)
	}
	for {
		page, err := retry(ctx, s, func(ctx context.Context) (*pb.RangeResponse, error) {
			return s.kv.Range(ctx, &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Revision: rev, Limit: pageKeys})
		})
		if err != nil {
			return nil, 0, err
		}
		for _, kv := range page.Kvs {
			core.AddBase(s.version(have, kv))
			key = string(kv.Key) + "\x00"
		}
		if !page.More {
			return core, page.Header.Revision, nil
		}
	}
}

// compacted asks for etcd's compact revision, which only a refused watch tells.
func (s *Store) compacted(ctx context.Context) (int64, error) {
	stream, err := s.open(ctx, 1)
	for err == nil {
		var resp *pb.WatchResponse
		if resp, err = stream.Recv(); err == nil && resp.CompactRevision > 0 {
			return resp.CompactRevision, nil
		}
	}
	return 0, err
}

// open watches everything etcd holds from a revision on.
func (s *Store) open(ctx context.Context, rev int64) (pb.Watch_WatchClient, error) {
	// A member that has lost its leader ends the watch instead of falling silent.
	stream, err := s.watch.Watch(clientv3.WithRequireLeader(ctx))
	if err != nil {
		return nil, err
	}
	create := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: rev}
	return stream, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
}

// run keeps the mirror going until the store is closed.
func (s *Store) run() {
	healthy := true
	for s.ctx.Err() == nil {
		before := s.hub.View().Revision()
		err := s.follow()
		if errors.Is(err, errLost) {
			s.opt.Log.Warn("etcd: the mirror is made anew from a list; watchers must list again", "err", err)
			err = s.list(s.ctx)
		}
		if moved := s.hub.View().Revision() > before; err == nil || moved {
			healthy = true
		} else if healthy && s.ctx.Err() == nil {
			healthy = false
			s.opt.Log.Warn("etcd: the watch has ended; trying again until it works", "endpoints", s.opt.Endpoints, "err", err)
		}
		select {
		case <-time.After(retryPause):
		case <-s.ctx.Done():
		}
	}
}

// follow opens a watch where the mirror ends and applies what it brings, until
// the watch ends.
func (s *Store) follow() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.index.Lock()
	s.index.watch++
	s.index.cancel = cancel
	s.index.Unlock()
	s.mu.Lock()
	if s.core == nil {
		s.mu.Unlock()
		return errLost
	}
	rev := s.core.Revision()
	s.mu.Unlock()
	stream, err := s.open(ctx, rev+1)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case resp.CompactRevision > 0:
			return fmt.Errorf("%w: revision %d is wanted, but etcd was compacted at %d", errLost, rev+1, resp.CompactRevision)
		case resp.Canceled:
			return fmt.Errorf("etcd ended the watch: %s", resp.CancelReason)
		}
		if err := s.apply(resp.Events); err != nil {
			return err
		}
	}
}

// apply brings the mirror forward by whole revisions.
func (s *Store) apply(events []*mvccpb.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core == nil {
		return errLost
	}
	for len(events) > 0 {
		rev, n := events[0].Kv.ModRevision, 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		if rev > s.core.Revision() { // else known already
			if err := s.core.Follow(rev, s.events(events[:n])); err != nil {
				s.core = nil
				return fmt.Errorf("%w: %w", errLost, err)
			}
		}
		events = events[n:]
	}
	s.core.Trim(s.opt.HistoryEvents, s.opt.HistoryBytes)
	s.show()
	return nil
}

// events translates those of mirrored keys.
func (s *Store) events(events []*mvccpb.Event) []store.Event {
	var out []store.Event
	for _, ev := range events {
		if !strings.HasPrefix(string(ev.Kv.Key), s.opt.Prefix) {
			continue
		}
		typ := store.EventPut
		if ev.Type == mvccpb.Event_DELETE {
			typ = store.EventDelete
		}
		out = append(out, store.Event{Type: typ, KV: s.translate(ev.Kv)})
	}
	return out
}

// version returns the version kv, the one of v if v holds it.
func (s *Store) version(v *mvcc.View, kv *mvccpb.KeyValue) *store.KV {
	if have := v.Version(s.inner(kv.Key), kv.ModRevision); have != nil {
		return have
	}
	out := s.translate(kv)
	if s.opt.Decorate != nil {
		out.Attrs = s.opt.Decorate(out.Key, out.Value)
	}
	return out
}

// translate leaves out the Attrs.
func (s *Store) translate(kv *mvccpb.KeyValue) *store.KV {
	return &store.KV{
		Key: s.inner(kv.Key), Value: kv.Value, Version: kv.Version, Lease: store.LeaseID(kv.Lease),
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
}

// inner is the store's name of a key of etcd.
func (s *Store) inner(key []byte) string {
	if rest, ok := strings.CutPrefix(string(key), s.opt.Prefix); ok {
		return s.opt.Root + rest
	}
	return string(key)
}

// outer is etcd's name of a key.
func (s *Store) outer(key string) string {
	if rest, ok := strings.CutPrefix(key, s.opt.Root); ok {
		return s.opt.Prefix + rest
	}
	return key
}

// outerEnd is etcd's name of the end of a range.
func (s *Store) outerEnd(end string) string {
	if s.opt.Root != "" && end == hub.PrefixEnd(s.opt.Root) {
		return hub.PrefixEnd(s.opt.Prefix)
	}
	return s.outer(end)
}
