package peers_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver/peers"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// TestCompactKeepsHistory: each interval compacts what was there at the one
// before, and an idle store is left alone.
func TestCompactKeepsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := embedded.Open(embedded.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		put := func(n int) int64 {
			res, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: "/registry/a", Value: fmt.Append(nil, n)}}})
			if err != nil {
				t.Fatal(err)
			}
			return res.Revision
		}
		const interval = 5 * time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			peers.Compact(ctx, st, interval, clock.RealClock{}, slog.New(slog.DiscardHandler))
		}()
		after := func(intervals int) int64 {
			time.Sleep(time.Duration(intervals)*interval + time.Second)
			synctest.Wait()
			return st.Status().CompactRevision
		}
		put(1)
		after(1)
		young := put(2)
		if got := after(1); got == 0 || got >= young {
			t.Errorf("compacted to %d, but revision %d is younger than five minutes", got, young)
		}
		idle := after(1)
		if again := after(10); again != idle {
			t.Errorf("an idle store was compacted from %d to %d", idle, again)
		}
		put(3)
		if got := after(1); got < young {
			t.Errorf("compacted to %d, but revision %d is old", got, young)
		}
		cancel()
		<-done
	})
}
