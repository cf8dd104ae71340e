// Package robustness checks histories: random traffic of several stock etcd
// clients against `skiff etcd`, one fault in each, then a restart. Everything
// the clients saw must be linearizable (Porcupine, on the model in
// model_test.go), and every watch must agree with the server's own log.
//
// `make test` runs one history of each fault, `make test-long` runs on for an
// hour (SKIFF_ROBUSTNESS=1h) and prints the count. A failure names its seed;
// SKIFF_ROBUSTNESS_SEED repeats its traffic, as far as timing allows.
package robustness

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
	"github.com/skiff-project/skiff/store/vfs"
)

// history is one run: traffic, a fault, more traffic, the checks.
type history struct {
	*testing.T
	rng   *rand.Rand
	srv   *server
	rec   *recorder
	fault fault

	compacts bool
	padding  int
	patience time.Duration // for watches to hear of the last writes

	mu      sync.Mutex
	watches []*seen
}

// fault breaks something while clients run, and mends it.
type fault struct {
	name string
	// prepare, if any, is called before the first start.
	prepare func(*history)
	strike  func(*history)
	padding int
	sync    bool // the first start has a sync that fails
	power   bool // the power is cut: the server is one inside the test
}

var faults = []fault{
	{name: "none", strike: func(h *history) { time.Sleep(500 * time.Millisecond) }},
	{name: "kill", strike: func(h *history) {
		h.srv.kill()
		h.srv.start(0)
	}},
	{name: "pause", strike: func(h *history) {
		h.srv.cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(200+h.rng.IntN(1500)) * time.Millisecond)
		h.srv.cmd.Process.Signal(syscall.SIGCONT)
	}},
	{name: "failed sync", sync: true, strike: func(h *history) {
		h.srv.waitForFailure()
		h.srv.start(0)
	}},
	{name: "torn record", strike: func(h *history) {
		h.srv.kill()
		h.tear()
		h.srv.start(0)
		if !bytes.Contains(h.srv.out.Bytes(), []byte("incomplete last record")) {
			h.Errorf("the torn record is not logged:\n%s", h.srv.out.String())
		}
	}},
	{name: "power loss", power: true},
	{name: "no space", prepare: smallDisk, strike: fillDisk, padding: 16_000},
}

// tear leaves the beginning of a record at the end of the log, as a crash in
// the middle of a write does.
func (h *history) tear() {
	name, end := logEnd(h.T, h.srv.storeDir())
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	record := binary.LittleEndian.AppendUint32(nil, 0x7F4C4157)
	record = binary.LittleEndian.AppendUint32(record, 100)
	if _, err := f.WriteAt(record[:1+h.rng.IntN(4)], end); err != nil {
		h.Fatal(err)
	}
}

// logEnd returns the newest log file and where its records end.
func logEnd(t *testing.T, dir string) (string, int64) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	slices.Sort(names)
	name := names[len(names)-1]
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	end := int64(32)
	for int(end)+24 < len(b) && binary.LittleEndian.Uint32(b[end:]) == 0x7F4C4157 {
		end += (24+int64(binary.LittleEndian.Uint32(b[end+4:]))+7)/8*8 + 8
	}
	return name, end
}

// smallDisk puts the data on a disk of 64 MiB: more than the clients of a history write
// in its time, so that only the ballast fills it.
func smallDisk(h *history) {
	if err := os.MkdirAll(h.srv.dir, 0o700); err != nil {
		h.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", h.srv.dir, "tmpfs", 0, "size=64m,mode=0700"); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		h.srv.kill()
		if err := syscall.Unmount(h.srv.dir, 0); err != nil {
			h.Error(err)
		}
	})
}

