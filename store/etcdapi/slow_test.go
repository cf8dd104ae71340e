package etcdapi

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Clients that do not read what they watch cost a batch and a window each, not
// what they have missed, and delay nobody. When history is compacted they are
// told so.
func TestSlowWatchersCostBoundedMemoryAndDelayNobody(t *testing.T) {
	const slow, puts = 10, 400
	value := strings.Repeat("x", 100<<10) // 40 MB of events for each watch, 400 together
	c, srv, _ := connect(t)
	ctx := t.Context()
	fast := dial(t, srv.url, nil).Watch(ctx, "k")
	if _, err := c.Put(ctx, "k", "warm"); err != nil {
		t.Fatal(err)
	}
	<-fast
	var streams []pb.Watch_WatchClient
	for range slow {
		conn := dial(t, srv.url, nil).ActiveConnection()
		stream, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}
		if err := stream.Send(create); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil { // created; nothing is read from here on
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	before := heap()
	var took []time.Duration
	for i := range puts {
		start := time.Now()
		rev := must(c.Put(ctx, "k", value)).Header.Revision
		if r := <-fast; r.Err() != nil || r.Events[0].Kv.ModRevision != rev {
			t.Fatalf("put %d: the fast watch gets %+v", i, r)
		}
		took = append(took, time.Since(start))
		if i%10 == 9 {
			if _, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The store's own history is at most ten values and what is not swept yet.
	grown := heap() - before
	slices.Sort(took)
	t.Logf("%d watches behind by %d MB each hold %d MB together; a put is heard of in %v, 99 of 100 in %v",
		slow, puts*len(value)>>20, grown>>20, took[puts/2], took[puts*99/100])
	if limit := int64(slow*8<<20 + 20<<20); grown > limit {
		t.Errorf("the heap grew by %d MB", grown>>20)
	}
	for i, stream := range streams {
		if err := untilCompacted(ctx, stream); err != nil {
			t.Errorf("slow watch %d: %v", i, err)
		}
	}
}

// untilCompacted reads a stream to the message that its watch was compacted;
// what comes before must be in order.
func untilCompacted(ctx context.Context, stream pb.Watch_WatchClient) error {
	last := int64(0)
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, ev := range r.Events {
			if last != 0 && ev.Kv.ModRevision != last+1 {
				return fmt.Errorf("revision %d after %d", ev.Kv.ModRevision, last)
			}
			last = ev.Kv.ModRevision
		}
		if r.Canceled {
			if r.CompactRevision <= last {
				return fmt.Errorf("canceled at %d with compact revision %d: %s", last, r.CompactRevision, r.CancelReason)
			}
			return nil
		}
	}
}
