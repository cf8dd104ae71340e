package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/storetest"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// long reports whether every case is wanted, not a part of each kind.
func long() bool { return os.Getenv("SKIFF_TEST_LONG") != "" }

// every is a stride: 1 in the long run.
func every(n int) int {
	if long() {
		return 1
	}
	return n
}

var digestSeed = maphash.MakeSeed()

// digest sums up all a client can see of a store: revisions, the keys at the
// compact revision and now, the history between, the leases and their keys.
func digest(s *Store) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	v := s.hub.View()
	num := func(ns ...int64) {
		for _, n := range ns {
			maphash.WriteComparable(&h, n)
		}
	}
	str := func(s string) {
		num(int64(len(s)))
		h.WriteString(s)
	}
	num(v.Revision(), v.CompactRevision(), int64(v.Len()))
	show := func(kv *store.KV) {
		str(kv.Key)
		num(int64(len(kv.Value)))
		h.Write(kv.Value)
		attrs, _ := kv.Attrs.(int)
		num(kv.CreateRevision, kv.ModRevision, kv.Version, int64(kv.Lease), int64(attrs))
	}
	for kv := range v.Range("", "\x00") {
		show(kv)
	}
	if v.CompactRevision() > 0 {
		old, err := v.At(v.CompactRevision())
		if err != nil {
			panic(err)
		}
		for kv := range old.Range("", "\x00") {
			show(kv)
		}
	}
	for pos := v.Log().First(); pos < v.Log().End(); pos++ {
		ev := v.Log().At(pos)
		num(int64(ev.Type))
		show(ev.KV)
		if ev.Prev != nil && ev.KV.ModRevision > v.CompactRevision()+1 {
			show(ev.Prev)
		}
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	leases := s.core.Leases()
	for _, id := range slices.Sorted(maps.Keys(leases)) {
		_, keys, _ := s.core.Lease(id)
		num(int64(id), leases[id].TTL, leases[id].Left)
		for _, key := range keys {
			str(key)
		}
	}
	return h.Sum64()
}

// trace is a seeded run of operations that notes the state after each.
type trace struct {
	s       *Store
	g       *storetest.Gen
	digests []uint64     // by operation acknowledged; [0] is the fresh store
	begun   atomic.Int64 // operations begun
	acked   atomic.Int64 // operations acknowledged
	kinds   map[string]int

	noCheckpoint bool
}

func newTrace(s *Store, seed uint64) *trace {
	return &trace{s: s, g: storetest.NewGen(seed), digests: []uint64{digest(s)}, kinds: map[string]int{}}
}

// step does the next operation that changes the store. An error means that
// the store has stopped, or refused for lack of space.
func (tr *trace) step(ctx context.Context) error {
	for {
		kind, do := tr.choose(ctx)
		tr.begun.Store(tr.acked.Load() + 1)
		before := tr.digests[len(tr.digests)-1]
		err := do()
		if errors.Is(err, store.ErrDuplicateKey) || errors.Is(err, store.ErrCompacted) || errors.Is(err, store.ErrLeaseExists) {
			continue
		}
		if err != nil {
			return err
		}
		after := digest(tr.s)
		if kind != "checkpoint" && after == before {
			continue
		}
		tr.kinds[kind]++
		tr.digests = append(tr.digests, after)
		tr.acked.Store(int64(len(tr.digests) - 1))
		return nil
	}
}

