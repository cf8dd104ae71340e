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
	name: "scale", limit: 20 * time.Minute, run: runScale, rounds: 2, visits: true,
	about: "Simulated nodes that renew their leases every 10 s, more at each step, until a step is not healthy or the last one is reached: 25,000 for Skiff, 5,000 for upstream. " +
		"A step is healthy if all were registered within 4 minutes, and in the 20 s after that no node was NotReady and nine of ten renewals that were due were made. " +
		"CPU and memory are of these 20 s. The nodes are simulated on the same machine, and take their part of it. " + crowdAbout,
	budgets: map[string]string{"healthy nodes": "100,000 held on ≤ 1 core"},
}

// steps are totals of nodes.
var steps = map[string][]int{
	skiff:    {1000, 2000, 5000, 10_000, 15_000, 20_000, 25_000},
	upstream: {1000, 2000, 3000, 4000, 5000},
}

func runScale(ctx context.Context, r *round) error {
	return r.with(ctx, parts{crowd: true}, func(c *cluster) (err error) {
		have := 0
		var crowds []*crowd
		for i, total := range r.sizes(steps[r.System]) {
			prefix := number(float64(total)) + " nodes: "
			began := time.Now()
			crowd, failed := c.addNodes(ctx, fmt.Sprintf("s%d", i), total-have, leaseInterval, 4*time.Minute)
			if failed != nil {
				fmt.Fprintf(os.Stderr, "%s is not healthy with %d nodes: %v\n", r.System, total, failed)
				break
			}
			defer func() { err = errors.Join(err, crowd.leave()) }()
			crowds = append(crowds, crowd)
			r.figure(prefix+"registered", "nodes/s", float64(total-have)/time.Since(began).Seconds())
			healthy, err := r.hold(ctx, c, crowds, total, prefix)
			if err != nil {
				return err
			}
			if !healthy {
				break
			}
			have = total
		}
		r.figure("healthy nodes", "nodes held", float64(have))
		return nil
	})
}

// leaseInterval is a kubelet's.
const leaseInterval = 10 * time.Second

// hold watches the nodes for a while and tells whether they are healthy.
func (r *round) hold(ctx context.Context, c *cluster, crowds []*crowd, nodes int, prefix string) (healthy bool, err error) {
	renewals := func() (n int64) {
		for _, k := range crowds {
			n += k.Stats().Renewals
		}
		return n
	}
	list := r.servers()
	before, renewed, began := running(list), renewals(), time.Now()
	if err := sleep(ctx, 20*time.Second); err != nil {
		return false, err
	}
	took := time.Since(began)
	cpu := (running(list) - before).Seconds() / took.Seconds()
	kept := float64(renewals()-renewed) / (float64(nodes) * float64(took) / float64(leaseInterval))
	bad, err := c.notReady(ctx)
	if err != nil {
		return false, err
	}
	r.figure(prefix+"NotReady", "nodes", float64(bad))
	r.figure(prefix+"renewals", "% of due", 100*kept)
	if len(list) > 0 {
		r.figure(prefix+"server CPU", "% of a core", 100*cpu)
		r.figure(prefix+"PSS", "MB", memory(list))
	}
	return bad == 0 && kept >= 0.9, nil
}
