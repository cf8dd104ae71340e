package mvcc

import (
	"bytes"
	"cmp"
	"encoding/binary"

	"github.com/skiff-project/skiff/store"
)

// Request is a transaction checked and made ready outside the writer: the
// versions it would put exist already, with their Attrs. It is used once.
type Request struct {
	compares []store.Compare
	then     []op
	els      []op
	size     int // bytes of keys and values
	writes   bool
	puts     bool
}

// op is one operation ready to run.
type op struct {
	*store.Op
	kv  *store.KV // OpPut: the version to install
	txn *Request  // OpTxn
}

// ReadOnly reports whether no branch of the request can change anything.
func (r *Request) ReadOnly() bool { return !r.writes }

// Puts reports whether some branch of the request puts a key.
func (r *Request) Puts() bool { return r.puts }

// Size is the number of bytes of keys and values in the request, every branch
// counted. Its journal record is no longer than JournalBound.
func (r *Request) Size() int { return r.size }

// JournalBound is the most bytes the request's journal record can take.
func (r *Request) JournalBound() int { return r.size + 64 }

// opOverhead bounds what an operation takes in the journal beside its bytes.
const opOverhead = 48

// Prepare checks a transaction that needs no state to be checked and makes its
// versions. The caller gives up txn. Errors: store.ErrEmptyKey,
// store.ErrDuplicateKey.
func (c *Core) Prepare(txn *store.Txn) (*Request, error) {
	if err := checkDuplicates(txn); err != nil {
		return nil, err
	}
	return c.prepare(txn)
}

func (c *Core) prepare(txn *store.Txn) (*Request, error) {
	r := &Request{compares: txn.If}
	for i := range txn.If {
		if txn.If[i].Key == "" {
			return nil, store.ErrEmptyKey
		}
		r.size += len(txn.If[i].Key) + len(txn.If[i].Value)
	}
	var err error
	if r.then, err = c.prepareOps(r, txn.Then); err != nil {
		return nil, err
	}
	r.els, err = c.prepareOps(r, txn.Else)
	return r, err
}

func (c *Core) prepareOps(r *Request, ops []store.Op) ([]op, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	ready := make([]op, len(ops))
	for i := range ops {
		o := &ops[i]
		ready[i].Op = o
		if o.Kind == store.OpTxn {
			inner, err := c.prepare(o.Txn)
			if err != nil {
				return nil, err
			}
			ready[i].txn = inner
			r.size += inner.size
			r.writes = r.writes || inner.writes
			r.puts = r.puts || inner.puts
			continue
		}
		if o.Key == "" {
			return nil, store.ErrEmptyKey
		}
		r.size += len(o.Key) + len(o.End) + len(o.Value) + opOverhead
		r.writes = r.writes || o.Kind != store.OpRange
		if o.Kind == store.OpPut {
			r.puts = true
			ready[i].kv = c.newVersion(o)
		}
	}
	return ready, nil
}

func (c *Core) newVersion(o *store.Op) *store.KV {
	kv := &store.KV{Key: o.Key, Value: o.Value, Lease: o.Lease}
	if c.decorate != nil && !o.IgnoreValue {
		kv.Attrs = c.decorate(kv.Key, kv.Value)
	}
	return kv
}

// Apply runs a prepared transaction. On an error nothing has changed. Errors:
// store.ErrLeaseNotFound, store.ErrKeyNotFound.
func (c *Core) Apply(r *Request) (store.TxnResult, error) {
	// Every compare is decided, and every operation that will run is checked,
	// before the first one runs: operations cannot fail half way.
	var path []bool
	path = c.choose(r, path)
	if _, err := c.check(r, path); err != nil {
		return store.TxnResult{}, err
	}
	a := applier{c: c, path: path, rev: c.rev + 1, start: len(c.journal)}
	end := c.log.end
	if c.recording && r.writes {
		c.journal = beginRecord(c.journal, recTxn)
		c.journal = binary.AppendVarint(c.journal, a.rev)
	}
	res := a.run(r)
	if c.log.end != end {
		c.rev = a.rev
		if c.recording {
			c.journal = endRecord(c.journal, a.start)
		}
	} else if c.recording {
		c.journal = c.journal[:a.start]
	}
	res.Revision = c.rev
	return res, nil
}

// Read runs a read-only request on a view.
func (v *View) Read(r *Request) store.TxnResult {
	res := store.TxnResult{Revision: v.rev, Succeeded: v.holdAll(r.compares)}
	ops := r.els
	if res.Succeeded {
		ops = r.then
	}
	res.Results = make([]store.OpResult, len(ops))
	for i, o := range ops {
		if o.Kind == store.OpTxn {
			inner := v.Read(o.txn)
			res.Results[i].Txn = &inner
			continue
		}
		for kv := range v.Range(o.Key, o.End) {
			res.Results[i].KVs = append(res.Results[i].KVs, kv)
		}
	}
	return res
}

func (v *View) holdAll(compares []store.Compare) bool {
	for i := range compares {
		cp := &compares[i]
		if cp.End == "" {
			if !holds(cp, v.Get(cp.Key)) {
				return false
			}
			continue
		}
		none := true
		for kv := range v.Range(cp.Key, cp.End) {
			if none = false; !holds(cp, kv) {
				return false
			}
		}
		if none && !holds(cp, nil) {
			return false
		}
	}
	return true
}

