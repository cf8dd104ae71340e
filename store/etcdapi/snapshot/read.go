package snapshot

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
)

// sectorSize: a database is whole sectors, so what is more is the checksum.
const sectorSize = 512

// CheckSum proves the checksum at the end of a snapshot file. A file without
// one, copied from a data folder, is an error unless skip is set.
func CheckSum(name string, skip bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || skip {
		return err
	}
	size := info.Size() - sha256.Size
	if size <= 0 || size%sectorSize != 0 {
		return fmt.Errorf("snapshot %s has no checksum: if it was copied from a data folder, give --skip-hash-check", name)
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, size); err != nil {
		return err
	}
	want, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return fmt.Errorf("snapshot %s is damaged: expected sha256 %x, got %x", name, want, h.Sum(nil))
	}
	return nil
}

// Status is what `etcdutl snapshot status` tells.
type Status struct {
	Hash      uint32 `json:"hash"`
	Revision  int64  `json:"revision"`
	TotalKey  int    `json:"totalKey"`
	TotalSize int64  `json:"totalSize"`
	Version   string `json:"version"`
}

// ReadStatus reads a snapshot's status, as stock etcdutl computes it.
func ReadStatus(name string) (Status, error) {
	var st Status
	db, err := openDatabase(name)
	if err != nil {
		return st, err
	}
	defer db.f.Close()
	st.TotalSize = int64(db.pages) * db.pageSize
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	live := map[string]struct{}{}
	for i := range db.buckets {
		b := &db.buckets[i]
		h.Write([]byte(b.name))
		err := db.each(b, func(k, v []byte) error {
			h.Write(k)
			h.Write(v)
			if b.name == "meta" && string(k) == "storageVersion" {
				st.Version = string(v)
			}
			if b.name != "key" {
				return nil
			}
			rec, err := parse(k, v)
			if err != nil {
				return err
			}
			st.Revision = rec.kv.ModRevision
			if rec.deleted {
				delete(live, rec.kv.Key)
			} else {
				live[rec.kv.Key] = struct{}{}
			}
			return nil
		})
		if err != nil {
			return st, err
		}
	}
	st.Hash, st.TotalKey = h.Sum32(), len(live)
	return st, nil
}

// record is an entry of the key bucket. A put's revisions are the value's, a
// deletion has its own as ModRevision.
type record struct {
	kv      *store.KV
	deleted bool
}

func parse(k, v []byte) (record, error) {
	if len(k) != 17 && !(len(k) == 18 && k[17] == 't') || k[8] != '_' {
		return record{}, fmt.Errorf("%x is no revision", k)
	}
	rec := record{deleted: len(k) == 18}
	var body mvccpb.KeyValue
	if err := proto.Unmarshal(v, &body); err != nil {
		return record{}, fmt.Errorf("the value at revision %x does not decode: %w", k, err)
	}
	rec.kv = &store.KV{Key: string(body.Key), Value: body.Value, CreateRevision: body.CreateRevision,
		ModRevision: int64(binary.BigEndian.Uint64(k)), Order: int32(binary.BigEndian.Uint64(k[9:])), Version: body.Version, Lease: store.LeaseID(body.Lease)}
	return rec, nil
}

// Restored is a snapshot read: the keys, and the Copied buckets.
type Restored struct {
	Image   mvcc.Image
	Buckets map[string]map[string][]byte
}

// Read reads a snapshot.
func Read(name string) (*Restored, error) {
	db, err := openDatabase(name)
	if err != nil {
		return nil, err
	}
	defer db.f.Close()
	r := &Restored{Image: mvcc.Image{Revision: 1, Leases: map[store.LeaseID]int64{}}, Buckets: map[string]map[string][]byte{}}
	if err := r.read(db); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	return r, nil
}