// fillDisk takes the disk's last space, waits for writes to be refused, looks
// whether the rest goes on, and gives the space back.
func fillDisk(h *history) {
	ballast := filepath.Join(h.srv.dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		h.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	for deadline := time.Now().Add(2 * time.Minute); h.refused() < 10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.Error("the disk is full, but no write is refused")
			break
		}
	}
	c := h.client()
	defer c.Close()
	alarms, err := c.AlarmList(h.Context())
	if err != nil || len(alarms.Alarms) == 0 {
		h.Errorf("no alarm on a full disk: %v, %v", alarms, err)
	}
	if _, err := c.Get(h.Context(), "/r/", clientv3.WithPrefix()); err != nil {
		h.Errorf("a read on a full disk: %v", err)
	}
	if _, err := c.Delete(h.Context(), "/nothing"); err != nil {
		h.Errorf("a deletion on a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		h.Fatal(err)
	}
	if _, err := c.AlarmDisarm(h.Context(), &clientv3.AlarmMember{}); err != nil {
		h.Error(err)
	}
	if err := h.accepted(&client{id: 98, c: c, rng: h.rng, rec: h.rec, padding: h.padding}, 0); err != nil {
		h.Errorf("there is room again: %v", err)
	}
}

// accepted puts a key until the server has done it. Writes of others that were refused a
// moment ago may have raised the alarm of a full disk once more: it is disarmed.
func (h *history) accepted(w *client, key int) error {
	for deadline := time.Now().Add(h.patience); ; time.Sleep(10 * time.Millisecond) {
		refused := w.refused
		known := w.do(h.Context(), request{then: []op{w.put(key)}})
		if known && w.refused == refused {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no put of key %d is accepted in %v", key, h.patience)
		}
		if known {
			if _, err := w.c.AlarmDisarm(h.Context(), &clientv3.AlarmMember{}); err != nil {
				return err
			}
		}
	}
}

// A disk that the store itself has filled: what helps is what helps with etcd,
// to delete, compact, defragment and disarm the alarm. Nothing is started again
// and nobody else frees space.
func TestFullDiskHeals(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small disk")
	}
	h := &history{T: t, srv: newServer(t)}
	smallDisk(h)
	h.srv.start(0)
	c, ctx := h.client(), t.Context()
	defer c.Close()
	fill := func() (n int) {
		for ; ; n++ {
			_, err := c.Put(ctx, fmt.Sprint("fill/", n), string(make([]byte, 10_000)))
			if errors.Is(err, rpctypes.ErrNoSpace) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	n := fill()
	for range 2 {
		if _, err := c.Get(ctx, "fill/1"); err != nil {
			t.Errorf("read: %v", err)
		}
		del, err := c.Delete(ctx, "fill/", clientv3.WithPrefix())
		if err != nil {
			t.Fatalf("delete: %v", err)
		}
		if _, err := c.Compact(ctx, del.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatalf("compact: %v", err)
		}
		if _, err := c.Defragment(ctx, c.Endpoints()[0]); err != nil {
			t.Fatalf("defragment: %v", err)
		}
		if _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
			t.Fatalf("disarm: %v", err)
		}
		again := fill()
		t.Logf("full after %d puts of 10 kB on 64 MiB, then after %d", n, again)
		if again < 100 {
			t.Errorf("only %d puts fit after making room", again)
		}
	}
}

func (h *history) refused() int {
	h.rec.mu.Lock()
	defer h.rec.mu.Unlock()
	return h.rec.noSpace
}

func (h *history) client() *clientv3.Client {
	h.Helper()
	c, err := newClient(h.srv.url)
	if err != nil {
		h.Fatal(err)
	}
	return c
}

// traffic starts clients and watches. stop ends them; its error is a watch
// that is behind for good.
func (h *history) traffic(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	watching, endWatches := context.WithCancel(context.WithoutCancel(ctx))
	var wg, watchers sync.WaitGroup
	var clients []*clientv3.Client
	for i := range 5 {
		c := h.client()
		clients = append(clients, c)
		rng := rand.New(rand.NewPCG(h.rng.Uint64(), uint64(i)))
		wg.Go(func() {
			(&client{id: i, c: c, rng: rng, rec: h.rec, padding: h.padding}).run(ctx)
		})
		s := &seen{start: 1, prefix: i%2 == 0, key: h.rng.IntN(keys)}
		late, part := time.Duration(h.rng.IntN(200))*time.Millisecond, h.rng.Float64()
		watchers.Go(func() {
			// From somewhere in history, not from the future: the stock client resumes
			// such a watch too early once it has had a progress report.
			time.Sleep(late)
			if resp, err := c.Get(watching, "/other"); err == nil {
				s.start = 1 + int64(part*float64(resp.Header.Revision))
			}
			follow(watching, c, s, h.found)
		})
	}
	watchers.Go(func() { asker(watching, clients[0]) })
	if h.compacts {
		wg.Go(func() { compactor(ctx, clients[1]) })
	}
	return func() error {
		cancel()
		wg.Wait()
		err := h.finish(clients[0])
		endWatches()
		watchers.Wait()
		for _, c := range clients {
			c.Close()
		}
		return err
	}
}