func (tr *trace) choose(ctx context.Context) (string, func() error) {
	g, s := tr.g, tr.s
	rev := s.Status().Revision
	ids, _ := s.Leases().List(ctx)
	slices.Sort(ids)
	txn := func(t store.Txn) func() error {
		return func() error {
			_, err := s.Txn(ctx, t)
			return err
		}
	}
	switch k := g.IntN(41); {
	case k < 2:
		id := store.LeaseID(g.IntN(1<<30) + 1)
		return "grant", func() error {
			_, err := s.Leases().Grant(ctx, id, 3600)
			return err
		}
	case k == 2 && len(ids) > 0:
		id := ids[g.IntN(len(ids))]
		return "revoke", func() error { return s.Leases().Revoke(ctx, id) }
	case k == 40 && len(ids) > 0:
		id, left := ids[g.IntN(len(ids))], g.Int64N(3600)
		return "left", func() error { return s.do(ctx, func(core *mvcc.Core) error { return core.SetLeft(id, left) }) }
	case k == 3 && rev > 1:
		at := max(1, rev-g.Int64N(min(rev, 40)))
		return "compact", func() error { return s.Compact(ctx, at) }
	case k == 4 && !tr.noCheckpoint && g.IntN(4) == 0:
		return "checkpoint", func() error { return ignoreBusy(s.Checkpoint(ctx)) }
	case k < 8: // a value with whole sectors of zeros
		return "put", txn(put(fmt.Sprint("/z/", g.IntN(3)), string(make([]byte, 300+g.IntN(1500)))))
	case k < 18:
		return "put", txn(put(fmt.Sprintf("/a/%d", g.IntN(8)), fmt.Sprint("v", g.Uint64())))
	case k < 24:
		return "delete", txn(store.Txn{Then: []store.Op{storetest.Delete(fmt.Sprintf("/a/%d", g.IntN(8)), "")}})
	}
	return "txn", txn(g.Txn(rev, ids, 1))
}

func ignoreBusy(err error) error {
	if err != nil && err.Error() == "a checkpoint is being written already" {
		return nil
	}
	return err
}

// left is a disk as a power cut at some boundary leaves it.
type left struct {
	disk   *vfs.Mem
	lo, hi int64 // operations that were acknowledged, begun
	what   string
	split  bool // the log is in a folder of its own
}

func (l *left) options(fs vfs.FS) Options {
	if l.split {
		return splitOptions(fs)
	}
	return diskOptions(fs)
}

// boundaries takes what a power cut would leave before every write, sync,
// rename, create and remove that a file system is asked for.
type boundaries struct {
	mem  *vfs.Mem
	tr   *trace // nil while the store opens
	n    int
	rng  *rand.Rand
	last vfs.Op
	// stride is how many boundaries apart cuts are.
	stride int
	split  bool
	mu     sync.Mutex
	lefts  []left
}

