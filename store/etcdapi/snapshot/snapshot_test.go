package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/vfs"
)

func reopen(t testing.TB, dir string) *embedded.Store {
	t.Helper()
	db, err := embedded.Open(embedded.Options{Dir: dir, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// dump is everything a client can see of a store.
func dump(t testing.TB, db store.Store) []string {
	t.Helper()
	ctx := t.Context()
	st := db.Status()
	out := []string{fmt.Sprintf("revision %d compacted %d keys %d", st.Revision, st.CompactRevision, st.Keys)}
	for rev := max(st.CompactRevision, 1); rev <= st.Revision; rev++ {
		snap, err := db.Snapshot(ctx, rev)
		if err != nil {
			t.Fatal(err)
		}
		for kv := range snap.Range("\x00", "\x00") {
			out = append(out, fmt.Sprintf("%d: %q=%q %d %d %d %d", rev, kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease))
		}
	}
	ids, err := db.Leases().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ids)
	for _, id := range ids {
		l, err := db.Leases().TimeToLive(ctx, id)
		out = append(out, fmt.Sprintf("lease %x %d %q %v", id, l.TTL, l.Keys, err))
	}
	return out
}

// traffic runs a seeded history of puts, deletes, leases and compactions.
func traffic(t testing.TB, db store.Store, seed uint64, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	for i := range n {
		key := fmt.Sprintf("k%d", r.IntN(12))
		var err error
		switch r.IntN(12) {
		case 0, 1:
			_, err = db.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: key, End: "k5"}}})
		case 2:
			_, err = db.Leases().Grant(ctx, store.LeaseID(i+1), 1000)
		case 3:
			_, err = db.Txn(ctx, store.Txn{Then: []store.Op{
				{Kind: store.OpPut, Key: "t1"}, {Kind: store.OpPut, Key: "t2", Value: []byte{0xff, 0}}, {Kind: store.OpDelete, Key: key}}})
		case 4:
			if st := db.Status(); st.Revision > st.CompactRevision+8 {
				err = db.Compact(ctx, st.CompactRevision+1+r.Int64N(st.Revision-st.CompactRevision))
			}
		case 5:
			ids, _ := db.Leases().List(ctx)
			if len(ids) > 0 {
				slices.Sort(ids)
				_, err = db.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Lease: ids[r.IntN(len(ids))]}}})
			}
		default:
			_, err = db.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Value: fmt.Append(nil, i)}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(30) {
		db := reopen(t, "")
		traffic(t, db, seed, int(seed)*6)
		name := filepath.Join(t.TempDir(), "db")
		buckets := map[string]map[string][]byte{"authUsers": {"u": []byte("x")}}
		if err := Write(t.Context(), name, Contents{Store: db, Buckets: buckets, Member: Member{ID: 7}}); err != nil {
			t.Fatal(err)
		}
		back, err := Read(name)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if string(back.Buckets["authUsers"]["u"]) != "x" {
			t.Errorf("seed %d: buckets %v", seed, back.Buckets)
		}
		dir := filepath.Join(t.TempDir(), "store")
		if err := embedded.Import(embedded.Options{Dir: dir, NoSync: true}, &back.Image); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		restored := reopen(t, dir)
		want, got := dump(t, db), dump(t, restored)
		if !slices.Equal(want, got) {
			t.Fatalf("seed %d:\nwant %s\ngot  %s", seed, strings.Join(want, "\n"), strings.Join(got, "\n"))
		}
		st, err := ReadStatus(name)
		if err != nil || st.Revision > db.Status().Revision || st.TotalKey != int(db.Status().Keys) || st.Version != StorageVersion {
			t.Errorf("seed %d: status %+v, %v", seed, st, err)
		}
		if err := embedded.Import(embedded.Options{Dir: dir}, &back.Image); err == nil {
			t.Error("imported twice into one folder")
		}
	}
}

func TestBump(t *testing.T) {
	db := reopen(t, "")
	traffic(t, db, 3, 60)
	name := filepath.Join(t.TempDir(), "db")
	if err := Write(t.Context(), name, Contents{Store: db}); err != nil {
		t.Fatal(err)
	}
	r, err := Read(name)
	if err != nil {
		t.Fatal(err)
	}
	r.Bump(1000)
	dir := filepath.Join(t.TempDir(), "store")
	if err := embedded.Import(embedded.Options{Dir: dir}, &r.Image); err != nil {
		t.Fatal(err)
	}
	was, is := db.Status(), reopen(t, dir).Status()
	if is.Revision != was.Revision+1000 || is.CompactRevision != is.Revision || is.Keys != was.Keys {
		t.Errorf("%+v after %+v", is, was)
	}
}

func TestCheckSum(t *testing.T) {
	db := reopen(t, "")
	traffic(t, db, 1, 20)
	name := filepath.Join(t.TempDir(), "db")
	if err := Write(t.Context(), name, Contents{Store: db}); err != nil {
		t.Fatal(err)
	}
	if err := CheckSum(name, false); err == nil {
		t.Error("a file without a checksum passes")
	}
	if err := CheckSum(name, true); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	os.WriteFile(name, append(data, sum[:]...), 0o600)
	if err := CheckSum(name, false); err != nil {
		t.Error(err)
	}
	data[len(data)/2] ^= 1
	os.WriteFile(name, append(data, sum[:]...), 0o600)
	if err := CheckSum(name, false); err == nil {
		t.Error("a damaged file passes")
	}
}

// Whatever the file holds, reading it ends in an error or in an image that
// imports or is refused; never in a panic.
func FuzzRead(f *testing.F) {
	db := reopen(f, "")
	traffic(f, db, 2, 30)
	name := filepath.Join(f.TempDir(), "db")
	if err := Write(context.Background(), name, Contents{Store: db}); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte{})
	f.Add(4096, []byte("xx"))
	f.Add(len(data)-100, []byte{0xff})
	for page := 0; page < len(data); page += 4096 {
		f.Add(page+8, []byte{1, 0, 0xff, 0xff})           // another kind of page, with more entries
		f.Add(page+12, []byte{0xff, 0xff, 0xff, 0xff})    // reaching far
		f.Add(page+16, bytes.Repeat([]byte{0xff}, 16))    // entries that point nowhere
		f.Add(page+24, []byte{2, 0, 0, 0, 0, 0, 0, 0, 2}) // trees in trees
	}
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		if at < 0 || at > len(data) {
			t.Skip()
		}
		bent := slices.Concat(data[:at], patch, data[min(at+len(patch), len(data)):])
		name := filepath.Join(t.TempDir(), "db")
		os.WriteFile(name, bent, 0o600)
		r, err := Read(name)
		if err != nil {
			return
		}
		err = embedded.Import(embedded.Options{FS: vfs.NewMem(), Dir: "/s", ExtendBytes: 4096}, &r.Image)
		if err != nil && errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}
