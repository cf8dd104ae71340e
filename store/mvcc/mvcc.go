// Package mvcc is the pure core of the embedded store: a multi-version map of
// keys, its history, its leases and its compaction. It has no goroutine, disk
// or clock. One writer calls Core's methods, one at a time; readers use the
// immutable Views it hands out.
//
//	cur   copy-on-write B-tree of the newest version of every live key
//	hist  copy-on-write B-tree of superseded versions, by (key, revision)
//	terms copy-on-write B-tree of those of cur that have a term, by (term, key)
//	log   every change since the last compaction, in revision order
//
// A version leaves cur for hist when it is replaced or deleted, and leaves
// hist when a compaction has passed the revision that replaced it. A view at
// an old revision merges the two trees; a view at the newest reads cur alone.
//
// Every mutation also appends one record to Core's journal (codec.go). The
// records replayed in order rebuild the same Core.
package mvcc

import (
	"github.com/tidwall/btree"

	"github.com/skiff-project/skiff/store"
)

// kvOverhead is what a version costs beside its key and value: the KV struct,
// its slots in the tree and the log, allocator slack. Bytes.
const kvOverhead = 160

// version is a superseded KV; end is the revision that replaced or deleted it.
type version struct {
	kv  *store.KV
	end int64
}

// Core is the mutable multi-version state. Not safe for concurrent use.
type Core struct {
	decorate  store.Decorate
	index     store.Index
	journal   []byte // records of mutations not yet taken
	recording bool

	rev       int64
	compacted int64
	since     int64 // first revision whose events are all in the log
	cur       *btree.BTreeG[*store.KV]
	terms     *btree.BTreeG[entry]
	hist      *btree.BTreeG[version]
	log       eventLog
	swept     uint64 // log position before which superseded versions are gone
	leases    map[store.LeaseID]*lease
	liveBytes int64
	oldBytes  int64

	orderRev  int64 // revision that nextOrder counts in
	nextOrder int32

	probe store.KV // search key of the single writer, saves an allocation
}

// New returns an empty core at revision 1. decorate and index may be nil.
func New(decorate store.Decorate, index store.Index) *Core {
	return &Core{
		decorate: decorate,
		index:    index,
		rev:      1,
		cur:      newCurrent(),
		terms:    newTerms(),
		hist:     newHistory(),
		leases:   map[store.LeaseID]*lease{},
	}
}

func newCurrent() *btree.BTreeG[*store.KV] {
	less := func(a, b *store.KV) bool { return a.Key < b.Key }
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
}

func newHistory() *btree.BTreeG[version] {
	less := func(a, b version) bool {
		if a.kv.Key != b.kv.Key {
			return a.kv.Key < b.kv.Key
		}
		return a.kv.ModRevision < b.kv.ModRevision
	}
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
}

// Record turns the journal on: from now on every mutation appends a record.
func (c *Core) Record() { c.recording = true }

// Journal returns the records appended since ResetJournal. The slice is
// reused; copy what must outlive the next mutation.
func (c *Core) Journal() []byte { return c.journal }

// ResetJournal forgets the records returned by Journal.
func (c *Core) ResetJournal() { c.journal = c.journal[:0] }

// Revision is the newest revision applied.
func (c *Core) Revision() int64 { return c.rev }

// CompactRevision is the revision of the last compaction, 0 for none.
func (c *Core) CompactRevision() int64 { return c.compacted }

// Bytes is the memory held by live versions and by history.
func (c *Core) Bytes() (live, history int64) { return c.liveBytes, c.oldBytes }

// View freezes the state as it is now. O(1); the next mutations copy the tree
// nodes they touch.
func (c *Core) View() *View {
	return &View{
		rev:       c.rev,
		compacted: c.compacted,
		since:     c.since,
		cur:       c.cur.IsoCopy(),
		terms:     c.terms.IsoCopy(),
		index:     c.index,
		hist:      c.hist.IsoCopy(),
		log:       c.log.view(),
		live:      c.liveBytes,
		old:       c.oldBytes,
	}
}

func (c *Core) get(key string) *store.KV {
	c.probe.Key = key
	kv, _ := c.cur.Get(&c.probe)
	return kv
}

// put installs kv, whose Key, Value, Lease and Attrs are set, as the newest
// version at revision rev and returns the version it replaces.
func (c *Core) put(kv *store.KV, rev int64) (prev *store.KV) {
	prev, _ = c.cur.Set(kv)
	kv.ModRevision, kv.Order = rev, c.order(rev)
	if prev == nil {
		kv.CreateRevision, kv.Version = rev, 1
	} else {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
		c.retire(prev, rev)
	}
	c.liveBytes += cost(kv)
	c.reindex(prev, kv)
	c.relink(kv.Key, leaseOf(prev), kv.Lease)
	c.log.append(store.Event{Type: store.EventPut, KV: kv, Prev: prev})
	return prev
}

// remove deletes the live version kv at revision rev.
func (c *Core) remove(kv *store.KV, rev int64) {
	c.cur.Delete(kv)
	c.retire(kv, rev)
	c.reindex(kv, nil)
	c.relink(kv.Key, kv.Lease, 0)
	grave := &store.KV{Key: kv.Key, ModRevision: rev, Order: c.order(rev)}
	c.oldBytes += cost(grave)
	c.log.append(store.Event{Type: store.EventDelete, KV: grave, Prev: kv})
}

// order is the place of the next change of revision rev.
func (c *Core) order(rev int64) int32 {
	if c.orderRev != rev {
		c.orderRev, c.nextOrder = rev, 0
	}
	c.nextOrder++
	return c.nextOrder - 1
}

// retire moves a replaced version to history.
func (c *Core) retire(kv *store.KV, end int64) {
	c.hist.Set(version{kv, end})
	c.liveBytes -= cost(kv)
	c.oldBytes += cost(kv)
}

// collect returns the live versions of [key, end) in key order.
func (c *Core) collect(key, end string) []*store.KV {
	if end == "" {
		if kv := c.get(key); kv != nil {
			return []*store.KV{kv}
		}
		return nil
	}
	var kvs []*store.KV
	c.probe.Key = key
	c.cur.Ascend(&c.probe, func(kv *store.KV) bool {
		if past(kv.Key, end) {
			return false
		}
		kvs = append(kvs, kv)
		return true
	})
	return kvs
}

// past reports whether key lies behind a range that ends at end.
func past(key, end string) bool { return end != "\x00" && key >= end }

// Contains reports whether [key, end) holds k, in the store's notation.
func Contains(key, end, k string) bool {
	if end == "" {
		return k == key
	}
	return k >= key && !past(k, end)
}

func cost(kv *store.KV) int64 { return int64(len(kv.Key) + len(kv.Value) + kvOverhead) }

func leaseOf(kv *store.KV) store.LeaseID {
	if kv == nil {
		return 0
	}
	return kv.Lease
}
