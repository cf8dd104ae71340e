package registry

import (
	"iter"
	"strings"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// Index makes the index of a store that holds these resources: objects are
// found by the field that their strategy names. With 5,000 nodes each of them
// then reads its own pods, and hears of no other's.
func Index(resources []*api.Resource) store.Index {
	type indexed struct {
		prefix string
		path   [][]uint64
	}
	var all []indexed
	for _, r := range resources {
		if path := r.Strategy.FieldPaths[r.Strategy.Index]; path != nil {
			all = append(all, indexed{Root + r.Prefix() + "/", [][]uint64{path}})
		}
	}
	return func(key string, value []byte) (term string) {
		for i := range all {
			if !strings.HasPrefix(key, all[i].prefix) {
				continue
			}
			if encryption.Encrypted(value) || !wire.IsProtobuf(value) {
				return store.AnyTerm
			}
			wire.Texts(wire.Raw(value), all[i].path, func(_ int, text string) { term = text })
			return term
		}
		return ""
	}
}

// term is the term that everything selected has, "" if there is none.
func (r *Registry) term(s Selection) string {
	if s.Fields == nil || r.Resource.Strategy.Index == "" {
		return ""
	}
	term, _ := s.Fields.RequiresExactMatch(r.Resource.Strategy.Index)
	return term
}

// among yields at least what is selected of a range.
func (r *Registry) among(snap store.Snapshot, s Selection, key, end string) iter.Seq[*store.KV] {
	if term := r.term(s); term != "" {
		return snap.RangeTerm(term, key, end)
	}
	return snap.Range(key, end)
}