func (r *Restored) read(db *database) error {
	keys, meta := db.bucket("key"), db.bucket("meta")
	if keys == nil || meta == nil {
		return errors.New("it has no keys: it is not one of etcd 3")
	}
	err := db.each(meta, func(k, v []byte) error {
		if (string(k) == "scheduledCompactRev" || string(k) == "finishedCompactRev") && len(v) >= 8 {
			r.Image.Compacted = max(r.Image.Compacted, int64(binary.BigEndian.Uint64(v)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.readKeys(db, keys); err != nil {
		return err
	}
	for _, name := range Copied {
		b := db.bucket(name)
		if b == nil {
			continue
		}
		r.Buckets[name] = map[string][]byte{}
		err := db.each(b, func(k, v []byte) error {
			r.Buckets[name][string(k)] = v
			return nil
		})
		if err != nil {
			return err
		}
	}
	if b := db.bucket("lease"); b != nil {
		return db.each(b, r.readLease)
	}
	return nil
}

func (r *Restored) readKeys(db *database, b *bucket) error {
	img := &r.Image
	base := map[string]*store.KV{}
	err := db.each(b, func(k, v []byte) error {
		rec, err := parse(k, v)
		if err != nil {
			return err
		}
		rev := rec.kv.ModRevision
		img.Revision = max(img.Revision, rev)
		if rec.kv.Key == "" {
			return nil // the mark of a bumped revision
		}
		if rev <= img.Compacted && rec.deleted {
			delete(base, rec.kv.Key)
		} else if rev <= img.Compacted {
			base[rec.kv.Key] = rec.kv
		}
		if rev >= img.Compacted {
			img.Events = append(img.Events, event(rec))
		}
		return nil
	})
	if err != nil {
		return err
	}
	img.Revision = max(img.Revision, img.Compacted)
	for _, kv := range base {
		img.Base = append(img.Base, kv)
	}
	sortKeys(img.Base)
	return nil
}

func event(rec record) store.Event {
	if rec.deleted {
		return store.Event{Type: store.EventDelete, KV: &store.KV{Key: rec.kv.Key, ModRevision: rec.kv.ModRevision}}
	}
	return store.Event{Type: store.EventPut, KV: rec.kv}
}

func sortKeys(kvs []*store.KV) {
	slices.SortFunc(kvs, func(a, b *store.KV) int { return cmp.Compare(a.Key, b.Key) })
}

func (r *Restored) readLease(k, v []byte) error {
	if len(k) != 8 {
		return fmt.Errorf("%x is no lease", k)
	}
	for len(v) > 0 {
		num, typ, n := protowire.ConsumeTag(v)
		if n < 0 {
			return fmt.Errorf("lease %x does not decode", k)
		}
		m := protowire.ConsumeFieldValue(num, typ, v[n:])
		if m < 0 {
			return fmt.Errorf("lease %x does not decode", k)
		}
		if num == 2 && typ == protowire.VarintType {
			ttl, _ := protowire.ConsumeVarint(v[n:])
			r.Image.Leases[store.LeaseID(binary.BigEndian.Uint64(k))] = max(int64(ttl), 1)
		}
		v = v[n+m:]
	}
	return nil
}

// Bump raises the newest revision by n and compacts everything below, so that
// clients of the store as it was before never see a revision again.
func (r *Restored) Bump(n int64) {
	img := &r.Image
	live := map[string]*store.KV{}
	for _, kv := range img.Base {
		live[kv.Key] = kv
	}
	for _, ev := range img.Events {
		if ev.Type == store.EventDelete {
			delete(live, ev.KV.Key)
		} else {
			live[ev.KV.Key] = ev.KV
		}
	}
	img.Base, img.Events = img.Base[:0], nil
	for _, kv := range live {
		img.Base = append(img.Base, kv)
	}
	sortKeys(img.Base)
	img.Revision += n
	img.Compacted = img.Revision
}

// EnsureEmpty refuses a data folder that has anything in it.
func EnsureEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		return fmt.Errorf("data-dir %q not empty or could not be read", filepath.Clean(dir))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
