package cluster

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/skiff-project/skiff/internal/ownpages"
)

// A start touches most of the program once: nearly all of the binary is mapped
// into memory, and the heap is full of holes. What an idle cluster needs of
// both is a small part. So, soon after the start and from time to time later,
// the rest is given back.
const (
	// firstRest is how long after Ready the start's own work (first pods, first
	// syncs of the controllers) is over.
	firstRest = 5 * time.Second
	// restEvery is how often what was touched since is given back. Mapping it
	// again takes about a millisecond in all.
	restEvery = 5 * time.Minute
)

// rest gives memory back until ctx ends.
func (c *Cluster) rest(ctx context.Context) {
	timer := time.NewTimer(firstRest)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if first {
			debug.FreeOSMemory() // later the runtime does so by itself, without stopping for it
		}
		if err := ownpages.Release(); err != nil {
			c.log.Warn("give the program's memory back", "err", err)
			return
		}
		timer.Reset(restEvery)
	}
}
