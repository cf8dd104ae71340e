package mvcc

import "github.com/skiff-project/skiff/store"

// NewAt returns a core that stands at revision rev and knows nothing of what
// was before. AddBase fills it; watches can start behind rev.
func NewAt(rev int64, decorate store.Decorate, index store.Index) *Core {
	c := New(decorate, index)
	if rev > 1 { // nothing precedes revision 1
		c.rev, c.compacted, c.since = rev, rev, rev+1
	}
	return c
}

// Follow applies the changes that the transaction of the next revision made
// elsewhere, perhaps none, in order. Errors wrap ErrCorrupt: the core is then
// useless.
func (c *Core) Follow(rev int64, events []store.Event) error {
	if rev != c.rev+1 {
		return corrupt("revision %d follows %d", rev, c.rev)
	}
	for _, ev := range events {
		if err := c.change(ev.Type, ev.KV); err != nil {
			return err
		}
	}
	c.rev = rev
	return nil
}

// Trim compacts the older half of the history if that is more than so many
// events or bytes.
func (c *Core) Trim(events int, bytes int64) {
	n := c.log.end - c.log.first
	if n < 2 || n <= uint64(events) && c.oldBytes <= bytes {
		return
	}
	rev := max(c.log.at(c.log.first+n/2).KV.ModRevision, c.compacted+1)
	if c.Compact(rev) == nil {
		for c.Sweep(1 << 16) {
		}
	}
}
