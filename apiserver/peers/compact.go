package peers

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store"
)

// compactKey coordinates the API servers, upstream's too, that share an etcd.
// Its version is the time by which they compact: whoever moves it on does it,
// at the revision that is its value.
const compactKey = "compact_rev_key"

// compactor is what one server knows of the compactions.
type compactor struct {
	version  int64 // of compactKey
	previous int64 // revision one interval ago
}

// Compact compacts a store, until ctx ends: at each interval what was history
// at the one before, so that at least one interval of history is kept. An idle
// store is left alone.
func Compact(ctx context.Context, s store.Store, interval time.Duration, clock clock.WithTicker, log *slog.Logger) {
	tick := clock.NewTicker(interval)
	defer tick.Stop()
	c := compactor{previous: s.Status().Revision}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		if s.Status().Revision == c.previous {
			continue
		}
		if err := c.compact(ctx, s); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrCompacted) {
			log.Error("store cannot be compacted; trying again at the next interval", "error", err)
		}
	}
}

func (c *compactor) compact(ctx context.Context, s store.Store) error {
	at := c.previous
	res, err := s.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: compactKey, Target: store.TargetVersion, Int: c.version}},
		Then: []store.Op{{Kind: store.OpPut, Key: compactKey, Value: strconv.AppendInt(nil, at, 10)}},
		Else: []store.Op{{Kind: store.OpRange, Key: compactKey}},
	})
	if err != nil {
		return err
	}
	c.previous = res.Revision
	if res.Succeeded {
		c.version++
		return s.Compact(ctx, at)
	}
	if len(res.Results) != 1 || len(res.Results[0].KVs) != 1 {
		c.version = 0 // somebody has deleted the key
		return nil
	}
	// Another server was first. It compacts etcd; what this one remembers goes with it.
	kv := res.Results[0].KVs[0]
	c.version = kv.Version
	if at, err = strconv.ParseInt(string(kv.Value), 10, 64); err != nil || at <= s.Status().CompactRevision {
		return nil
	}
	return s.Compact(ctx, at)
}
