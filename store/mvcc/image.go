package mvcc

import (
	"maps"
	"slices"

	"github.com/skiff-project/skiff/store"
)

// Image is the whole of a store as values, made elsewhere: what a checkpoint
// says.
type Image struct {
	Revision  int64 // newest
	Compacted int64 // last compaction, 0 for none
	Leases    map[store.LeaseID]int64
	Base      []*store.KV   // the keys at Compacted, in key order
	Events    []store.Event // what changed since, and at Compacted itself, in order
}

// WriteImage hands the records that rebuild an image to write, a chunk at a
// time, valid until write returns. Replay checks them.
func WriteImage(img *Image, write func([]byte) error) error {
	buf := appendState(nil, img.Revision, img.Compacted)
	flush := func(at int) error {
		if len(buf) <= at {
			return nil
		}
		err := write(buf)
		buf = buf[:0]
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(img.Leases)) {
		buf = appendGrant(buf, id, img.Leases[id])
		if err := flush(checkpointChunk); err != nil {
			return err
		}
	}
	for _, kv := range img.Base {
		buf = appendBase(buf, kv)
		if err := flush(checkpointChunk); err != nil {
			return err
		}
	}
	for _, ev := range img.Events {
		buf = appendEvent(buf, ev)
		if err := flush(checkpointChunk); err != nil {
			return err
		}
	}
	return flush(0)
}