func (b *boundaries) check(op vfs.Op, name string) error {
	if op == vfs.OpRead || op == vfs.OpOpen {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n++; b.n%b.stride != 0 {
		return nil
	}
	keeps := []float64{0, []float64{b.rng.Float64(), 1}[b.n%2]}
	if b.last == vfs.OpSync { // nothing, or little, is unsynced
		keeps = keeps[1:]
	}
	b.last = op
	for _, keep := range keeps {
		l := left{split: b.split, what: fmt.Sprintf("boundary %d: before %s of %s, %.2f of the unsynced kept", b.n, op, name, keep)}
		if b.tr != nil {
			l.lo = b.tr.acked.Load()
		}
		l.disk = b.mem.CrashClone(b.rng, keep)
		if b.tr != nil {
			l.hi = b.tr.begun.Load()
		}
		b.lefts = append(b.lefts, l)
	}
	return nil
}

func (b *boundaries) take() []left {
	b.mu.Lock()
	defer b.mu.Unlock()
	lefts := b.lefts
	b.lefts = nil
	return lefts
}

// recovered opens what was left and returns which acknowledged state it is.
func recovered(t *testing.T, l left, digests []uint64, check func(vfs.Op, string) error) {
	t.Helper()
	s, err := Open(l.options(vfs.Faulty(l.disk, check)))
	if err != nil {
		t.Fatalf("%s: %v", l.what, err)
	}
	defer s.Close()
	got := digest(s)
	hi := min(l.hi, int64(len(digests)-1))
	if !slices.Contains(digests[l.lo:hi+1], got) {
		t.Fatalf("%s: the state is not that after operations %d to %d; as a whole it is that after %d",
			l.what, l.lo, hi, slices.Index(digests, got))
	}
}

func nothing(vfs.Op, string) error { return nil }

// The power goes at every write and sync boundary of ten traces of 1,000
// operations (in the short run at every third of one trace): what was
// acknowledged is there, what was under way is there as a whole or not at all,
// and nothing else is. Every few boundaries the power goes again at every
// boundary of the recovery itself. The second trace (in the short run at every
// twelfth) has its log in a folder of its own.
func TestPowerLossAtEveryBoundary(t *testing.T) {
	for seed := range uint64(2 + 8/every(10)) {
		mem := vfs.NewMem()
		b := &boundaries{mem: mem, rng: rand.New(rand.NewPCG(seed, 3)), stride: every(3), split: seed == 1}
		if b.split {
			b.stride = every(12)
		}
		s := open(t, (&left{split: b.split}).options(vfs.Faulty(mem, b.check)))
		tr := newTrace(s, seed)
		b.mu.Lock()
		b.tr = tr
		b.mu.Unlock()
		checked, again := 0, 0
		for range 1000 {
			if err := tr.step(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, l := range b.take() {
				if checked++; checked%every(71) == 0 {
					again += recoverTwice(t, l, tr.digests)
					continue
				}
				recovered(t, l, tr.digests, nothing)
			}
		}
		s.Close()
		t.Logf("seed %d: 1,000 operations %v, %d boundaries, %d power cuts and %d more during recovery", seed, tr.kinds, b.n, checked, again)
		if want := []string{"checkpoint", "compact", "delete", "grant", "left", "put", "revoke", "txn"}; !slices.Equal(slices.Sorted(maps.Keys(tr.kinds)), want) {
			t.Errorf("the trace lacks a kind of operation: %v", tr.kinds)
		}
	}
}

// recoverTwice cuts the power at every boundary of a recovery.
func recoverTwice(t *testing.T, l left, digests []uint64) int {
	b := &boundaries{mem: l.disk, rng: rand.New(rand.NewPCG(1, 3)), stride: 1}
	recovered(t, l, digests, b.check)
	for _, second := range b.lefts {
		second.lo, second.hi, second.split = l.lo, l.hi, l.split
		second.what = l.what + ", then " + second.what
		recovered(t, second, digests, nothing)
	}
	return len(b.lefts)
}

// Each write, sync, create, rename and remove of a trace fails once. After an
// I/O error nothing more is acknowledged and the store stops; without space it
// may go on. What was acknowledged is there after a power cut.
func TestDiskErrorAtEveryBoundary(t *testing.T) {
	const steps = 150
	healthy := newTrace(open(t, diskOptions(vfs.NewMem())), 5)
	for range steps + 1 {
		if err := healthy.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cases := 0
	for _, failure := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for at := 1; failsAt(t, at, steps, failure, healthy.digests); at += every(19) {
			cases++
		}
	}
	t.Logf("%d disk errors", cases)
}

// failsAt makes the disk operation number at fail. It reports whether there
// were that many.
func failsAt(t *testing.T, at, steps int, failure syscall.Errno, healthy []uint64) bool {
	mem := vfs.NewMem()
	var n atomic.Int64
	var failed atomic.Pointer[string]
	s, err := Open(diskOptions(vfs.Faulty(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpRead || op == vfs.OpOpen || n.Add(1) != int64(at) {
			return nil
		}
		what := fmt.Sprintf("%s of %s failing with %v", op, name, failure)
		failed.Store(&what)
		return failure
	})))
	if err != nil {
		if failed.Load() == nil {
			t.Fatal(err)
		}
		return true
	}
	defer s.Close()
	tr := newTrace(s, 5)
	for range steps {
		if err := tr.step(t.Context()); err != nil && s.Err() != nil {
			break
		}
	}
	if failed.Load() == nil {
		return false
	}
	what := *failed.Load()
	for failure == syscall.EIO && s.Err() == nil {
		runtime.Gosched() // it was the checkpoint's
	}
	want := tr.digests[tr.acked.Load():]
	if s.Err() != nil {
		want = append(want, healthy[tr.acked.Load()+1]) // the operation under way
		if _, err := s.Txn(t.Context(), put("k", "v")); err == nil {
			t.Fatalf("%s: acknowledged after the store stopped", what)
		}
	}
	for _, keep := range []float64{0, 1} {
		again, err := Open(diskOptions(mem.CrashClone(rand.New(rand.NewPCG(1, 1)), keep)))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := digest(again); !slices.Contains(want, got) {
			t.Fatalf("%s, %v kept: not what was acknowledged, %d operations", what, keep, tr.acked.Load())
		}
		again.Close()
	}
	return true
}

// bigLog is a log file full of frames, one an operation.
type bigLog struct {
	image   []byte
	ends    []int    // of the frames; [0] is the header's
	digests []uint64 // by frames
}

const bigLogBytes = 64 << 10

func bigOptions(fs vfs.FS) Options {
	opt := diskOptions(fs)
	opt.SegmentBytes, opt.ExtendBytes, opt.CheckpointBytes = bigLogBytes, bigLogBytes, 1<<30
	return opt
}

func newBigLog(t *testing.T) *bigLog {
	mem := vfs.NewMem()
	opt := bigOptions(mem)
	opt.SegmentBytes = 1 << 30
	s := open(t, opt)
	tr := newTrace(s, 11)
	tr.noCheckpoint = true
	l := &bigLog{ends: []int{32}}
	for {
		if err := tr.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, _, since := s.log.Sizes()
		if 32+since > bigLogBytes-200 {
			break
		}
		l.ends = append(l.ends, 32+int(since))
	}
	l.digests = tr.digests[:len(l.ends)]
	s.Close()
	f, err := mem.Open(bigLogName)
	if err != nil {
		t.Fatal(err)
	}
	l.image = make([]byte, bigLogBytes)
	if _, err := f.ReadAt(l.image, 0); err != nil {
		t.Fatal(err)
	}
	clear(l.image[l.ends[len(l.ends)-1]:])
	return l
}

const bigLogName = "/data/0000000000000001.log"

// disk returns a disk with a log file.
func logDisk(t *testing.T, image []byte) (*vfs.Mem, vfs.File) {
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/data"); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Create(bigLogName)
	if err != nil {
		t.Fatal(err)
	}
	if len(image) > 0 {
		if _, err := f.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
	}
	return mem, f
}

// flips opens the store with each bit flipped, n apart, on every core, and
// returns how many that were.
func (l *bigLog) flips(t *testing.T, n int, check func(s *Store, err error, bit int)) int {
	var wg sync.WaitGroup
	var next, count atomic.Int64
	const part = 1 << 10
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			mem, f := logDisk(t, l.image)
			for from := int(next.Add(part)) - part; from < len(l.image)*8; from = int(next.Add(part)) - part {
				for bit := from; bit < from+part; bit++ {
					if bit%n != bit/n%n { // spread over the bits of a byte
						continue
					}
					count.Add(1)
					flip(t, f, int64(bit/8), bit%8)
					s, err := Open(bigOptions(mem))
					check(s, err, bit)
					flip(t, f, int64(bit/8), bit%8)
					if err == nil { // it has written
						s.Close()
						mem, f = logDisk(t, l.image)
					}
				}
			}
		})
	}
	wg.Wait()
	return int(count.Load())
}

