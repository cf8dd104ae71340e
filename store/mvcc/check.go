package mvcc

import "github.com/skiff-project/skiff/store"

// span is a range that some operation deletes.
type span struct{ key, end string }

// checkDuplicates refuses a transaction that could change one key twice: two
// puts of it, or a put and a delete. The branches of one nested transaction
// exclude each other, so they may put the same key. This is etcd's rule.
func checkDuplicates(txn *store.Txn) error {
	for _, ops := range [][]store.Op{txn.Then, txn.Else} {
		if len(ops) == 1 && ops[0].Kind != store.OpTxn {
			continue // the common case allocates nothing
		}
		if _, _, err := changes(ops); err != nil {
			return err
		}
	}
	return nil
}

// changes returns the keys ops may put and the ranges they may delete.
func changes(ops []store.Op) (puts map[string]struct{}, dels []span, err error) {
	for i := range ops {
		if ops[i].Kind == store.OpDelete {
			dels = append(dels, span{ops[i].Key, ops[i].End})
		}
	}
	puts = map[string]struct{}{}
	add := func(key string, allowed map[string]struct{}) error {
		if _, dup := puts[key]; dup {
			if _, ok := allowed[key]; !ok {
				return store.ErrDuplicateKey
			}
		}
		for _, d := range dels {
			if Contains(d.key, d.end, key) {
				return store.ErrDuplicateKey
			}
		}
		puts[key] = struct{}{}
		return nil
	}
	for i := range ops {
		if ops[i].Kind != store.OpTxn {
			continue
		}
		thenPuts, thenDels, err := changes(ops[i].Txn.Then)
		if err != nil {
			return nil, nil, err
		}
		elsePuts, elseDels, err := changes(ops[i].Txn.Else)
		if err != nil {
			return nil, nil, err
		}
		for key := range thenPuts {
			if err := add(key, nil); err != nil {
				return nil, nil, err
			}
		}
		for key := range elsePuts {
			if err := add(key, thenPuts); err != nil {
				return nil, nil, err
			}
		}
		dels = append(append(dels, thenDels...), elseDels...)
	}
	for i := range ops {
		if ops[i].Kind == store.OpPut {
			if err := add(ops[i].Key, nil); err != nil {
				return nil, nil, err
			}
		}
	}
	return puts, dels, nil
}
