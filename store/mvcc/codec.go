package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/skiff-project/skiff/store"
)

// Kinds of journal records. A record is: length uvarint (of what follows),
// kind byte, fields. Strings and byte slices are a uvarint length and the
// bytes; integers are varints. docs/STORE-FORMAT.md draws them.
const (
	recTxn     = 1 // revision, then operations until the end
	recGrant   = 2 // lease, TTL seconds
	recRevoke  = 3 // lease
	recCompact = 4 // revision
	recState   = 5 // revision, compact revision: head of a checkpoint
	recBase    = 6 // key, value, create, mod, version, lease, order if not 0: a live key of a checkpoint
	recEvent   = 7 // type, key, value, mod, create, version, lease: history of a checkpoint
	recLeft    = 8 // lease, seconds left of its time, 0 for all of them
)

// Kinds of operations in a recTxn.
const (
	opPut         = 1 // key, value, lease
	opPutSameVal  = 2 // key, lease: keeps the value
	opDelete      = 3 // key
	opDeleteRange = 4 // key, end
)

// ErrCorrupt means a record does not decode or does not fit the state.
var ErrCorrupt = errors.New("corrupt record")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

func appendStr(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// lenWidth is the fixed width of a record's length, so that it can be filled
// in after the record: a uvarint padded with continuation bits.
const lenWidth = 5

func beginRecord(b []byte, kind byte) []byte {
	return append(b, 0x80, 0x80, 0x80, 0x80, 0x00, kind)
}

// endRecord fills in the length of the record that begins at start.
func endRecord(b []byte, start int) []byte {
	n := len(b) - start - lenWidth
	for i := range lenWidth - 1 {
		b[start+i] = byte(n>>(7*i))&0x7f | 0x80
	}
	b[start+lenWidth-1] = byte(n >> (7 * (lenWidth - 1)))
	return b
}

func appendGrant(b []byte, id store.LeaseID, ttl int64) []byte {
	n := len(b)
	b = beginRecord(b, recGrant)
	b = binary.AppendVarint(b, int64(id))
	return endRecord(binary.AppendVarint(b, ttl), n)
}

func appendLeft(b []byte, id store.LeaseID, left int64) []byte {
	n := len(b)
	b = binary.AppendVarint(beginRecord(b, recLeft), int64(id))
	return endRecord(binary.AppendVarint(b, left), n)
}

func appendRevoke(b []byte, id store.LeaseID) []byte {
	n := len(b)
	return endRecord(binary.AppendVarint(beginRecord(b, recRevoke), int64(id)), n)
}

func appendCompact(b []byte, rev int64) []byte {
	n := len(b)
	return endRecord(binary.AppendVarint(beginRecord(b, recCompact), rev), n)
}

func appendState(b []byte, rev, compacted int64) []byte {
	n := len(b)
	b = binary.AppendVarint(beginRecord(b, recState), rev)
	return endRecord(binary.AppendVarint(b, compacted), n)
}

func appendBase(b []byte, kv *store.KV) []byte {
	n := len(b)
	b = appendKV(beginRecord(b, recBase), kv)
	if kv.Order != 0 {
		b = binary.AppendUvarint(b, uint64(kv.Order))
	}
	return endRecord(b, n)
}

func appendEvent(b []byte, ev store.Event) []byte {
	n := len(b)
	b = append(beginRecord(b, recEvent), byte(ev.Type))
	return endRecord(appendKV(b, ev.KV), n)
}

func appendKV(b []byte, kv *store.KV) []byte {
	b = appendStr(b, kv.Key)
	b = appendBytes(b, kv.Value)
	b = binary.AppendVarint(b, kv.CreateRevision)
	b = binary.AppendVarint(b, kv.ModRevision)
	b = binary.AppendVarint(b, kv.Version)
	return binary.AppendVarint(b, int64(kv.Lease))
}

// decoder reads the fields of a record; the first failure sticks.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// bytes returns the next byte string, a part of the record's memory.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) str() string { return string(d.bytes()) }

// kv reads a version; its value is copied out of the record.
func (d *decoder) kv() *store.KV {
	return &store.KV{
		Key:            d.str(),
		Value:          append([]byte(nil), d.bytes()...),
		CreateRevision: d.varint(),
		ModRevision:    d.varint(),
		Version:        d.varint(),
		Lease:          store.LeaseID(d.varint()),
	}
}
