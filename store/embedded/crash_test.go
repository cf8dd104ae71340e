package embedded

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/storetest"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// dump writes everything a client can see of a store: every readable
// revision, the history and the leases.
func dump(t testing.TB, s *Store) []string {
	t.Helper()
	ctx := t.Context()
	st := s.Status()
	out := []string{fmt.Sprintf("revision %d compacted %d keys %d in use %d", st.Revision, st.CompactRevision, st.Keys, st.InUseBytes)}
	for rev := max(st.CompactRevision, 1); rev <= st.Revision; rev++ {
		snap, err := s.Snapshot(ctx, rev)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%d:", rev)
		for kv := range snap.Range("", "\x00") {
			line += fmt.Sprintf(" %s=%s %d/%d/%d %d %v", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, kv.Attrs)
		}
		out = append(out, line)
	}
	log := s.hub.View().Log()
	for pos := log.First(); pos < log.End(); pos++ {
		ev := log.At(pos)
		line := fmt.Sprintf("event %d %s %d", ev.Type, ev.KV.Key, ev.KV.ModRevision)
		if ev.Prev != nil && ev.KV.ModRevision > st.CompactRevision {
			line += fmt.Sprintf(" after %d", ev.Prev.ModRevision)
		}
		out = append(out, line)
	}
	ids, err := s.Leases().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range slices.Sorted(slices.Values(ids)) {
		l, err := s.Leases().TimeToLive(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("lease %x of %d s: %q", l.ID, l.TTL, l.Keys))
	}
	return out
}

func decorateLen(key string, value []byte) any { return len(key) + len(value) }

func diskOptions(fs vfs.FS) Options {
	return Options{FS: fs, Dir: "/data", Decorate: decorateLen, SegmentBytes: 8 << 10, ExtendBytes: 2 << 10, CheckpointBytes: 6 << 10}
}

// splitOptions are diskOptions with the log in a folder of its own.
func splitOptions(fs vfs.FS) Options {
	opt := diskOptions(fs)
	opt.SegmentDir = "/log"
	return opt
}

// churn runs n seeded random steps against s.
func churn(t testing.TB, s *Store, g *storetest.Gen, n int) {
	t.Helper()
	for range n {
		rev := s.Status().Revision
		ids, err := s.Leases().List(t.Context())
		if err != nil {
			return // stopped by a fault: what churn is for
		}
		slices.Sort(ids)
		switch k := g.IntN(20); {
		case k == 0:
			_, err = s.Leases().Grant(t.Context(), store.LeaseID(g.IntN(1<<30)+1), 3600)
		case k == 1 && len(ids) > 0:
			err = s.Leases().Revoke(t.Context(), ids[g.IntN(len(ids))])
		case k == 2 && g.IntN(5) == 0:
			err = s.Compact(t.Context(), 1+g.Int64N(rev))
		default:
			_, err = s.Txn(t.Context(), g.Txn(rev, ids, 1))
		}
		if s.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, store.ErrDuplicateKey) && !errors.Is(err, store.ErrCompacted) && !errors.Is(err, store.ErrNoSpace) {
			t.Fatal(err)
		}
	}
}

func TestReopenedStoreIsTheSame(t *testing.T) {
	for seed := range uint64(6) {
		fs, g := vfs.NewMem(), storetest.NewGen(seed)
		for range 5 {
			s := open(t, diskOptions(fs))
			churn(t, s, g, 150)
			want := dump(t, s)
			s.Close()
			again := open(t, diskOptions(fs))
			if got := dump(t, again); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s", seed, firstDifference(got, want))
			}
			if err := again.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			again.Close()
			third := open(t, diskOptions(fs))
			if got := dump(t, third); !slices.Equal(got, want) {
				t.Fatalf("seed %d, from a checkpoint: %s", seed, firstDifference(got, want))
			}
			third.Close()
		}
	}
}

func firstDifference(got, want []string) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("line %d\n got %s\nwant %s", i, got[i], want[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(got), len(want))
}