// Every single bit of a 64 KiB log is flipped. In a frame, be it the last one,
// that refuses the log, by file and offset of the frame, in bounded memory; in
// the empty rest it may, or all is there.
func TestEveryBitFlip(t *testing.T) {
	l := newBigLog(t)
	last := len(l.ends) - 1
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := l.flips(t, every(127), func(s *Store, err error, bit int) {
		corrupt := (*wal.CorruptError)(nil)
		at, inFrame := slices.BinarySearch(l.ends, bit/8)
		if inFrame {
			at++
		}
		switch {
		case err == nil && bit/8 >= l.ends[last]:
			if digest(s) != l.digests[last] {
				t.Errorf("bit %d of byte %d: something else is served", bit%8, bit/8)
			}
		case err == nil:
			t.Errorf("bit %d of byte %d: served", bit%8, bit/8)
		case !errors.As(err, &corrupt) || corrupt.File != bigLogName:
			t.Errorf("bit %d of byte %d: %v", bit%8, bit/8, err)
		default:
			want := 0 // of the header
			if at > 0 {
				want = l.ends[at-1]
			}
			if int(corrupt.Offset) != want {
				t.Errorf("bit %d of byte %d: %v, want offset %d", bit%8, bit/8, err, want)
			}
		}
	})
	runtime.ReadMemStats(&after)
	t.Logf("%d bits flipped in %d frames, %d KiB allocated for each", n, last, (after.TotalAlloc-before.TotalAlloc)/uint64(n)>>10)
	if (after.TotalAlloc-before.TotalAlloc)/uint64(n) > 32*bigLogBytes {
		t.Error("recovery takes more memory than the log justifies")
	}
}

