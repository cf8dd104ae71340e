package storetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skiff-project/skiff/store"
)

func watchNow(e *env) {
	e.do(Put("a/0", "before"))
	w := e.watch("a/", "a0", 0)
	e.do(Put("b/1", "other"))
	e.do(Put("a/1", "1"))
	e.do(Put("a/1", "2"))
	e.do(Delete("a/", "a0"))
	events := w.events(4)
	e.equal("events", showEvents(events), []string{"a/1=1 4/4/1", "a/1=2 4/5/2", "a/0 deleted 6", "a/1 deleted 6"})
	e.equal("what they replaced", show(events[0].Prev, events[1].Prev, events[2].Prev, events[3].Prev),
		[]string{"none", "a/1=1 4/4/1", "a/0=before 2/2/1", "a/1=2 4/5/2"})
	w.nothing()
}

func watchHistory(e *env) {
	e.do(Put("a", "1"))
	e.do(Put("b", "1"))
	e.do(Put("a", "2"))
	w := e.watch("a", "c", 3)
	one := e.watch("a", "", 1)
	e.do(Delete("a", ""))
	w.expect("b=1 3/3/1", "a=2 2/4/2", "a deleted 5")
	one.expect("a=1 2/2/1", "a=2 2/4/2", "a deleted 5")
	all := e.watch("\x00", "\x00", 5)
	e.do(Put("z", "1"))
	all.expect("a deleted 5", "z=1 6/6/1")
}

func watchWhole(e *env) {
	w := e.watch("\x00", "\x00", 0)
	const revs, keys = 60, 100
	for range revs {
		ops := make([]store.Op, keys)
		for i := range ops {
			ops[i] = Put(fmt.Sprintf("k%03d", i), "")
		}
		e.do(ops...)
	}
	history := e.watch("\x00", "\x00", 2)
	for name, w := range map[string]*watch{"live": w, "history": history} {
		for seen := int64(1); seen < revs+1; {
			b, err := w.w.Next(e.ctx)
			if err != nil {
				e.Fatal(err)
			}
			if len(b.Events)%keys != 0 {
				e.Fatalf("%s: a batch splits a revision: %d events", name, len(b.Events))
			}
			for i, ev := range b.Events {
				if want := seen + 1 + int64(i/keys); ev.KV.ModRevision != want || ev.KV.Key != fmt.Sprintf("k%03d", i%keys) {
					e.Fatalf("%s: event %d is %s of revision %d, want revision %d", name, i, ev.KV.Key, ev.KV.ModRevision, want)
				}
			}
			seen += int64(len(b.Events) / keys)
		}
	}
}

func watchFuture(e *env) {
	w := e.watch("k", "", 4)
	e.do(Put("k", "2"))
	e.do(Put("k", "3"))
	w.nothing()
	e.do(Put("k", "4"))
	e.do(Put("k", "5"))
	w.expect("k=4 2/4/3", "k=5 2/5/4")
}

func watchCompacted(e *env) {
	for range 4 {
		e.do(Put("k", ""))
	}
	if err := e.s.Compact(e.ctx, 4); err != nil {
		e.Fatal(err)
	}
	_, err := e.s.Watch(e.ctx, store.WatchRequest{Key: "k", StartRevision: 3})
	e.wantErr("watch from 3", err, store.ErrCompacted)
	e.watch("k", "", 4).expect("k= 2/4/3", "k= 2/5/4")
}

func watchOvertaken(e *env) {
	w := e.watch("k", "", 0)
	history := e.watch("k", "", 1)
	idle := e.watch("other", "", 0)
	for range 5 {
		e.do(Put("k", ""))
	}
	if err := e.s.Compact(e.ctx, 5); err != nil {
		e.Fatal(err)
	}
	// An implementation may have fetched the events before they were gone:
	// either all of them come, in order, or the error.
	for _, w := range []*watch{w, history} {
		for next := int64(2); next <= 6; {
			b, err := w.w.Next(e.ctx)
			if err != nil {
				e.wantErr("Next", err, store.ErrCompacted)
				break
			}
			for _, ev := range b.Events {
				e.equal("revision", ev.KV.ModRevision, next)
				next++
			}
		}
	}
	e.do(Put("other", "1"))
	idle.expect("other=1 7/7/1")
}

func progress(e *env) {
	w := e.watch("k", "", 0)
	e.equal("at first", w.w.Progress(), 1)
	e.do(Put("other", "1"))
	e.equal("others' events", w.w.Progress(), 2)
	e.do(Put("k", "1"))
	e.do(Put("other", "2"))
	if got := w.w.Progress(); got >= 3 {
		e.Errorf("progress %d, but the event of revision 3 is not delivered", got)
	}
	w.expect("k=1 3/3/1")
	e.equal("caught up", w.w.Progress(), 4)
	late := e.watch("k", "", 2)
	if got := late.w.Progress(); got >= 3 {
		e.Errorf("progress %d of a watch from 2, but the event of revision 3 is not delivered", got)
	}
	late.expect("k=1 3/3/1")
	late.nothing()
	e.equal("caught up", late.w.Progress(), 4)
}