// crashes writes from several goroutines, cuts the power at random moments and
// returns the first acknowledged write that is not there afterwards.
func crashes(t *testing.T, seed uint64, noSync bool) error {
	rng := rand.New(rand.NewPCG(seed, 2))
	fs := vfs.NewMem()
	acked := map[string]string{}
	for round := range 12 {
		opt := []func(vfs.FS) Options{diskOptions, splitOptions}[seed%2](fs)
		opt.NoSync = noSync
		s, err := Open(opt)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := missing(t, s, acked); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		var mu sync.Mutex
		cut := rng.IntN(150)
		clone := make(chan *vfs.Mem, 1)
		var wg sync.WaitGroup
		n := 0
		for w := range 4 {
			wg.Go(func() {
				for i := range 60 {
					key, value := fmt.Sprintf("/w%d/%d", w, i%20), fmt.Sprintf("%d-%d", round, i)
					_, err := s.Txn(t.Context(), put(key, value))
					mu.Lock()
					if n++; n == cut {
						// Everything acknowledged by now must survive; later
						// writes may have begun, and are acknowledged to no one.
						clone <- fs.CrashClone(rng, rng.Float64())
					}
					if err == nil && n <= cut {
						acked[key] = value
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		s.Close()
		select {
		case fs = <-clone:
		default:
			fs = fs.CrashClone(rng, 0.5)
		}
	}
	return nil
}

// missing compares what was acknowledged with what is there. A write that
// began before the cut but was not acknowledged may be there or not.
func missing(t *testing.T, s *Store, acked map[string]string) error {
	snap, err := s.Snapshot(t.Context(), 0)
	if err != nil {
		return err
	}
	for key, want := range maps.Clone(acked) {
		kv := snap.Get(key)
		if kv == nil {
			return fmt.Errorf("%s was acknowledged and is gone", key)
		}
		if got := string(kv.Value); got != want {
			var gr, gi, wr, wi int
			fmt.Sscanf(got, "%d-%d", &gr, &gi)
			fmt.Sscanf(want, "%d-%d", &wr, &wi)
			if gr < wr || gr == wr && gi < wi {
				return fmt.Errorf("%s is %s, older than the acknowledged %s", key, got, want)
			}
			acked[key] = got
		}
	}
	return nil
}

func TestAcknowledgedWritesSurvivePowerLoss(t *testing.T) {
	for seed := range uint64(40) {
		if err := crashes(t, seed, false); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// The positive control: without syncs the same test must find a loss.
func TestPowerLossIsNoticedWithoutSync(t *testing.T) {
	for seed := range uint64(40) {
		if crashes(t, seed, true) != nil {
			return
		}
	}
	t.Error("no write was lost without fdatasync: the crash test proves nothing")
}

func TestFailedSyncStopsTheStoreForGood(t *testing.T) {
	var fail bool
	syncs := 0
	mem := vfs.NewMem()
	fs := vfs.Faulty(mem, func(op vfs.Op, _ string) error {
		if op == vfs.OpSync && fail {
			syncs++
			return syscall.EIO
		}
		return nil
	})
	s := open(t, diskOptions(fs))
	if _, err := s.Txn(t.Context(), put("k", "good")); err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(t.Context(), store.WatchRequest{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	fail = true
	if _, err := s.Txn(t.Context(), put("k", "lost")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a put whose fdatasync failed: %v", err)
	}
	fail = false
	<-s.Done()
	if _, err := s.Txn(t.Context(), put("k", "later")); !errors.Is(err, syscall.EIO) {
		t.Errorf("a later put: %v, want the same error", err)
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("a watcher: %v, want the same error", err)
	}
	if _, err := s.Snapshot(t.Context(), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read: %v, want the same error", err)
	}
	if syncs != 1 {
		t.Errorf("fdatasync was tried %d times, want once", syncs)
	}
	s.Close()
	again := open(t, diskOptions(mem.CrashClone(rand.New(rand.NewPCG(1, 1)), 0)))
	snap, _ := again.Snapshot(t.Context(), 0)
	if kv := snap.Get("k"); kv == nil || string(kv.Value) != "good" {
		t.Errorf("after restart: %+v, want the acknowledged value", kv)
	}
}

// A full disk refuses puts, lets deletions and compactions through, and the
// store recovers without a restart.
func TestFullDisk(t *testing.T) {
	var full bool
	fs := vfs.Faulty(vfs.NewMem(), func(op vfs.Op, _ string) error {
		if full && (op == vfs.OpCreate) {
			return syscall.ENOSPC
		}
		return nil
	})
	opt := diskOptions(&growing{fs, &full})
	opt.SegmentBytes, opt.ExtendBytes, opt.CheckpointBytes = 4<<20, 512<<10, 1<<30
	s := open(t, opt)
	ctx := t.Context()
	if _, err := s.Txn(ctx, put("old", "v")); err != nil {
		t.Fatal(err)
	}
	full = true
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		_, err = s.Txn(ctx, put(fmt.Sprint("k", i), "some value"))
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("puts on a full disk end with %v", err)
	}
	for err = nil; err == nil; {
		_, err = s.Leases().Grant(ctx, 0, 60) // smaller than a put: a few may fit
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("grants end with %v, want ErrNoSpace", err)
	}
	if _, err := s.Txn(ctx, store.Txn{Then: []store.Op{storetest.Delete("old", "")}}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.Compact(ctx, s.Status().Revision); err != nil {
		t.Errorf("compact: %v", err)
	}
	full = false
	if _, err := s.Txn(ctx, put("new", "v")); err != nil {
		t.Errorf("put with room again: %v", err)
	}
	want := digest(s)
	s.Close()
	if digest(open(t, opt)) != want {
		t.Error("the reopened store is another")
	}
}

// growing is a disk on which files cannot grow while it is full.
type growing struct {
	vfs.FS
	full *bool
}

func (g *growing) Create(name string) (vfs.File, error) {
	f, err := g.FS.Create(name)
	return &growingFile{f, g.full}, err
}

func (g *growing) Open(name string) (vfs.File, error) {
	f, err := g.FS.Open(name)
	return &growingFile{f, g.full}, err
}

type growingFile struct {
	vfs.File
	full *bool
}

func (f *growingFile) WriteAt(p []byte, off int64) (int, error) {
	if size, _ := f.Size(); *f.full && off+int64(len(p)) > size {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

func TestQuota(t *testing.T) {
	s := open(t, Options{QuotaBytes: 20_000})
	ctx := t.Context()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = s.Txn(ctx, put("k", "0123456789"))
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("puts over quota end with %v", err)
	}
	if err := s.Compact(ctx, s.Status().Revision); err != nil {
		t.Fatal(err)
	}
	for s.sweepOnce(t) {
	}
	if _, err := s.Txn(ctx, put("k", "again")); err != nil {
		t.Errorf("put after compaction: %v", err)
	}
}

func (s *Store) sweepOnce(t *testing.T) (more bool) {
	if err := s.do(t.Context(), sweepInto(&more)); err != nil {
		t.Fatal(err)
	}
	return more
}

func TestSecondOpenIsRefusedNamingTheProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	locked := (*LockedError)(nil)
	if !errors.As(err, &locked) || locked.PID != syscall.Getpid() || locked.Dir != dir {
		t.Errorf("second open: %v", err)
	}
}

// Every bit of the files is flipped, one at a time: the store must refuse to
// open and name the file, or open with everything that was acknowledged.
func TestBitFlips(t *testing.T) {
	fs := vfs.NewMem()
	opt := diskOptions(fs)
	opt.CheckpointBytes = 1 << 30
	s := open(t, opt)
	for i := range 3 {
		if _, err := s.Txn(t.Context(), put(fmt.Sprint("a", i), "value")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := s.Txn(t.Context(), put(fmt.Sprint("b", i), "value")); err != nil {
			t.Fatal(err)
		}
	}
	want := dump(t, s)
	s.Close()
	names, _ := fs.List("/data")
	for _, name := range names {
		f, err := fs.Open("/data/" + name)
		if err != nil {
			t.Fatal(err)
		}
		size, _ := f.Size()
		for off := range min(size, 450) {
			for bit := range 8 {
				flip(t, f, off, bit)
				clone := fs.CrashClone(rand.New(rand.NewPCG(1, 1)), 1)
				flip(t, f, off, bit)
				again, err := Open(diskOptions(clone))
				corrupt := (*wal.CorruptError)(nil)
				if err == nil {
					if got := dump(t, again); !slices.Equal(got, want) {
						t.Fatalf("%s, byte %d, bit %d: opened with other content: %s", name, off, bit, firstDifference(got, want))
					}
					again.Close()
				} else if !errors.As(err, &corrupt) && off >= 12 {
					t.Fatalf("%s, byte %d, bit %d: %v", name, off, bit, err)
				} else if corrupt != nil && corrupt.File != "/data/"+name {
					t.Fatalf("%s, byte %d, bit %d: blames %s", name, off, bit, corrupt.File)
				}
			}
		}
	}
}

func flip(t *testing.T, f vfs.File, off int64, bit int) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// Defragmenting an idle store, twice or right after a start, loses nothing.
func TestCheckpointsWithNothingBetween(t *testing.T) {
	disk := vfs.NewMem()
	for start := range 3 {
		s, err := Open(diskOptions(disk))
		if err != nil {
			t.Fatalf("start %d: %v", start, err)
		}
		if start == 0 {
			if _, err := s.Txn(t.Context(), put("k", "v")); err != nil {
				t.Fatal(err)
			}
		}
		snap, err := s.Snapshot(t.Context(), 0)
		if err != nil || snap.Get("k") == nil {
			t.Fatalf("start %d: the key is gone, %v", start, err)
		}
		for range 2 {
			if err := s.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
}
