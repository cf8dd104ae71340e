package storetest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"

	"github.com/skiff-project/skiff/store"
)

// model is the naive store: every revision keeps its whole content.
type model struct {
	states  []map[string]store.KV // by revision; states[0] is unused
	events  [][]store.Event       // by revision
	leases  map[store.LeaseID]bool
	compact int64
}

func newModel() *model {
	empty := map[string]store.KV{}
	return &model{states: []map[string]store.KV{nil, empty}, events: make([][]store.Event, 2), leases: map[store.LeaseID]bool{}}
}

func (m *model) rev() int64 { return int64(len(m.states) - 1) }

// within reports whether k lies in [key, end).
func within(k, key, end string) bool {
	if end == "" {
		return k == key
	}
	return k >= key && (end == "\x00" || k < end)
}

func (m *model) find(state map[string]store.KV, key, end string) []store.KV {
	var kvs []store.KV
	for _, k := range slices.Sorted(maps.Keys(state)) {
		if within(k, key, end) {
			kvs = append(kvs, state[k])
		}
	}
	return kvs
}

func (m *model) holds(state map[string]store.KV, c store.Compare) bool {
	kvs := m.find(state, c.Key, c.End)
	if len(kvs) == 0 {
		if c.Target == store.TargetValue {
			return false
		}
		kvs = []store.KV{{}}
	}
	for _, kv := range kvs {
		order := 0
		switch c.Target {
		case store.TargetValue:
			order = bytes.Compare(kv.Value, c.Value)
		case store.TargetMod:
			order = cmp.Compare(kv.ModRevision, c.Int)
		case store.TargetCreate:
			order = cmp.Compare(kv.CreateRevision, c.Int)
		case store.TargetVersion:
			order = cmp.Compare(kv.Version, c.Int)
		case store.TargetLease:
			order = cmp.Compare(int64(kv.Lease), c.Int)
		}
		ok := map[store.Relation]bool{store.Equal: order == 0, store.NotEqual: order != 0,
			store.Greater: order > 0, store.Less: order < 0}[c.Relation]
		if !ok {
			return false
		}
	}
	return true
}

// run applies a transaction and returns its result as text.
func (m *model) run(txn store.Txn) string {
	before := m.states[m.rev()]
	state := maps.Clone(before)
	var events []store.Event
	text := m.apply(before, state, txn, &events)
	if len(events) > 0 {
		m.states = append(m.states, state)
		m.events = append(m.events, events)
	}
	return fmt.Sprintf("%d %s", m.rev(), text)
}

func (m *model) apply(before, state map[string]store.KV, txn store.Txn, events *[]store.Event) string {
	ok := true
	for _, c := range txn.If {
		ok = ok && m.holds(before, c)
	}
	ops := txn.Else
	if ok {
		ops = txn.Then
	}
	text := fmt.Sprint(ok)
	for _, op := range ops {
		switch op.Kind {
		case store.OpRange:
			text += fmt.Sprint(" ", showValues(m.find(state, op.Key, op.End)))
		case store.OpPut:
			kv := store.KV{Key: op.Key, Value: op.Value, Lease: op.Lease, ModRevision: m.rev() + 1}
			kv.CreateRevision = kv.ModRevision
			if old, ok := state[op.Key]; ok {
				kv.CreateRevision, kv.Version = old.CreateRevision, old.Version
			}
			kv.Version++
			state[op.Key] = kv
			*events = append(*events, store.Event{KV: &kv})
			text += fmt.Sprint(" put ", show(&kv))
		case store.OpDelete:
			gone := m.find(state, op.Key, op.End)
			m.remove(state, gone, events)
			text += fmt.Sprint(" deleted ", len(gone))
		case store.OpTxn:
			text += " (" + m.apply(before, state, *op.Txn, events) + ")"
		}
	}
	return text
}

func (m *model) remove(state map[string]store.KV, gone []store.KV, events *[]store.Event) {
	for _, kv := range gone {
		delete(state, kv.Key)
		*events = append(*events, store.Event{Type: store.EventDelete, KV: &store.KV{Key: kv.Key, ModRevision: m.rev() + 1}})
	}
}

