//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

var scaleSuite = suite{
	name: "scale", limit: 15 * time.Minute, run: runScale, rounds: 2,
	about: "Simulated nodes that renew their leases every 10 s, more at each step, until a step is not healthy (a node is NotReady 20 s after all were registered, or they are not within 4 minutes) " +
		"or the last one is reached: 25,000 for Skiff, 5,000 for upstream. CPU and memory are of the 20 s after registration. " + crowdAbout,
	budgets: map[string]string{"healthy nodes": "100,000 held on ≤ 1 core"},
}

// steps are totals of nodes.
var steps = map[string][]int{
	skiff:    {1000, 2000, 5000, 10_000, 25_000},
	upstream: {1000, 2000, 5000},
}

func runScale(ctx context.Context, r *round) error {
	return r.with(ctx, parts{crowd: true}, func(c *cluster) (err error) {
		have := 0
		for i, total := range r.sizes(steps[r.System]) {
			prefix := number(float64(total)) + " nodes: "
			began := time.Now()
			crowd, failed := c.addNodes(ctx, fmt.Sprintf("s%d", i), total-have, 10*time.Second, 4*time.Minute)
			if failed != nil {
				fmt.Fprintf(os.Stderr, "%s is not healthy with %d nodes: %v\n", r.System, total, failed)
				break
			}
			defer func() { err = errors.Join(err, crowd.leave()) }()
			r.figure(prefix+"registered", "nodes/s", float64(total-have)/time.Since(began).Seconds())
			bad, err := r.hold(ctx, c, prefix)
			if err != nil {
				return err
			}
			if bad > 0 {
				break
			}
			have = total
		}
		r.figure("healthy nodes", "nodes held", float64(have))
		return nil
	})
}

// hold watches the nodes for a while.
func (r *round) hold(ctx context.Context, c *cluster, prefix string) (bad int, err error) {
	list := servers()
	before, began := running(list), time.Now()
	if err := sleep(ctx, 20*time.Second); err != nil {
		return 0, err
	}
	cpu := (running(list) - before).Seconds() / time.Since(began).Seconds()
	if bad, err = c.notReady(ctx); err != nil {
		return 0, err
	}
	r.figure(prefix+"NotReady", "nodes", float64(bad))
	r.figure(prefix+"server CPU", "% of a core", 100*cpu)
	r.figure(prefix+"PSS", "MB", memory(list))
	return bad, nil
}