func (h *history) found(s *seen) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches = append(h.watches, s)
}

// finish writes every key once more and waits until every watch has heard.
func (h *history) finish(c *clientv3.Client) error {
	last := client{id: 99, c: c, rng: h.rng, rec: h.rec}
	var rev int64
	for k := range keys {
		if err := h.accepted(&last, k); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(h.patience); ; time.Sleep(5 * time.Millisecond) {
		resp, err := c.Get(h.Context(), "/r/", clientv3.WithPrefix())
		if err == nil {
			rev = resp.Kvs[0].ModRevision
			for _, kv := range resp.Kvs {
				rev = min(rev, kv.ModRevision)
			}
		}
		h.mu.Lock()
		var behind []string
		for _, s := range h.watches {
			if !s.reached(rev) {
				behind = append(behind, fmt.Sprintf("(all keys: %v, key %d, from %d, at %d)", s.prefix, s.key, s.start, s.last))
			}
		}
		h.mu.Unlock()
		if err == nil && behind == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("watches %v have not heard of revision %d after %v", behind, rev, h.patience)
		}
	}
}

// judge checks what was recorded against the model and the log.
func (h *history) judge(log []store.Event) error {
	errs := []error{linearizable(h.rec.ops), inLog(h.rec, log)}
	for i, s := range h.watches {
		if err := s.check(log, h.compacts); err != nil {
			errs = append(errs, fmt.Errorf("watch %d (all keys: %v, key %d, from %d): %w", i, s.prefix, s.key, s.start, err))
		}
	}
	return errors.Join(errs...)
}

// inLog checks that every acknowledged put is in the log at its revision.
func inLog(rec *recorder, log []store.Event) error {
	puts := map[string]int64{}
	for _, ev := range log {
		if ev.Type == store.EventPut {
			puts[unpad(ev.KV.Value)] = ev.KV.ModRevision
		}
	}
	for _, o := range rec.ops {
		in, out := o.Input.(request), o.Output.(response)
		if out.unknown || out.failed != "" || !out.ok {
			continue
		}
		for _, op := range in.then {
			if op.do == 'p' && puts[op.value] != out.rev {
				return fmt.Errorf("put of %s was acknowledged at revision %d; in the log it is at %d", op.value, out.rev, puts[op.value])
			}
		}
	}
	return nil
}

// run makes and judges one history of a server process.
func (h *history) run() {
	h.srv = newServer(h.T)
	if h.fault.prepare != nil {
		h.fault.prepare(h)
	}
	failSync := 0
	if h.fault.sync {
		failSync = 20 + h.rng.IntN(200)
	}
	h.srv.start(failSync)
	stop := h.traffic(h.Context())
	time.Sleep(time.Duration(300+h.rng.IntN(500)) * time.Millisecond)
	h.fault.strike(h)
	time.Sleep(400 * time.Millisecond)
	late := stop()
	h.srv.stop()
	folder := h.TempDir()
	if err := copyFolder(h.srv.storeDir(), folder); err != nil {
		h.Fatal(err)
	}
	log, err := committed(vfs.Disk(), folder)
	if err != nil {
		h.Fatal(err)
	}
	if err := errors.Join(late, h.judge(log)); err != nil {
		h.Error(err)
	}
	if h.fault.prepare == nil {
		h.defragmented()
	}
	h.summary(log)
}