func (m *model) revoke(id store.LeaseID) {
	delete(m.leases, id)
	state := maps.Clone(m.states[m.rev()])
	var gone []store.KV
	for _, k := range slices.Sorted(maps.Keys(state)) {
		if state[k].Lease == id {
			gone = append(gone, state[k])
		}
	}
	if len(gone) > 0 {
		var events []store.Event
		m.remove(state, gone, &events)
		m.states = append(m.states, state)
		m.events = append(m.events, events)
	}
}

// history returns the events of a range in revisions [from, to] as text.
func (m *model) history(key, end string, from, to int64) []string {
	var out []string
	for rev := max(from, 1); rev <= to; rev++ {
		for _, ev := range m.events[rev] {
			if within(ev.KV.Key, key, end) {
				out = append(out, showEvents([]store.Event{ev})...)
			}
		}
	}
	return out
}

func showValues(kvs []store.KV) []string {
	var out []string
	for i := range kvs {
		out = append(out, show(&kvs[i])...)
	}
	return out
}

// showResult writes a result the way model.run does.
func showResult(txn store.Txn, res store.TxnResult) string {
	ops := txn.Else
	if res.Succeeded {
		ops = txn.Then
	}
	text := fmt.Sprint(res.Succeeded)
	for i, op := range ops {
		r := res.Results[i]
		switch op.Kind {
		case store.OpRange:
			text += fmt.Sprint(" ", show(r.KVs...))
		case store.OpPut:
			text += fmt.Sprint(" put ", show(r.KV))
		case store.OpDelete:
			text += fmt.Sprint(" deleted ", r.Deleted)
		case store.OpTxn:
			text += " (" + showResult(*op.Txn, *r.Txn) + ")"
		}
	}
	return text
}

// Gen makes random operations over a small key space, from a seed.
type Gen struct {
	*rand.Rand
	n int
}

// NewGen returns the generator of a seed.
func NewGen(seed uint64) *Gen { return &Gen{Rand: rand.New(rand.NewPCG(seed, 1))} }

func (g *Gen) key() string { return fmt.Sprintf("/%c/%d", 'a'+rune(g.IntN(3)), g.IntN(8)) }

func (g *Gen) span() (key, end string) {
	switch g.IntN(5) {
	case 0:
		return "\x00", "\x00"
	case 1:
		dir := "/" + string('a'+rune(g.IntN(3)))
		return dir + "/", dir + "0"
	case 2:
		return g.key(), g.key()
	case 3:
		return g.key(), "\x00"
	}
	return g.key(), ""
}

func (g *Gen) compare(rev int64) store.Compare {
	c := store.Compare{Key: g.key(), Target: store.Target(g.IntN(5)), Relation: store.Relation(g.IntN(4))}
	if g.IntN(4) == 0 {
		c.Key, c.End = g.span()
	}
	c.Int = g.Int64N(rev + 2)
	if g.IntN(3) == 0 {
		c.Int = 0
	}
	c.Value = []byte(fmt.Sprint(g.IntN(g.n + 1)))
	return c
}

func (g *Gen) ops(rev int64, leases []store.LeaseID, depth int) []store.Op {
	var ops []store.Op
	for range g.IntN(4) {
		switch k := g.IntN(12); {
		case k < 6:
			g.n++
			op := Put(g.key(), fmt.Sprint(g.n))
			if len(leases) > 0 && g.IntN(3) == 0 {
				op.Lease = leases[g.IntN(len(leases))]
			}
			ops = append(ops, op)
		case k < 8:
			ops = append(ops, Delete(g.key(), ""))
		case k == 8:
			ops = append(ops, Delete(g.span()))
		case k < 11 || depth == 0:
			ops = append(ops, Get(g.span()))
		default:
			ops = append(ops, Nested(g.Txn(rev, leases, depth-1)))
		}
	}
	return ops
}

// Txn makes a transaction for a store that is at revision rev.
func (g *Gen) Txn(rev int64, leases []store.LeaseID, depth int) store.Txn {
	var txn store.Txn
	for range g.IntN(3) {
		txn.If = append(txn.If, g.compare(rev))
	}
	txn.Then = g.ops(rev, leases, depth)
	txn.Else = g.ops(rev, leases, depth)
	return txn
}

