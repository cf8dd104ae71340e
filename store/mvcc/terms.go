package mvcc

import (
	"iter"

	"github.com/tidwall/btree"

	"github.com/skiff-project/skiff/store"
)

// entry is a live version that has a term.
type entry struct {
	term string
	kv   *store.KV
}

func newTerms() *btree.BTreeG[entry] {
	less := func(a, b entry) bool {
		if a.term != b.term {
			return a.term < b.term
		}
		return a.kv.Key < b.kv.Key
	}
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
}

// reindex follows the replacement of prev by kv; nil is no version.
func (c *Core) reindex(prev, kv *store.KV) {
	if c.index == nil {
		return
	}
	now := ""
	if kv != nil {
		if now = c.index(kv.Key, kv.Value); now != "" {
			c.terms.Set(entry{now, kv})
		}
	}
	if prev == nil {
		return
	}
	if was := c.index(prev.Key, prev.Value); was != "" && was != now {
		c.terms.Delete(entry{was, prev})
	}
}

// Term is the term of a version, "" for none, store.AnyTerm without an index.
func (v *View) Term(kv *store.KV) string {
	if v.index == nil {
		return store.AnyTerm
	}
	return v.index(kv.Key, kv.Value)
}

// About reports whether an event can be about a term: one of its versions has
// the term, or may have it.
func (v *View) About(term string, ev store.Event) bool {
	if ev.Prev == nil && ev.Type == store.EventDelete {
		return true // what it was has been compacted
	}
	is := func(kv *store.KV) bool {
		t := v.Term(kv)
		return t == term || t == store.AnyTerm
	}
	return ev.Type == store.EventPut && is(ev.KV) || ev.Prev != nil && is(ev.Prev)
}

// RangeTerm yields the versions of [key, end) that have the term, in key
// order; all of the range if there are versions whose term cannot be told.
func (v *View) RangeTerm(term, key, end string) iter.Seq[*store.KV] {
	if first, _ := v.terms.Min(); v.index == nil || first.term == store.AnyTerm || end == "" {
		return v.Range(key, end)
	}
	return func(yield func(*store.KV) bool) {
		v.terms.Ascend(entry{term, &store.KV{Key: key}}, func(e entry) bool {
			return e.term == term && !past(e.kv.Key, end) && yield(e.kv)
		})
	}
}

// RangeTerm yields all of the range: terms are known of the newest versions.
func (o *oldView) RangeTerm(_, key, end string) iter.Seq[*store.KV] { return o.Range(key, end) }
