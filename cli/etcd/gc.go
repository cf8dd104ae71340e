package etcd

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The collector's trade of memory for time: while the heap is small, garbage
// may be several times as much, which halves what collecting costs a request;
// a heap of gigabytes, which is keys and values, is given little more.
const (
	gcSlack      = 64 << 20 // bytes of garbage at least before a collection
	gcMinPercent = 15
	gcMaxPercent = 400
)

// tuneGC sets the collector's percentage after every collection, unless the
// user has by $GOGC. An idle server collects nothing, and so tunes nothing.
func tuneGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var tune func()
	tune = func() {
		metrics.Read(live)
		debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
		runtime.SetFinalizer(&[16]byte{}, func(*[16]byte) { tune() }) // found dead by the next collection
	}
	tune()
}

func gcPercent(live uint64) int {
	return int(min(max(gcSlack*100/max(live, 1), gcMinPercent), gcMaxPercent))
}
