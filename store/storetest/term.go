package storetest

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/store"
)

// Index is the store.Index of every store that Run is given: the term of
// "red:5" is "red", and that of "?:5" cannot be told.
func Index(_ string, value []byte) string {
	switch term, _, found := strings.Cut(string(value), ":"); {
	case !found:
		return ""
	case term == "?":
		return store.AnyTerm
	default:
		return term
	}
}

// about tells whether an event must reach those who watch a term.
func about(term string, ev store.Event) bool {
	is := func(kv *store.KV) bool { return kv != nil && Index(kv.Key, kv.Value) == term }
	return is(ev.Prev) || ev.Type == store.EventPut && is(ev.KV)
}

func termRange(e *env) {
	e.do(Put("a/1", "red:1"), Put("a/2", "blue:1"), Put("a/3", "red:1"), Put("a/4", "plain"), Put("b/1", "red:1"))
	red := func() []string { return show(slices.Collect(e.snap(0).RangeTerm("red", "a/", "a0"))...) }
	e.equal("red", red(), []string{"a/1=red:1 2/2/1", "a/3=red:1 2/2/1"})
	past := e.snap(0)
	e.do(Put("a/1", "blue:2"), Put("a/2", "red:2"), Put("a/3", "red:2"))
	e.equal("after a swap", red(), []string{"a/2=red:2 2/3/2", "a/3=red:2 2/3/2"})
	e.equal("a snapshot", show(slices.Collect(past.RangeTerm("red", "a/", "a0"))...), []string{"a/1=red:1 2/2/1", "a/3=red:1 2/2/1"})
	e.do(Delete("a/2", ""), Put("a/3", "plain"))
	e.equal("after a deletion", red(), []string(nil))
	e.do(Put("a/5", "?:1"), Put("a/6", "red:1"))
	e.equal("beside one that cannot be told", fmt.Sprint(strings.Contains(fmt.Sprint(red()), "a/5"), strings.Contains(fmt.Sprint(red()), "a/6")), "true true")
}

func termWatch(e *env) {
	e.do(Put("a/1", "red:1"))
	w := e.watchTerm("red", "a/", "a0", 2)
	e.do(Put("a/1", "blue:2"))
	e.do(Put("a/1", "blue:3"))
	e.do(Put("b/1", "red:1"))
	e.do(Put("a/2", "red:1"), Put("a/3", "blue:1"))
	e.do(Delete("a/", "a0"))
	e.do(Put("a/4", "plain"))
	e.do(Put("a/5", "?:1"))
	w.expect("a/1=red:1 2/2/1", "a/1=blue:2 2/3/2", "a/2=red:1 6/6/1", "a/2 deleted 7", "a/5=?:1 9/9/1")
	w.nothing()
	e.equal("progress", w.w.Progress(), 9)
	e.watchTerm("red", "a/", "a0", 4).expect("a/2=red:1 6/6/1", "a/2 deleted 7", "a/5=?:1 9/9/1")
}

func (e *env) watchTerm(term, key, end string, start int64) *watch {
	e.Helper()
	w, err := e.s.Watch(e.ctx, store.WatchRequest{Key: key, End: end, Term: term, StartRevision: start})
	if err != nil {
		e.Fatalf("watch of %s: %v", term, err)
	}
	e.Cleanup(w.Close)
	return &watch{e, w}
}

// termRandom compares what is found by term with what is found by looking at
// everything, while keys change terms, go and come back.
func termRandom(e *env) {
	g := rand.New(rand.NewPCG(7, 7))
	terms := []string{"red", "blue", "green"}
	all := e.watch("k/", "k0", 0)
	watches := map[string]*watch{}
	for _, term := range terms {
		watches[term] = e.watchTerm(term, "k/", "k0", 0)
	}
	const changes = 600
	for n := range changes {
		key := fmt.Sprintf("k/%02d", g.IntN(20))
		switch k := g.IntN(10); {
		case k < 7:
			e.do(Put(key, fmt.Sprint(terms[g.IntN(3)], ":", n)))
		case k == 7:
			e.do(Put(key, fmt.Sprint("plain", n)))
		case k == 8 && n%50 == 0:
			e.do(Put(key, fmt.Sprint("?:", n)))
		default:
			e.do(Delete(key, ""))
		}
		now, term := e.snap(store.Local), terms[g.IntN(3)]
		for _, snap := range []store.Snapshot{now, e.snap(max(1, now.Revision()-g.Int64N(5)))} {
			e.equal(fmt.Sprint(term, " at ", snap.Revision()), withTerm(snap.RangeTerm(term, "k/", "k0"), term),
				withTerm(snap.Range("k/", "k0"), term))
		}
		if e.Failed() {
			return
		}
	}
	e.do(Put("k/end", "red:end"), Put("k/end2", "blue:end"), Put("k/end3", "green:end"))
	want := map[string][]string{}
	for ended := false; !ended; {
		b, err := all.w.Next(e.ctx)
		if err != nil {
			e.Fatal(err)
		}
		for _, ev := range b.Events {
			ended = ended || ev.KV.Key == "k/end3"
			for _, term := range terms {
				if about(term, ev) {
					want[term] = append(want[term], showEvents([]store.Event{ev})...)
				}
			}
		}
	}
	for _, term := range terms {
		var got []string
		for len(got) == 0 || !strings.Contains(got[len(got)-1], ":end") {
			b, err := watches[term].w.Next(e.ctx)
			if err != nil {
				e.Fatal(err)
			}
			for _, ev := range b.Events {
				if about(term, ev) {
					got = append(got, showEvents([]store.Event{ev})...)
				}
			}
		}
		e.equal("events about "+term, got, want[term])
	}
}

// withTerm keeps those that have the term, as whoever asks does.
func withTerm(kvs iter.Seq[*store.KV], term string) []string {
	var out []string
	for kv := range kvs {
		if Index(kv.Key, kv.Value) == term {
			out = append(out, show(kv)...)
		}
	}
	return out
}
