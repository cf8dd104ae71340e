// Package snapshot turns a store into a file that stock etcd restores, and
// such a file into a store: the way in and out of Skiff.
//
// The file is etcd's backend, a bbolt database (buckets below; formats from
// etcd's storage/schema), followed by the SHA-256 of all before it.
//
//	key     revision (8 bytes, '_', 8 bytes of order in it, 't' if a deletion) → mvccpb.KeyValue
//	lease   id (8 bytes) → leasepb.Lease
//	meta    consistent_index, term, confState, storageVersion, scheduledCompactRev, finishedCompactRev
//	cluster clusterVersion          members  id in hex → member, JSON
//	alarm, auth, authUsers, authRoles  copied as they are
package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
)

// StorageVersion is the version of the schema written.
const StorageVersion = "3.7.0"

// Buckets that are copied from and to the side store as they are.
var Copied = []string{"alarm", "auth", "authUsers", "authRoles"}

// Contents is what a snapshot is made of.
type Contents struct {
	Store store.Store
	// Buckets hold the content of the Copied buckets.
	Buckets map[string]map[string][]byte
	// Member describes the member the snapshot is taken from.
	Member Member
}

// Member goes into the members bucket; a restore replaces it.
type Member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Bounds of one transaction of the file being written.
const (
	putsPerCommit  = 10_000
	bytesPerCommit = 16 << 20
)

// Write makes the file name, which must not exist, of a consistent view of the
// store at one revision. The checksum is not appended.
func Write(ctx context.Context, name string, c Contents) error {
	db, err := bolt.Open(name, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, NoGrowSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	w := &writer{db: db}
	err = w.write(ctx, &c)
	if e := w.commit(); err == nil {
		err = e
	}
	if e := db.Close(); err == nil {
		err = e
	}
	return err
}

// writer puts into buckets, a transaction at a time.
type writer struct {
	db    *bolt.DB
	tx    *bolt.Tx
	puts  int
	bytes int
}

func (w *writer) commit() error {
	if w.tx == nil {
		return nil
	}
	tx := w.tx
	w.tx, w.puts, w.bytes = nil, 0, 0
	return tx.Commit()
}

func (w *writer) put(bucket string, key, value []byte) error {
	if w.puts >= putsPerCommit || w.bytes >= bytesPerCommit {
		if err := w.commit(); err != nil {
			return err
		}
	}
	if w.tx == nil {
		tx, err := w.db.Begin(true)
		if err != nil {
			return err
		}
		w.tx = tx
	}
	b, err := w.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	b.FillPercent = 0.9 // revisions only grow
	w.puts++
	w.bytes += len(key) + len(value)
	if len(key) == 0 {
		return nil // only the bucket
	}
	return b.Put(key, value)
}

// revisionKey is a key of the key bucket.
func revisionKey(rev, sub int64, deleted bool) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 18), uint64(rev))
	b = binary.BigEndian.AppendUint64(append(b, '_'), uint64(sub))
	if deleted {
		b = append(b, 't')
	}
	return b
}

