package mvcc

import (
	"maps"
	"slices"

	"github.com/skiff-project/skiff/store"
)

// lease is a granted lease and the keys attached to it. When it ends is the
// business of whoever owns a clock.
type lease struct {
	life Life
	keys map[string]struct{}
}

// Life is a lease's time, in seconds.
type Life struct {
	TTL  int64 // granted
	Left int64 // of that, when it was written last; 0: all of it
}

// Grant makes a lease of 1 to store.MaxLeaseTTL seconds. Errors:
// store.ErrLeaseExists, store.ErrLeaseTTL.
func (c *Core) Grant(id store.LeaseID, ttl int64) error {
	if ttl < 1 || ttl > store.MaxLeaseTTL {
		return store.ErrLeaseTTL
	}
	if _, ok := c.leases[id]; ok {
		return store.ErrLeaseExists
	}
	c.leases[id] = &lease{life: Life{TTL: ttl}}
	if c.recording {
		c.journal = appendGrant(c.journal, id, ttl)
	}
	return nil
}

// SetLeft notes how much of its time a lease has left, 0 for all of it. Errors:
// store.ErrLeaseNotFound; store.ErrLeaseTTL for more than it was granted.
func (c *Core) SetLeft(id store.LeaseID, left int64) error {
	l, ok := c.leases[id]
	if !ok {
		return store.ErrLeaseNotFound
	}
	if left < 0 || left > l.life.TTL {
		return store.ErrLeaseTTL
	}
	l.life.Left = left
	if c.recording {
		c.journal = appendLeft(c.journal, id, left)
	}
	return nil
}

// Revoke ends a lease and deletes its keys, in key order, at one new revision
// if there are any. Errors: store.ErrLeaseNotFound.
func (c *Core) Revoke(id store.LeaseID) error {
	l, ok := c.leases[id]
	if !ok {
		return store.ErrLeaseNotFound
	}
	if c.recording {
		c.journal = appendRevoke(c.journal, id)
	}
	keys := slices.Sorted(maps.Keys(l.keys))
	if len(keys) > 0 {
		c.rev++
	}
	for _, key := range keys {
		c.remove(c.get(key), c.rev)
	}
	delete(c.leases, id)
	return nil
}

// Lease returns a lease's granted TTL in seconds and its keys in order.
func (c *Core) Lease(id store.LeaseID) (ttl int64, keys []string, err error) {
	l, ok := c.leases[id]
	if !ok {
		return 0, nil, store.ErrLeaseNotFound
	}
	return l.life.TTL, slices.Sorted(maps.Keys(l.keys)), nil
}

// Leases returns every lease with its time.
func (c *Core) Leases() map[store.LeaseID]Life {
	lives := make(map[store.LeaseID]Life, len(c.leases))
	for id, l := range c.leases {
		lives[id] = l.life
	}
	return lives
}

// relink moves key from one lease to another; 0 is none.
func (c *Core) relink(key string, from, to store.LeaseID) {
	if from == to {
		return
	}
	if l := c.leases[from]; l != nil {
		delete(l.keys, key)
	}
	if l := c.leases[to]; l != nil {
		if l.keys == nil {
			l.keys = map[string]struct{}{}
		}
		l.keys[key] = struct{}{}
	}
}
