package mvcc

import (
	"maps"
	"math"
	"slices"

	"github.com/skiff-project/skiff/store"
)

// Replay applies a run of journal or checkpoint records to the core, which is
// not recording. Errors wrap ErrCorrupt; the core is then useless.
func (c *Core) Replay(records []byte) error {
	for d := (decoder{b: records}); len(d.b) > 0; {
		rec := decoder{b: d.bytes()}
		if d.bad || len(rec.b) == 0 {
			return corrupt("a record has no proper length")
		}
		kind := rec.byte()
		if err := c.replay(kind, &rec); err != nil {
			return err
		}
		if rec.bad || len(rec.b) > 0 {
			return corrupt("a record of kind %d has the wrong length", kind)
		}
	}
	return nil
}

func (c *Core) replay(kind byte, d *decoder) error {
	switch kind {
	case recTxn:
		return c.replayTxn(d)
	case recGrant:
		id, ttl := store.LeaseID(d.varint()), d.varint()
		if d.bad {
			return nil
		}
		if id == 0 {
			return corrupt("lease 0 is granted")
		}
		if err := c.Grant(id, ttl); err != nil {
			return corrupt("grant of lease %x for %d s: %v", id, ttl, err)
		}
	case recLeft:
		id, left := store.LeaseID(d.varint()), d.varint()
		if d.bad {
			return nil
		}
		if err := c.SetLeft(id, left); err != nil {
			return corrupt("lease %x has %d s left: %v", id, left, err)
		}
	case recRevoke:
		id := store.LeaseID(d.varint())
		if d.bad {
			return nil
		}
		if err := c.Revoke(id); err != nil {
			return corrupt("lease %x is revoked but was never granted", id)
		}
	case recCompact:
		rev := d.varint()
		if d.bad {
			return nil
		}
		if err := c.Compact(rev); err != nil {
			return corrupt("compaction at revision %d: %v", rev, err)
		}
		for c.Sweep(1 << 20) {
		}
	case recState:
		rev, compacted := d.varint(), d.varint()
		if c.rev != 1 || c.cur.Len() > 0 || len(c.leases) > 0 || rev < 1 || rev > maxRevision || compacted < 0 || compacted > rev {
			return corrupt("state at revision %d, compacted at %d", rev, compacted)
		}
		c.rev, c.compacted, c.since = rev, compacted, compacted
	case recBase:
		return c.loadBase(d)
	case recEvent:
		return c.loadEvent(d)
	default:
		return corrupt("unknown kind of record %d", kind)
	}
	return nil
}

// maxRevision leaves room to count on.
const maxRevision = 1 << 62

func (c *Core) replayTxn(d *decoder) error {
	rev := d.varint()
	if rev != c.rev+1 {
		return corrupt("revision %d follows %d", rev, c.rev)
	}
	before := c.log.end
	for len(d.b) > 0 && !d.bad {
		if err := c.replayOp(d, rev); err != nil {
			return err
		}
	}
	if c.log.end == before {
		return corrupt("revision %d changes nothing", rev)
	}
	c.rev = rev
	return nil
}

func (c *Core) replayOp(d *decoder, rev int64) error {
	switch op := d.byte(); op {
	case opPut:
		kv := &store.KV{Key: d.str(), Value: slices.Clone(d.bytes()), Lease: store.LeaseID(d.varint())}
		if d.bad || kv.Key == "" {
			return corrupt("a put in revision %d does not decode", rev)
		}
		if !c.granted(kv.Lease) {
			return corrupt("a put in revision %d has lease %x, which was not granted", rev, kv.Lease)
		}
		c.decorated(kv)
		c.put(kv, rev)
	case opPutSameVal:
		kv := &store.KV{Key: d.str(), Lease: store.LeaseID(d.varint())}
		cur := c.get(kv.Key)
		if d.bad || cur == nil || !c.granted(kv.Lease) {
			return corrupt("a put in revision %d keeps the value of a missing key or has a missing lease", rev)
		}
		kv.Value, kv.Attrs = cur.Value, cur.Attrs
		c.put(kv, rev)
	case opDelete, opDeleteRange:
		key, end := d.str(), ""
		if op == opDeleteRange {
			end = d.str()
		}
		kvs := c.collect(key, end)
		if d.bad || len(kvs) == 0 {
			return corrupt("a deletion in revision %d finds no key", rev)
		}
		for _, kv := range kvs {
			c.remove(kv, rev)
		}
	default:
		return corrupt("unknown operation %d in revision %d", op, rev)
	}
	return nil
}

// granted reports whether a key can have the lease, or has none.
func (c *Core) granted(id store.LeaseID) bool { return id == 0 || c.leases[id] != nil }

func (c *Core) decorated(kv *store.KV) *store.KV {
	if c.decorate != nil {
		kv.Attrs = c.decorate(kv.Key, kv.Value)
	}
	return kv
}

