package mvcc

import "github.com/skiff-project/skiff/store"

// Compact forgets the versions superseded at or before rev. From now on views
// refuse revisions below rev; Sweep frees the memory piece by piece. Errors:
// store.ErrCompacted, store.ErrFutureRevision.
func (c *Core) Compact(rev int64) error {
	if rev <= c.compacted {
		return store.ErrCompacted
	}
	if rev > c.rev {
		return store.ErrFutureRevision
	}
	if c.recording {
		c.journal = appendCompact(c.journal, rev)
	}
	c.compacted = rev
	// Events at rev itself stay readable: a watch may start there.
	c.since = max(c.since, rev)
	c.log.first = c.log.find(rev)
	return nil
}

// Sweep frees up to n compacted versions and reports whether more remain. It
// changes nothing a view can still see.
func (c *Core) Sweep(n int) (more bool) {
	for ; n > 0 && c.swept < c.log.end; n-- {
		ev := c.log.at(c.swept)
		if ev.KV.ModRevision > c.compacted {
			break
		}
		if ev.Prev != nil {
			if _, ok := c.hist.Delete(version{kv: ev.Prev}); ok {
				c.oldBytes -= cost(ev.Prev)
			}
		}
		if ev.Type == store.EventDelete {
			c.oldBytes -= cost(ev.KV)
		}
		c.swept++
	}
	c.log.drop(min(c.swept, c.log.first))
	return c.swept < c.log.end && c.log.at(c.swept).KV.ModRevision <= c.compacted
}
