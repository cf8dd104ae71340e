package hub

import (
	"math"
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// TestNoWakeupIsLost: an event published between a watcher's look at the view
// and its look at the feed woke nobody, so the watcher must look again.
func TestNoWakeupIsLost(t *testing.T) {
	core := mvcc.New(nil, nil)
	h := New(core.View(), func() error { return nil })
	watch, err := h.Watch(store.WatchRequest{Key: "a", End: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	w := watch.(*watcher)
	before := h.View()
	req, err := core.Prepare(&store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "a", Value: []byte("1")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.Apply(req); err != nil {
		t.Fatal(err)
	}
	h.Publish(core.View())
	if batch, more, err := w.advance(before, math.MaxInt64); len(batch.Events) != 0 || !more || err != nil {
		t.Errorf("with the view from before: %d events, more %v, %v", len(batch.Events), more, err)
	}
	if batch, err := w.Next(t.Context()); err != nil || len(batch.Events) != 1 {
		t.Errorf("next: %d events, %v", len(batch.Events), err)
	}
	if _, more, err := w.advance(h.View(), math.MaxInt64); more || err != nil {
		t.Errorf("when all is seen: more %v, %v", more, err)
	}
}
