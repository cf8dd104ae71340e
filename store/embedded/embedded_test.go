package embedded

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

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
	for _, writers := range []int{1, 1000} {
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