// follower is a watcher whose events are compared with the model's.
type follower struct {
	*watch
	key, end string
	start    int64
	got      []string
}

// random runs seeded random operations against the store and the model. Set
// STORETEST_SEED to replay one seed.
func random(e *env) {
	seeds := []uint64{1, 2, 3, 4}
	if s := os.Getenv("STORETEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			e.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	r := &randomRun{env: e, m: newModel()}
	for _, seed := range seeds {
		e.Logf("seed %d", seed)
		r.g = NewGen(seed)
		for range 400 {
			r.step()
			if e.Failed() {
				e.Fatalf("failed with seed %d", seed)
			}
		}
	}
	for _, f := range r.followers {
		r.drain(f)
	}
}

type randomRun struct {
	*env
	m         *model
	g         *Gen
	followers []*follower
}

func (r *randomRun) step() {
	g, m := r.g, r.m
	leases := slices.Sorted(maps.Keys(m.leases))
	switch k := g.IntN(30); {
	case k == 0:
		id := r.grant(store.LeaseID(g.Int64N(1<<40)+1), 3600)
		m.leases[id] = true
	case k == 1 && len(leases) > 0:
		id := leases[g.IntN(len(leases))]
		if err := r.s.Leases().Revoke(r.ctx, id); err != nil {
			r.Fatal(err)
		}
		m.revoke(id)
	case k == 2 && len(r.followers) < 8:
		f := &follower{start: m.compact + g.Int64N(m.rev()-m.compact+2)}
		if f.start == 0 {
			f.start = m.rev() + 1
		}
		f.key, f.end = g.span()
		f.watch = r.watch(f.key, f.end, f.start)
		r.followers = append(r.followers, f)
	case k == 3 && len(r.followers) > 0:
		r.drain(r.followers[g.IntN(len(r.followers))])
	case k == 4 && g.IntN(4) == 0 && m.rev() > m.compact+1:
		for _, f := range r.followers {
			r.drain(f)
		}
		rev := m.compact + 1 + g.Int64N(m.rev()-m.compact)
		if err := r.s.Compact(r.ctx, rev); err != nil {
			r.Fatal(err)
		}
		m.compact = rev
	case k < 10:
		r.read()
	default:
		r.write(leases)
	}
}

func (r *randomRun) write(leases []store.LeaseID) {
	txn := r.g.Txn(r.m.rev(), leases, 2)
	res, err := r.s.Txn(r.ctx, txn)
	if errors.Is(err, store.ErrDuplicateKey) {
		return // rightly or not is the table test's business
	}
	if err != nil {
		r.Fatal(err)
	}
	want := r.m.run(txn)
	if got := fmt.Sprintf("%d %s", res.Revision, showResult(txn, res)); got != want {
		r.Fatalf("txn %+v\n got %s\nwant %s", txn, got, want)
	}
}

func (r *randomRun) read() {
	rev := r.m.compact + r.g.Int64N(r.m.rev()-r.m.compact+1)
	want := rev
	if rev == 0 {
		want = r.m.rev()
	}
	key, end := r.g.span()
	s := r.snap(rev)
	kvs := showValues(r.m.find(r.m.states[want], key, end))
	r.equal(fmt.Sprintf("[%q, %q) at %d", key, end, rev), showRange(s, key, end), kvs)
	r.equal("count", s.Count(key, end), len(kvs))
	one := r.g.key()
	r.equal(one, show(s.Get(one)) != nil && s.Get(one) != nil, len(r.m.find(r.m.states[want], one, "")) == 1)
}

// drain reads what a follower has not seen yet and compares all it has seen.
func (r *randomRun) drain(f *follower) {
	want := r.m.history(f.key, f.end, f.start, r.m.rev())
	if n := len(want) - len(f.got); n > 0 {
		f.got = append(f.got, showEvents(f.events(n))...)
	}
	r.equal(fmt.Sprintf("watch of [%q, %q) from %d", f.key, f.end, f.start), f.got, want)
	r.equal("progress", f.w.Progress(), r.m.rev())
}
