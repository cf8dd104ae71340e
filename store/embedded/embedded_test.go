package embedded

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
)

func open(t testing.TB, opt Options) *Store {
	t.Helper()
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(key, value string) store.Txn {
	return store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Value: []byte(value)}}}
}

func TestConcurrentPutsAndWatch(t *testing.T) {
	s := open(t, Options{})
	ctx := t.Context()
	w, err := s.Watch(ctx, store.WatchRequest{Key: "/a/", End: "/a0"})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 16, 200
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				if _, err := s.Txn(ctx, put(fmt.Sprintf("/a/%d-%d", i, j), "v")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	last := int64(1)
	for n := 0; n < writers*each; {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range b.Events {
			if ev.KV.ModRevision != last+1 {
				t.Fatalf("revision %d after %d", ev.KV.ModRevision, last)
			}
			last++
			n++
		}
	}
	wg.Wait()
	snap, _ := s.Snapshot(ctx, 0)
	if got := snap.Count("/a/", "/a0"); got != writers*each {
		t.Errorf("%d keys, want %d", got, writers*each)
	}
	if got := w.Progress(); got != last {
		t.Errorf("progress %d, want %d", got, last)
	}
}

func TestCloseEndsBlockedCalls(t *testing.T) {
	s := open(t, Options{})
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	go func() {
		_, err := w.Next(context.Background())
		errs <- err
	}()
	s.Close()
	if err := <-errs; !errors.Is(err, store.ErrClosed) {
		t.Errorf("Next: %v, want ErrClosed", err)
	}
	if _, err := s.Txn(t.Context(), put("k", "v")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Txn: %v, want ErrClosed", err)
	}
}

// A batch is bounded in bytes, whatever the values' size, from history and
// from the feed, and no revision is lost or split for that.
func TestWatchBatchesAreBoundedInBytes(t *testing.T) {
	s := open(t, Options{QuotaBytes: 1 << 30})
	ctx := t.Context()
	feed, err := s.Watch(ctx, store.WatchRequest{Key: "k", End: "l"})
	if err != nil {
		t.Fatal(err)
	}
	value := string(make([]byte, 300<<10))
	for range 20 {
		if _, err := s.Txn(ctx, store.Txn{Then: []store.Op{
			{Kind: store.OpPut, Key: "k1", Value: []byte(value)}, {Kind: store.OpPut, Key: "k2", Value: []byte(value)},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	history, err := s.Watch(ctx, store.WatchRequest{Key: "k", End: "l", StartRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, w := range map[string]store.Watcher{"feed": feed, "history": history} {
		next := int64(2)
		for next <= 21 {
			b, err := w.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Events) > 6 || len(b.Events)%2 != 0 {
				t.Fatalf("%s: %d events of 300 KiB in a batch", name, len(b.Events))
			}
			for i := 0; i < len(b.Events); i += 2 {
				if b.Events[i].KV.ModRevision != next || b.Events[i+1].KV.ModRevision != next {
					t.Fatalf("%s: revisions %d, %d, want %d", name, b.Events[i].KV.ModRevision, b.Events[i+1].KV.ModRevision, next)
				}
				next++
			}
		}
	}
}

// jumpingClock is the real clock with the time of day set wrong by so many
// seconds. What setting a computer's clock leaves alone, the monotonic reading
// in each time.Time, it leaves alone.
type jumpingClock struct {
	clock.RealClock
	seconds atomic.Int64
}

func (c *jumpingClock) Now() time.Time {
	t := time.Now()
	// The first word of a time.Time: 1 bit "monotonic", 33 bits of seconds, 30 of nanoseconds.
	*(*uint64)(unsafe.Pointer(&t)) += uint64(c.seconds.Load()) << 30
	return t
}

func TestSettingTheClockEndsNoLease(t *testing.T) {
	for _, hours := range []int64{1, -1} {
		c := &jumpingClock{}
		before := c.Now()
		s := open(t, Options{Clock: c})
		if _, err := s.Leases().Grant(t.Context(), 1, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "k", Lease: 1}}}); err != nil {
			t.Fatal(err)
		}
		c.seconds.Store(hours * 3600)
		if got := c.Now().Round(0).Sub(before.Round(0)).Round(time.Hour); got != time.Duration(hours)*time.Hour {
			t.Fatalf("the clock jumped by %v: this test does not test", got)
		}
		if _, err := s.Leases().Grant(t.Context(), 2, 3600); err != nil { // makes the lessor look at the clock
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		if l, err := s.Leases().TimeToLive(t.Context(), 1); err != nil || l.Remaining < 1 || l.Remaining > 3 {
			t.Errorf("jump of %d h: %+v, %v", hours, l, err)
		}
		w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k", StartRevision: 3})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := w.Next(t.Context()); err != nil || b.Events[0].Type != store.EventDelete {
			t.Errorf("jump of %d h: the lease ends with %+v, %v", hours, b, err)
		}
		if took := time.Since(before); took < 3*time.Second || took > 30*time.Second {
			t.Errorf("jump of %d h: a lease of 3 s ended after %v", hours, took)
		}
		if _, err := s.Leases().TimeToLive(t.Context(), 2); err != nil {
			t.Errorf("jump of %d h: a lease of an hour: %v", hours, err)
		}
	}
}

func BenchmarkPutMemory(b *testing.B) {
	s := open(b, Options{})
	val := make([]byte, 256)
	keys := make([]string, 10000)
	for i := range keys {
		keys[i] = fmt.Sprintf("/registry/pods/default/pod-%06d", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Txn(context.Background(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: keys[i%len(keys)], Value: val}}})
	}
}

// BenchmarkPutDurable reports CPU time, which other load on the machine does
// not change much, beside the wall clock.
func BenchmarkPutDurable(b *testing.B) {
	for _, writers := range []int{1, 256, 1000} {
		b.Run(fmt.Sprint(writers, "writers"), func(b *testing.B) {
			s := open(b, Options{Dir: b.TempDir()})
			val := make([]byte, 256)
			b.ReportAllocs()
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for i := w; i < b.N; i += writers {
						key := fmt.Sprintf("/registry/pods/default/pod-%06d", i%100000)
						if _, err := s.Txn(context.Background(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Value: val}}}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/1000/float64(b.N), "cpu-µs/op")
		})
	}
}
