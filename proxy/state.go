package proxy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/skiff-project/skiff/internal/nft"
)

// state is the desired table of one family: the sum of all Services' fragments. Replacing
// a fragment yields only the elements and chains that differ, so a change costs what the
// Service costs, however many others there are.
type state struct {
	family nft.Family
	cfg    *Config
	sets   []nft.Set
	frags  map[string]*fragment
	held   [setCount]map[string]held
	// waiting are claims on elements that another Service holds.
	waiting map[place][]claim
	chains  map[string]int // how many fragments need a chain

	// touched remembers elements and chains as they were before the current update.
	touched       map[place]*held
	touchedChains map[string]bool
	chainOf       map[string]nft.Chain
}

// place is one element's identity: its set and its key with its key end.
type place struct {
	set setID
	key string
}

type held struct {
	elem  nft.Elem
	owner *fragment
}

type claim = held

func newState(f nft.Family, cfg *Config) *state {
	s := &state{family: f, cfg: cfg, sets: sets(f), frags: map[string]*fragment{}, waiting: map[place][]claim{},
		chains: map[string]int{}, touched: map[place]*held{}, touchedChains: map[string]bool{}, chainOf: map[string]nft.Chain{}}
	for i := range s.held {
		s.held[i] = map[string]held{}
	}
	return s
}

// replace puts a Service's new fragment (nil: none) in the place of its old one.
func (s *state) replace(name string, next *fragment) {
	old := s.frags[name]
	if old != nil {
		for _, e := range old.elems {
			s.drop(old, e)
		}
		s.countChains(old, -1)
		delete(s.frags, name)
	}
	if next != nil {
		for _, e := range next.elems {
			s.claim(next, e)
		}
		s.countChains(next, +1)
		s.frags[name] = next
	}
}

func placeOf(e placed) place { return place{e.set, e.elem.Key + e.elem.KeyEnd} }

// touch remembers an element as the kernel has it.
func (s *state) touch(p place) {
	if _, seen := s.touched[p]; seen {
		return
	}
	if h, ok := s.held[p.set][p.key]; ok {
		s.touched[p] = &h
	} else {
		s.touched[p] = nil
	}
}

func (s *state) claim(f *fragment, e placed) {
	p := placeOf(e)
	mine := held{e.elem, f}
	cur, taken := s.held[p.set][p.key]
	if !taken || before(f, cur.owner) {
		s.touch(p)
		s.held[p.set][p.key] = mine
		if taken {
			s.waiting[p] = append(s.waiting[p], cur)
		}
		return
	}
	if cur.owner == f {
		return // two of its own ports ask for the same
	}
	s.waiting[p] = append(s.waiting[p], mine)
}

func (s *state) drop(f *fragment, e placed) {
	p := placeOf(e)
	waiting := s.waiting[p]
	if cur, ok := s.held[p.set][p.key]; ok && cur.owner == f {
		s.touch(p)
		delete(s.held[p.set], p.key)
		if len(waiting) > 0 {
			i := 0
			for j := range waiting {
				if before(waiting[j].owner, waiting[i].owner) {
					i = j
				}
			}
			s.held[p.set][p.key] = waiting[i]
			waiting = slices.Delete(waiting, i, i+1)
		}
	} else {
		waiting = slices.DeleteFunc(waiting, func(c claim) bool { return c.owner == f })
	}
	if len(waiting) == 0 {
		delete(s.waiting, p)
	} else {
		s.waiting[p] = waiting
	}
}

// before says which of two Services has the better claim: the older, then by name.
func before(a, b *fragment) bool {
	return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(a.name, b.name)) < 0
}

func (s *state) countChains(f *fragment, n int) {
	count := func(name string, make func() nft.Chain) {
		if _, seen := s.touchedChains[name]; !seen {
			s.touchedChains[name] = s.chains[name] > 0
		}
		if _, known := s.chainOf[name]; !known {
			s.chainOf[name] = make()
		}
		if s.chains[name] += n; s.chains[name] == 0 {
			delete(s.chains, name)
		}
	}
	for _, p := range f.picks {
		count(p.chain(), func() nft.Chain { return pickChain(s.family, p) })
	}
	for _, p := range f.masq {
		count(masqChain(p), func() nft.Chain { return masqueradeChain(p, s.cfg.MasqueradeMark) })
	}
}

// take returns what changed since the last call.
func (s *state) take() nft.Changes {
	c := nft.Changes{Family: s.family, Name: s.cfg.Table}
	for name, was := range s.touchedChains {
		switch is := s.chains[name] > 0; {
		case is && !was:
			c.NewChains = append(c.NewChains, s.chainOf[name])
		case was && !is:
			c.GoneChains = append(c.GoneChains, s.chainOf[name])
			delete(s.chainOf, name)
		case !is:
			delete(s.chainOf, name)
		}
	}
	// A chain that is jumped to must exist first, and masquerading entrances jump to picks;
	// the applier declares all before it fills any, so only a settled order matters here.
	byName := func(a, b nft.Chain) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(c.NewChains, byName)
	slices.SortFunc(c.GoneChains, byName)
	var add, del [setCount][]nft.Elem
	for p, was := range s.touched {
		is, ok := s.held[p.set][p.key]
		if was != nil && ok && was.elem == is.elem {
			continue
		}
		if was != nil {
			del[p.set] = append(del[p.set], was.elem)
		}
		if ok {
			add[p.set] = append(add[p.set], is.elem)
		}
	}
	for id := range s.sets {
		if len(del[id]) > 0 {
			c.DelElems = append(c.DelElems, nft.SetElems{Set: &s.sets[id], Elems: del[id]})
		}
		if len(add[id]) > 0 {
			c.AddElems = append(c.AddElems, nft.SetElems{Set: &s.sets[id], Elems: add[id]})
		}
	}
	s.touched, s.touchedChains = map[place]*held{}, map[string]bool{}
	return c
}

// all returns the changes that make the whole table anew, and forgets pending ones.
func (s *state) all() nft.Changes {
	s.take()
	c := nft.Changes{Family: s.family, Name: s.cfg.Table, Reset: true, NewSets: s.sets, NewChains: baseChains(s.family, s.cfg)}
	names := make([]string, 0, len(s.chains))
	for name := range s.chains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.NewChains = append(c.NewChains, s.chainOf[name])
	}
	for id := range s.held {
		elems := make([]nft.Elem, 0, len(s.held[id]))
		for _, h := range s.held[id] {
			elems = append(elems, h.elem)
		}
		if len(elems) > 0 {
			c.AddElems = append(c.AddElems, nft.SetElems{Set: &s.sets[id], Elems: elems})
		}
	}
	return c
}
