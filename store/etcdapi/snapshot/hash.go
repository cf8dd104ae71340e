package snapshot

import (
	"context"
	"hash/crc32"

	"github.com/skiff-project/skiff/store"
)

// HashKV is the hash stock etcd has of the same keys and history at a revision
// (0: the newest), so that members of either kind can be compared: over the
// entries of its key bucket, but of those from before the last compaction only
// the ones still current at the revision. Errors: store.ErrCompacted,
// store.ErrFutureRevision.
func HashKV(ctx context.Context, s store.Store, rev int64) (hash uint32, at, compacted int64, err error) {
	v, err := openView(ctx, s, rev)
	if err != nil {
		return 0, 0, 0, err
	}
	defer v.watcher.Close()
	var base []*store.KV
	if v.base != nil {
		for kv := range v.newest.Range("\x00", "\x00") {
			if kv.ModRevision <= v.compacted {
				base = append(base, kv)
			}
		}
		if v.newest.Count("\x00", "\x00") == 0 { // etcd then leaves nothing out
			for kv := range v.base.Range("\x00", "\x00") {
				base = append(base, kv)
			}
		}
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	hash = crc32.Checksum([]byte("key"), table)
	err = v.records(ctx, base, func(key, value []byte) error {
		hash = crc32.Update(crc32.Update(hash, table, key), table, value)
		return nil
	})
	return hash, v.rev, v.compacted, err
}