// choose decides the compares of r and of the nested transactions on the
// branches taken, in depth-first order.
func (c *Core) choose(r *Request, path []bool) []bool {
	ok := c.holdAll(r.compares)
	path = append(path, ok)
	for _, o := range r.branch(ok) {
		if o.Kind == store.OpTxn {
			path = c.choose(o.txn, path)
		}
	}
	return path
}

func (r *Request) branch(ok bool) []op {
	if ok {
		return r.then
	}
	return r.els
}

func (c *Core) holdAll(compares []store.Compare) bool {
	for i := range compares {
		cp := &compares[i]
		if cp.End == "" {
			if !holds(cp, c.get(cp.Key)) {
				return false
			}
			continue
		}
		kvs := c.collect(cp.Key, cp.End)
		for _, kv := range kvs {
			if !holds(cp, kv) {
				return false
			}
		}
		if len(kvs) == 0 && !holds(cp, nil) {
			return false
		}
	}
	return true
}

// holds decides one compare on one key; kv is nil when the key does not exist.
func holds(cp *store.Compare, kv *store.KV) bool {
	if cp.Target == store.TargetValue {
		return kv != nil && relates(cp.Relation, bytes.Compare(kv.Value, cp.Value))
	}
	var have int64
	if kv != nil {
		switch cp.Target {
		case store.TargetMod:
			have = kv.ModRevision
		case store.TargetCreate:
			have = kv.CreateRevision
		case store.TargetVersion:
			have = kv.Version
		case store.TargetLease:
			have = int64(kv.Lease)
		}
	}
	return relates(cp.Relation, cmp.Compare(have, cp.Int))
}

func relates(rel store.Relation, order int) bool {
	switch rel {
	case store.Equal:
		return order == 0
	case store.NotEqual:
		return order != 0
	case store.Greater:
		return order > 0
	case store.Less:
		return order < 0
	}
	return false
}

// check verifies the operations on the chosen path and returns the rest of it.
func (c *Core) check(r *Request, path []bool) ([]bool, error) {
	ok, path := path[0], path[1:]
	var err error
	for _, o := range r.branch(ok) {
		switch o.Kind {
		case store.OpTxn:
			if path, err = c.check(o.txn, path); err != nil {
				return nil, err
			}
		case store.OpPut:
			if o.Lease != 0 && c.leases[o.Lease] == nil {
				return nil, store.ErrLeaseNotFound
			}
			if (o.IgnoreValue || o.IgnoreLease) && c.get(o.Key) == nil {
				return nil, store.ErrKeyNotFound
			}
		}
	}
	return path, nil
}

// applier runs the operations of one transaction.
type applier struct {
	c     *Core
	path  []bool // decisions left
	rev   int64
	start int // of the record in the journal
}

func (a *applier) run(r *Request) store.TxnResult {
	ok := a.path[0]
	a.path = a.path[1:]
	ops := r.branch(ok)
	res := store.TxnResult{Revision: a.rev, Succeeded: ok}
	if len(ops) > 0 {
		res.Results = make([]store.OpResult, len(ops))
	}
	for i, o := range ops {
		switch o.Kind {
		case store.OpRange:
			res.Results[i].KVs = a.c.collect(o.Key, o.End)
		case store.OpPut:
			res.Results[i] = a.put(o)
		case store.OpDelete:
			res.Results[i] = a.delete(o)
		case store.OpTxn:
			inner := a.run(o.txn)
			res.Results[i].Txn = &inner
		}
	}
	return res
}

func (a *applier) put(o op) store.OpResult {
	c, kv := a.c, o.kv
	if o.IgnoreValue || o.IgnoreLease {
		cur := c.get(o.Key)
		if o.IgnoreValue {
			kv.Value, kv.Attrs = cur.Value, cur.Attrs
		}
		if o.IgnoreLease {
			kv.Lease = cur.Lease
		}
	}
	if c.recording {
		if o.IgnoreValue {
			c.journal = appendStr(append(c.journal, opPutSameVal), kv.Key)
		} else {
			c.journal = appendStr(append(c.journal, opPut), kv.Key)
			c.journal = appendBytes(c.journal, kv.Value)
		}
		c.journal = binary.AppendVarint(c.journal, int64(kv.Lease))
	}
	prev := c.put(kv, a.rev)
	res := store.OpResult{KV: kv}
	if o.PrevKV && prev != nil {
		res.Prev = []*store.KV{prev}
	}
	return res
}

func (a *applier) delete(o op) store.OpResult {
	c := a.c
	kvs := c.collect(o.Key, o.End)
	res := store.OpResult{Deleted: int64(len(kvs))}
	if len(kvs) == 0 {
		return res
	}
	if c.recording {
		if o.End == "" {
			c.journal = appendStr(append(c.journal, opDelete), o.Key)
		} else {
			c.journal = appendStr(append(c.journal, opDeleteRange), o.Key)
			c.journal = appendStr(c.journal, o.End)
		}
	}
	for _, kv := range kvs {
		c.remove(kv, a.rev)
	}
	if o.PrevKV {
		res.Prev = kvs
	}
	return res
}