// loadBase installs a key as it was at the compact revision.
func (c *Core) loadBase(d *decoder) error {
	kv := d.kv()
	if len(d.b) > 0 {
		order := d.uvarint()
		kv.Order = int32(min(order, math.MaxInt32))
		d.bad = d.bad || order > math.MaxInt32
	}
	last, _ := c.cur.Max()
	if d.bad || kv.Key == "" || (last != nil && last.Key >= kv.Key) {
		return corrupt("a key of the checkpoint does not decode or is out of order")
	}
	if kv.CreateRevision < 1 || kv.CreateRevision > kv.ModRevision || kv.ModRevision > c.compacted || kv.Version < 1 {
		return corrupt("a key of the checkpoint has revision %d, created at %d, version %d, before compaction at %d",
			kv.ModRevision, kv.CreateRevision, kv.Version, c.compacted)
	}
	c.AddBase(c.decorated(kv))
	return nil
}

// AddBase installs a version, whole with its Attrs, that is live at the
// revision the core stands at. Keys must come in order.
func (c *Core) AddBase(kv *store.KV) {
	c.cur.Load(kv)
	c.reindex(nil, kv)
	c.liveBytes += cost(kv)
	c.relink(kv.Key, 0, kv.Lease)
}

// loadEvent applies a change from the compact revision on; a change at that
// revision itself is in the base already, and only goes to the log.
func (c *Core) loadEvent(d *decoder) error {
	typ, kv := store.EventType(d.byte()), d.kv()
	rev := kv.ModRevision
	if d.bad || kv.Key == "" || rev < max(c.compacted, 1) || rev > c.rev || typ != store.EventPut && typ != store.EventDelete {
		return corrupt("an event of the checkpoint does not decode")
	}
	if c.log.end > c.log.base && c.log.at(c.log.end-1).KV.ModRevision > rev {
		return corrupt("the events of the checkpoint are out of order at revision %d", rev)
	}
	cur := c.get(kv.Key)
	switch {
	case typ == store.EventPut && rev == c.compacted:
		if cur == nil { // the same transaction has deleted it
			cur = c.decorated(kv)
		}
		if cur.ModRevision != rev {
			return corrupt("a put at the compact revision %d is not among the keys", rev)
		}
		c.log.append(store.Event{Type: typ, KV: cur})
		c.order(rev)
	case typ == store.EventDelete && rev == c.compacted:
		c.oldBytes += cost(kv)
		c.log.append(store.Event{Type: typ, KV: &store.KV{Key: kv.Key, ModRevision: rev, Order: c.order(rev)}})
	default:
		return c.change(typ, kv)
	}
	return nil
}

// change applies an event that was made elsewhere; kv says what came of it.
func (c *Core) change(typ store.EventType, kv *store.KV) error {
	rev := kv.ModRevision
	if typ == store.EventPut {
		want := *kv
		c.put(c.decorated(kv), rev)
		if kv.CreateRevision != want.CreateRevision || kv.Version != want.Version {
			return corrupt("the put of revision %d has version %d, want %d", rev, kv.Version, want.Version)
		}
		return nil
	}
	cur := c.get(kv.Key)
	if cur == nil {
		return corrupt("the event of revision %d does not fit the keys", rev)
	}
	c.remove(cur, rev)
	return nil
}

// checkpointChunk is about how many bytes of records WriteCheckpoint hands
// out at a time.
const checkpointChunk = 512 << 10

// WriteCheckpoint hands the records that rebuild a core to write, a chunk at
// a time; leases are those of the core when v was made. A chunk is valid
// until write returns. The records are: the state; the leases; the keys at
// the compact revision in order; the events since, in order.
func WriteCheckpoint(v *View, leases map[store.LeaseID]Life, write func([]byte) error) error {
	buf := appendState(nil, v.rev, v.compacted)
	flush := func(at int) error {
		if len(buf) <= at {
			return nil
		}
		err := write(buf)
		buf = buf[:0]
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(leases)) {
		buf = appendGrant(buf, id, leases[id].TTL)
		if left := leases[id].Left; left != 0 {
			buf = appendLeft(buf, id, left)
		}
		if err := flush(checkpointChunk); err != nil {
			return err
		}
	}
	if v.compacted > 0 {
		base, err := v.At(v.compacted)
		if err != nil {
			return err
		}
		for kv := range base.Range("", "\x00") {
			buf = appendBase(buf, kv)
			if err := flush(checkpointChunk); err != nil {
				return err
			}
		}
	}
	for pos := v.log.First(); pos < v.log.End(); pos++ {
		buf = appendEvent(buf, v.log.At(pos))
		if err := flush(checkpointChunk); err != nil {
			return err
		}
	}
	return flush(0)
}
