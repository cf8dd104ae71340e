package mvcc

import (
	"iter"
	"sort"

	"github.com/tidwall/btree"

	"github.com/skiff-project/skiff/store"
)

// View is a frozen state. It is safe for concurrent use and needs no release.
// It implements store.Snapshot at its own revision.
type View struct {
	rev, compacted, since int64
	cur                   *btree.BTreeG[*store.KV]
	terms                 *btree.BTreeG[entry]
	hist                  *btree.BTreeG[version]
	index                 store.Index
	log                   LogView
	live, old             int64
}

var _ store.Snapshot = (*View)(nil)

// Revision is the newest revision of the view.
func (v *View) Revision() int64 { return v.rev }

// CompactRevision is the last compaction as of the view.
func (v *View) CompactRevision() int64 { return v.compacted }

// Since is the first revision a watch can start from.
func (v *View) Since() int64 { return v.since }

// Log is the event log up to the view's revision.
func (v *View) Log() LogView { return v.log }

// Len is the number of live keys.
func (v *View) Len() int { return v.cur.Len() }

// Bytes is the memory held by live versions and by history.
func (v *View) Bytes() (live, history int64) { return v.live, v.old }

// At returns the snapshot at revision rev, 0 and store.Local meaning the view's own. Errors:
// store.ErrCompacted, store.ErrFutureRevision.
func (v *View) At(rev int64) (store.Snapshot, error) {
	switch {
	case rev == 0 || rev == store.Local || rev == v.rev:
		return v, nil
	case rev > v.rev:
		return nil, store.ErrFutureRevision
	case rev < v.compacted || rev < 0:
		return nil, store.ErrCompacted
	}
	return &oldView{v: v, rev: rev}, nil
}

// Get returns the version of key, or nil.
func (v *View) Get(key string) *store.KV {
	kv, _ := v.cur.Get(&store.KV{Key: key})
	return kv
}

// Version returns the version of key that revision mod made, live or not, or
// nil if the view holds it no more.
func (v *View) Version(key string, mod int64) *store.KV {
	if kv := v.Get(key); kv != nil && kv.ModRevision == mod {
		return kv
	}
	old, _ := v.hist.Get(version{kv: &store.KV{Key: key, ModRevision: mod}})
	return old.kv
}

// Range yields the versions of [key, end) in key order.
func (v *View) Range(key, end string) iter.Seq[*store.KV] {
	return func(yield func(*store.KV) bool) {
		if end == "" {
			if kv := v.Get(key); kv != nil {
				yield(kv)
			}
			return
		}
		v.cur.Ascend(&store.KV{Key: key}, func(kv *store.KV) bool {
			return !past(kv.Key, end) && yield(kv)
		})
	}
}

// Count returns how many keys [key, end) holds, in O(log² n).
func (v *View) Count(key, end string) int {
	if end == "" {
		if v.Get(key) == nil {
			return 0
		}
		return 1
	}
	hi := v.cur.Len()
	if end != "\x00" {
		hi = v.rank(end)
	}
	return max(0, hi-v.rank(key))
}

// rank is the number of live keys before key.
func (v *View) rank(key string) int {
	return sort.Search(v.cur.Len(), func(i int) bool {
		kv, _ := v.cur.GetAt(i)
		return kv.Key >= key
	})
}

// oldView is a view at a revision before its own newest.
type oldView struct {
	v   *View
	rev int64
}

func (o *oldView) Revision() int64 { return o.rev }

func (o *oldView) Get(key string) *store.KV {
	for kv := range o.Range(key, "") {
		return kv
	}
	return nil
}

func (o *oldView) Count(key, end string) int {
	n := 0
	for range o.Range(key, end) {
		n++
	}
	return n
}

// Range merges the current versions that are old enough with the superseded
// versions that were current at the revision; a key is in at most one of the
// two sets.
func (o *oldView) Range(key, end string) iter.Seq[*store.KV] {
	if end == "" {
		end = key + "\x00"
	}
	return func(yield func(*store.KV) bool) {
		cur, hist := o.v.cur.Iter(), o.v.hist.Iter()
		defer cur.Release()
		defer hist.Release()
		a := o.nextCurrent(&cur, cur.Seek(&store.KV{Key: key}), end)
		b := o.nextOld(&hist, hist.Seek(version{kv: &store.KV{Key: key}}), end)
		for a != nil || b != nil {
			if b == nil || (a != nil && a.Key < b.Key) {
				if !yield(a) {
					return
				}
				a = o.nextCurrent(&cur, cur.Next(), end)
				continue
			}
			if !yield(b) {
				return
			}
			b = o.nextOld(&hist, hist.Next(), end)
		}
	}
}

func (o *oldView) nextCurrent(it *btree.IterG[*store.KV], ok bool, end string) *store.KV {
	for ; ok && !past(it.Item().Key, end); ok = it.Next() {
		if kv := it.Item(); kv.ModRevision <= o.rev {
			return kv
		}
	}
	return nil
}

func (o *oldView) nextOld(it *btree.IterG[version], ok bool, end string) *store.KV {
	for ; ok && !past(it.Item().kv.Key, end); ok = it.Next() {
		if ver := it.Item(); ver.kv.ModRevision <= o.rev && o.rev < ver.end {
			return ver.kv
		}
	}
	return nil
}