func watchClose(e *env) {
	w := e.watch("k", "", 0)
	errs := make(chan error, 1)
	go func() {
		_, err := w.w.Next(e.ctx)
		errs <- err
	}()
	time.Sleep(5 * time.Millisecond) // most likely blocked by now; right either way
	w.w.Close()
	select {
	case err := <-errs:
		e.wantErr("blocked Next", err, store.ErrClosed)
	case <-time.After(patience):
		e.Fatal("Next is still blocked after Close")
	}
	w.w.Close()
	e.do(Put("k", "v"))
}

func watchCancel(e *env) {
	w := e.watch("k", "", 0)
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	_, err := w.w.Next(ctx)
	e.wantErr("Next", err, context.Canceled)
	e.do(Put("k", "1"))
	_, err = w.w.Next(ctx)
	if err != nil {
		e.wantErr("Next", err, context.Canceled)
		w.expect("k=1 2/2/1")
	}
	w.nothing()
}

// polled is a watcher that is read by Poll.
func (e *env) polled(key, end string, start int64) (*watch, chan struct{}) {
	e.Helper()
	woken := make(chan struct{}, 1)
	w, err := e.s.Watch(e.ctx, store.WatchRequest{Key: key, End: end, StartRevision: start, Wake: func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(w.Close)
	return &watch{e: e, w: w}, woken
}

// poll polls until something comes or there is nothing more.
func (w *watch) poll(upTo int64) store.Batch {
	w.e.Helper()
	for {
		b, more, err := w.w.Poll(upTo)
		if err != nil {
			w.e.Fatal(err)
		}
		if len(b.Events) > 0 || b.Revision >= upTo || !more {
			return b
		}
	}
}

func poll(e *env) {
	e.do(Put("k/0", "history"))
	w, woken := e.polled("k/", "k0", 2)
	twin, _ := e.polled("k/", "k0", 0)
	e.do(Put("k/1", "1"))
	e.do(Put("other", "1"))
	e.do(Put("k/2", "2"))
	var seen []store.Event
	for rev := int64(0); rev < 4; {
		b := w.poll(4)
		seen, rev = append(seen, b.Events...), b.Revision
	}
	e.equal("up to 4", showEvents(seen), []string{"k/0=history 2/2/1", "k/1=1 3/3/1"})
	e.equal("its twin, up to 2", twin.poll(2), store.Batch{Revision: 2})
	e.equal("its twin, up to 3", showEvents(twin.poll(3).Events), []string{"k/1=1 3/3/1"})
	mine, other := w.poll(5), twin.poll(5)
	e.equal("up to 5", showEvents(mine.Events), []string{"k/2=2 5/5/1"})
	if len(other.Events) != 1 || &other.Events[0] != &mine.Events[0] {
		e.Errorf("two watchers of one range get arrays of their own: %v", showEvents(other.Events))
	}
	w.poll(6) // all there is
	for len(woken) > 0 {
		<-woken
	}
	e.do(Put("k/3", "3"))
	select {
	case <-woken:
	case <-time.After(patience):
		e.Fatal("no one is told of the new event")
	}
	w.w.Close()
	_, _, err := w.w.Poll(7)
	e.wantErr("Poll of a closed watcher", err, store.ErrClosed)
}

// pollAll has writers at work, and readers that look only when they are told
// to, or that there is more.
func pollAll(e *env) {
	const writers, puts = 4, 100
	const end = 1 + writers*puts
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range writers {
		wg.Go(func() {
			for range puts {
				if _, err := e.s.Txn(e.ctx, store.Txn{Then: []store.Op{Put(fmt.Sprintf("k/%d", i), ""), Put("other", "")}}); err != nil {
					e.Error(err)
				}
			}
		})
	}
	for _, start := range []int64{0, 2, 0, 2} {
		w, woken := e.polled("k/", "k0", start)
		last := max(0, start-1) // revision seen, 0 if any may come first
		for rev := int64(0); rev < end; {
			now := e.snap(store.Local).Revision()
			b, more, err := w.w.Poll(now)
			if err != nil {
				e.Fatal(err)
			}
			for _, ev := range b.Events {
				if last != 0 && ev.KV.ModRevision != last+1 {
					e.Fatalf("revision %d after %d", ev.KV.ModRevision, last)
				}
				last = ev.KV.ModRevision
			}
			if rev = b.Revision; rev > now || last != 0 && rev > last {
				e.Fatalf("a batch says it reaches up to %d; the last event is of %d, and up to %d was asked for", rev, last, now)
			}
			if rev == end || more {
				continue
			}
			select {
			case <-woken:
			case <-time.After(patience):
				e.Fatalf("not told of what comes after %d", rev)
			}
		}
	}
}