// defragmented makes checkpoints of an idle server, which replace the log and
// one another: all must be there after the next start.
func (h *history) defragmented() {
	all := func(c *clientv3.Client) string {
		resp, err := c.Get(h.Context(), "\x00", clientv3.WithFromKey())
		if err != nil {
			h.Fatalf("read: %v", err)
		}
		resp.Kvs = slices.DeleteFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool { return kv.Lease != 0 }) // those may expire
		return fmt.Sprint(resp.Kvs)
	}
	before := ""
	for range 2 {
		h.srv.start(0)
		c := h.client()
		now := all(c)
		if before != "" && now != before {
			h.Errorf("after defragmenting and a restart:\n%s\nbefore:\n%s", now, before)
		}
		before = now
		for range 2 {
			if _, err := c.Defragment(h.Context(), c.Endpoints()[0]); err != nil {
				h.Fatalf("defragment: %v", err)
			}
		}
		c.Close()
		h.srv.stop()
	}
}

func (h *history) summary(log []store.Event) {
	h.Logf("%d operations known, %d unknown, %d refused for space; %d events, %d watches; compactions: %v",
		h.rec.acked, h.rec.unknown, h.rec.noSpace, len(log), len(h.watches), h.compacts)
}

// losePower makes and judges a history in which the power is cut.
func losePower(t *testing.T, seed uint64, noSync bool) error {
	rng := rand.New(rand.NewPCG(seed, 5))
	h := &history{T: t, rng: rng, compacts: rng.IntN(3) == 0, rec: &recorder{start: time.Now()}, patience: time.Minute}
	if noSync {
		h.patience = time.Second // it will not come
	}
	h.srv = newServer(t)
	h.srv.mem, h.srv.noSync = vfs.NewMem(), noSync
	h.srv.startInside()
	stop := h.traffic(t.Context())
	time.Sleep(time.Duration(100+h.rng.IntN(300)) * time.Millisecond)
	h.srv.cutPower(rng, []float64{0, rng.Float64(), 1}[rng.IntN(3)])
	if h.srv.startInside(); h.srv.startErr != nil {
		return h.srv.startErr
	}
	time.Sleep(200 * time.Millisecond)
	late := stop()
	h.srv.stop()
	log, err := committed(h.srv.mem, "/data/"+standalone.StoreFolder)
	h.summary(log)
	return errors.Join(err, late, h.judge(log))
}

// The positive control: without fdatasync the same checks must find a loss. If
// they do not, they prove nothing.
func TestPowerLossWithoutSyncIsNoticed(t *testing.T) {
	for seed := range uint64(5) {
		if err := losePower(t, seed, true); err != nil {
			t.Logf("noticed, as it must be: %.600s", err.Error())
			return
		}
	}
	t.Error("five power losses without any fdatasync went unnoticed")
}

func firstSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SKIFF_ROBUSTNESS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return seed
}

func TestHistories(t *testing.T) {
	var total time.Duration
	if s := os.Getenv("SKIFF_ROBUSTNESS"); s != "" {
		var err error
		if total, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed, start, count := firstSeed(t), time.Now(), map[string]int{}
	for n := 0; n < len(faults) || time.Since(start) < total; n++ {
		f := faults[n%len(faults)]
		if f.prepare != nil && os.Geteuid() != 0 {
			t.Logf("%s: needs root, to mount a small disk", f.name)
			continue
		}
		seed++
		ok := t.Run(fmt.Sprintf("%s seed %d", f.name, seed), func(t *testing.T) {
			if f.power {
				if err := losePower(t, seed, false); err != nil {
					t.Error(err)
				}
				return
			}
			rng := rand.New(rand.NewPCG(seed, 4))
			// A compaction on a full disk may end in a checkpoint, which takes from the
			// log what the history is judged by: TestFullDiskHeals has that case.
			compacts := rng.IntN(3) == 0 && f.prepare == nil
			(&history{T: t, rng: rng, fault: f, padding: f.padding, compacts: compacts,
				rec: &recorder{start: time.Now()}, patience: time.Minute}).run()
		})
		count[f.name]++
		if n%len(faults) == len(faults)-1 {
			fmt.Printf("%s: %d histories %v\n", time.Since(start).Round(time.Second), n+1, count)
		}
		if !ok {
			t.FailNow()
		}
	}
}