func uint64Bytes(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func (w *writer) write(ctx context.Context, c *Contents) error {
	for _, bucket := range append([]string{"key", "meta", "lease", "cluster", "members", "members_removed"}, Copied...) {
		if err := w.put(bucket, nil, nil); err != nil {
			return err
		}
		for key, value := range c.Buckets[bucket] {
			if err := w.put(bucket, []byte(key), value); err != nil {
				return err
			}
		}
	}
	v, err := openView(ctx, c.Store, 0)
	if err != nil {
		return err
	}
	defer v.watcher.Close()
	if err := w.keys(ctx, v); err != nil {
		return err
	}
	if err := w.leases(ctx, c.Store.Leases()); err != nil {
		return err
	}
	return w.meta(c, v)
}

// view is everything since the last compaction: the keys then, and a watcher
// of what changed up to the revision rev.
type view struct {
	base      store.Snapshot // nil without a compaction
	newest    store.Snapshot
	watcher   store.Watcher
	compacted int64
	rev       int64
}

// openView takes a consistent view up to revision rev, 0 for the newest; a
// compaction under way makes it try again.
func openView(ctx context.Context, s store.Store, rev int64) (*view, error) {
	for {
		v := &view{compacted: s.Status().CompactRevision}
		newest, err := s.Snapshot(ctx, rev)
		if err != nil {
			return nil, err
		}
		v.rev, v.newest = newest.Revision(), newest
		if v.compacted > 0 {
			v.base, err = s.Snapshot(ctx, v.compacted)
		}
		if err == nil {
			v.watcher, err = s.Watch(ctx, store.WatchRequest{Key: "\x00", End: "\x00", StartRevision: v.compacted + 1})
		}
		if !errors.Is(err, store.ErrCompacted) || rev > 0 && rev < s.Status().CompactRevision {
			return v, err
		}
	}
}

func (w *writer) keys(ctx context.Context, v *view) error {
	var base []*store.KV
	if v.base != nil {
		base = slices.Collect(v.base.Range("\x00", "\x00"))
	}
	return v.records(ctx, base, func(key, value []byte) error {
		return w.put("key", key, bytes.Clone(value)) // the file takes it at the next commit
	})
}

// records hands the entries of the key bucket to add, which must not keep the
// value, in order: those of base,
// then those of every change after the compaction.
func (v *view) records(ctx context.Context, base []*store.KV, add func(key, value []byte) error) error {
	slices.SortFunc(base, func(a, b *store.KV) int {
		return cmp.Or(cmp.Compare(a.ModRevision, b.ModRevision), cmp.Compare(a.Order, b.Order))
	})
	var value []byte
	one := func(kv *store.KV, deleted bool) (err error) {
		body := &mvccpb.KeyValue{Key: []byte(kv.Key)}
		if !deleted {
			body.Value, body.Lease = kv.Value, int64(kv.Lease)
			body.CreateRevision, body.ModRevision, body.Version = kv.CreateRevision, kv.ModRevision, kv.Version
		}
		if value, err = (proto.MarshalOptions{}).MarshalAppend(value[:0], body); err != nil {
			return err
		}
		return add(revisionKey(kv.ModRevision, int64(kv.Order), deleted), value)
	}
	for _, kv := range base {
		if err := one(kv, false); err != nil {
			return err
		}
	}
	for at := max(v.compacted, 1); at < v.rev; { // revision 1 is the empty store
		batch, err := v.watcher.Next(ctx)
		if err != nil {
			return err
		}
		for _, ev := range batch.Events {
			if ev.KV.ModRevision > v.rev {
				return nil
			}
			if err := one(ev.KV, ev.Type == store.EventDelete); err != nil {
				return err
			}
		}
		at = batch.Revision
	}
	return nil
}

func (w *writer) leases(ctx context.Context, leases store.Leases) error {
	ids, err := leases.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		lease, err := leases.TimeToLive(ctx, id)
		if errors.Is(err, store.ErrLeaseNotFound) {
			continue // ended meanwhile
		}
		if err != nil {
			return err
		}
		body := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(id))
		body = protowire.AppendVarint(protowire.AppendTag(body, 2, protowire.VarintType), uint64(lease.TTL))
		if err := w.put("lease", uint64Bytes(uint64(id)), body); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) meta(c *Contents, v *view) error {
	conf, err := json.Marshal(map[string]any{"voters": []uint64{c.Member.ID}, "auto_leave": false})
	if err != nil {
		return err
	}
	member, err := json.Marshal(c.Member)
	if err != nil {
		return err
	}
	puts := []struct {
		bucket, key string
		value       []byte
	}{
		{"meta", "consistent_index", uint64Bytes(uint64(v.rev))},
		{"meta", "term", uint64Bytes(1)},
		{"meta", "confState", conf},
		{"meta", "storageVersion", []byte(StorageVersion)},
		{"cluster", "clusterVersion", []byte(StorageVersion)},
		{"members", strconv.FormatUint(c.Member.ID, 16), member},
	}
	if v.compacted > 0 {
		for _, key := range []string{"scheduledCompactRev", "finishedCompactRev"} {
			puts = append(puts, struct {
				bucket, key string
				value       []byte
			}{"meta", key, revisionKey(v.compacted, 0, false)})
		}
	}
	for _, p := range puts {
		if err := w.put(p.bucket, []byte(p.key), p.value); err != nil {
			return err
		}
	}
	return nil
}

// Temporary names a file beside the store, or in the system's temporary
// folder, for a snapshot being made; it does not exist yet.
func Temporary(dir string) (string, error) {
	f, err := os.CreateTemp(dir, "snapshot-*.tmp")
	if err != nil {
		return "", fmt.Errorf("make a snapshot: %w", err)
	}
	f.Close()
	return f.Name(), os.Remove(f.Name())
}
