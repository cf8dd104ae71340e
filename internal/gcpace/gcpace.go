// Package gcpace trades memory for time while a server works, and back when
// it rests. Go's collector knows one percentage: at 50 % a small idle heap
// stays small, but a busy server spends a third of its time collecting it.
package gcpace

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// busyWithin: two collections less than this apart make a server busy.
	busyWithin = 5 * time.Second
	// calmAfter is how long a busy server goes without a collection before
	// its garbage is given back to the machine.
	calmAfter = 10 * time.Second
	// restSlack is how many bytes of garbage a calm program has at most, unless
	// that is less than leastRest percent of its heap: each look at the heap costs.
	restSlack = 16 << 20
	leastRest = 15
)

// Pace is what garbage may cost.
type Pace struct {
	// Rest is the percentage of the live heap while little is allocated, less
	// for a large one, and the least while much is.
	Rest int
	// Slack is how many bytes of garbage a busy server has before a collection.
	Slack uint64
}

// Keep keeps the pace until ctx ends, unless the user has set $GOGC. One at a
// time in a process.
func (p Pace) Keep(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(p.Rest))
	collected := make(chan struct{}, 1)
	notify(ctx, collected)
	calm := time.NewTimer(calmAfter) // it fires for a start, too
	defer calm.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-calm.C:
			debug.FreeOSMemory()
			metrics.Read(live)
			debug.SetGCPercent(p.rest(live[0].Value.Uint64()))
		case <-collected:
			now := time.Now()
			if now.Sub(last) < busyWithin {
				metrics.Read(live)
				debug.SetGCPercent(p.busy(live[0].Value.Uint64()))
				calm.Reset(calmAfter)
			}
			last = now
		}
	}
}

// busy is the percentage that leaves a heap its slack.
func (p Pace) busy(live uint64) int {
	return max(int(p.Slack*100/max(live, 1<<20)), p.Rest)
}

// rest is the percentage of a calm program.
func (p Pace) rest(live uint64) int {
	return min(p.Rest, max(int(restSlack*100/max(live, 1<<20)), leastRest))
}

// notify sends on c after every collection until ctx ends.
func notify(ctx context.Context, c chan<- struct{}) {
	runtime.SetFinalizer(&[16]byte{}, func(*[16]byte) { // found dead by the next collection
		select {
		case c <- struct{}{}:
		default:
		}
		if ctx.Err() == nil {
			notify(ctx, c)
		}
	})
}