// The log is cut off at every byte: what is before the cut is served, the
// record cut in two is dropped and logged with its offset.
func TestEveryTruncation(t *testing.T) {
	l := newBigLog(t)
	n := 0
	for size := range len(l.image) + 1 {
		lastTwo := size >= l.ends[len(l.ends)-3]
		if !lastTwo && size%every(149) != 0 || lastTwo && size%every(5) != 0 {
			continue
		}
		n++
		var logged bytes.Buffer
		mem, _ := logDisk(t, l.image[:size])
		opt := bigOptions(mem)
		opt.Log = slog.New(slog.NewTextHandler(&logged, nil))
		s, err := Open(opt)
		if size < l.ends[0] {
			if corrupt := (*wal.CorruptError)(nil); !errors.As(err, &corrupt) {
				t.Fatalf("cut at %d, in the header: %v", size, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", size, err)
		}
		whole, exact := slices.BinarySearch(l.ends, size)
		if !exact {
			whole--
		}
		if got := digest(s); got != l.digests[whole] {
			t.Fatalf("cut at %d: the state is not that of the %d whole frames but of %d", size, whole, slices.Index(l.digests, got))
		}
		s.Close()
		dropped := fmt.Sprintf("offset=%d", l.ends[whole])
		if torn := !exact && whole < len(l.ends)-1; torn != bytes.Contains(logged.Bytes(), []byte(dropped)) {
			t.Fatalf("cut at %d: torn is %v, but logged %q", size, torn, logged.String())
		}
	}
	t.Logf("%d truncations of %d frames", n, len(l.ends)-1)
}

// A key put and deleted by one transaction, at a revision that is then
// compacted: the checkpoint has an event whose key is gone.
func TestPutAndDeletedAtTheCompactRevision(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, diskOptions(mem))
	for _, key := range []string{"fresh", "old"} {
		if key == "old" {
			if _, err := s.Txn(t.Context(), put(key, "before")); err != nil {
				t.Fatal(err)
			}
		}
		res, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{
			storetest.Nested(put(key, "v")), storetest.Nested(store.Txn{Then: []store.Op{storetest.Delete(key, "")}}),
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Compact(t.Context(), res.Revision); err != nil {
			t.Fatal(err)
		}
		if err := s.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := digest(s)
		again, err := Open(diskOptions(mem.CrashClone(rand.New(rand.NewPCG(1, 1)), 0)))
		if err != nil {
			t.Fatal(err)
		}
		if digest(again) != want {
			t.Error("the reopened store is another")
		}
		again.Close()
	}
}
