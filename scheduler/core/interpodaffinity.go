package core

import "math"

var (
	noAffinity  = &status{plugin: InterPodAffinity, reasons: []string{"node(s) didn't match pod affinity rules"}, unresolvable: true}
	antiBroken  = &status{plugin: InterPodAffinity, reasons: []string{"node(s) didn't match pod anti-affinity rules"}}
	antiOfOther = &status{plugin: InterPodAffinity, reasons: []string{"node(s) didn't satisfy existing pods anti-affinity rules"}}
)

// domainCounts counts something in the domains of several topology keys.
type domainCounts struct {
	columns map[string]*labelColumn
	counts  map[string][]int64 // key → by number of the value
}

func (d *domainCounts) empty() bool { return len(d.counts) == 0 }

// add adds n to the domain of a node for a topology key.
func (d *domainCounts) add(c *Cluster, key, node string, n int64) {
	row, ok := c.index[node]
	if !ok || c.nodes[row] == nil {
		return
	}
	col := d.columns[key]
	if col == nil {
		if d.columns == nil {
			d.columns, d.counts = map[string]*labelColumn{}, map[string][]int64{}
		}
		col = c.label(key)
		d.columns[key] = col
	}
	no := col.values[row]
	if no == 0 {
		return
	}
	if d.counts[key] == nil {
		d.counts[key] = make([]int64, len(col.names))
	}
	d.counts[key][no] += n
}

// at returns the count of a row's domain, and whether the row has one.
func (d *domainCounts) at(c *Cluster, key string, row int32) (n int64, ok bool) {
	col := d.columns[key]
	if col == nil {
		col = c.label(key)
	}
	no := col.values[row]
	if no == 0 {
		return 0, false
	}
	if counts := d.counts[key]; counts != nil {
		n = counts[no]
	}
	return n, true
}

// interState is what required terms see, the pod's own and others'.
type interState struct {
	affinity domainCounts // pods that match all required terms
	anti     domainCounts // pods that match a required anti-affinity term
	others   domainCounts // pods whose required anti-affinity is against this pod
	self     bool         // the pod matches its own required terms
}

func (s *search) interState() *interState {
	st := &interState{}
	own := &s.pod.affinity
	if len(own.required) > 0 {
		own.required[0].each(s.c, func(p *Pod) {
			if matchesAll(s.c, own.required, p) {
				for i := range own.required {
					st.affinity.add(s.c, own.required[i].key, p.Node, 1)
				}
			}
		})
		st.self = matchesAll(s.c, own.required, s.pod)
	}
	for i := range own.requiredAnti {
		t := &own.requiredAnti[i]
		t.each(s.c, func(p *Pod) { st.anti.add(s.c, t.key, p.Node, 1) })
	}
	for p := range s.c.anti {
		for i := range p.affinity.requiredAnti {
			if t := &p.affinity.requiredAnti[i]; t.matches(s.c, s.pod) {
				st.others.add(s.c, t.key, p.Node, 1)
			}
		}
	}
	return st
}

func matchesAll(c *Cluster, terms []term, p *Pod) bool {
	for i := range terms {
		if !terms[i].matches(c, p) {
			return false
		}
	}
	return true
}

// filterInterPod keeps the nodes that satisfy the pod's required affinity and
// anti-affinity, and the anti-affinity of the pods that are there already.
func (s *search) filterInterPod() {
	own := &s.pod.affinity
	if len(own.required)+len(own.requiredAnti)+len(s.c.anti) == 0 {
		return
	}
	st := s.interState()
	s.keep(func(row int32) *status {
		if !st.affinityHolds(s.c, own.required, row) {
			return noAffinity
		}
		for i := range own.requiredAnti {
			if n, _ := st.anti.at(s.c, own.requiredAnti[i].key, row); n > 0 {
				return antiBroken
			}
		}
		for key := range st.others.counts {
			if n, _ := st.others.at(s.c, key, row); n > 0 {
				return antiOfOther
			}
		}
		return nil
	})
}

// affinityHolds decides the required affinity on a row. The first pod of a
// group that wants to be together may go anywhere with the topology labels.
func (st *interState) affinityHolds(c *Cluster, required []term, row int32) bool {
	all := true
	for i := range required {
		n, ok := st.affinity.at(c, required[i].key, row)
		if !ok {
			return false
		}
		all = all && n > 0
	}
	return all || st.affinity.empty() && st.self
}

// hardAffinityWeight is what the required affinity of a pod that is there
// counts in favour of a node.
const hardAffinityWeight = 1

// scoreInterPod adds up preferred terms: the pod's about others, and others'
// about the pod.
func (s *search) scoreInterPod() {
	own := &s.pod.affinity
	if len(own.preferred)+len(own.preferredAnti)+len(s.c.affine) == 0 {
		return
	}
	var sum domainCounts
	mine := func(terms []term, sign int64) {
		for i := range terms {
			t := &terms[i]
			t.each(s.c, func(p *Pod) { sum.add(s.c, t.key, p.Node, sign*t.weight) })
		}
	}
	mine(own.preferred, 1)
	mine(own.preferredAnti, -1)
	for p := range s.c.affine {
		theirs := func(terms []term, weight func(*term) int64) {
			for i := range terms {
				if t := &terms[i]; t.matches(s.c, s.pod) {
					sum.add(s.c, t.key, p.Node, weight(t))
				}
			}
		}
		theirs(p.affinity.required, func(*term) int64 { return hardAffinityWeight })
		theirs(p.affinity.preferred, func(t *term) int64 { return t.weight })
		theirs(p.affinity.preferredAnti, func(t *term) int64 { return -t.weight })
	}
	if !sum.empty() {
		s.addInterPod(&sum)
	}
}

// addInterPod scales the sums so that the lowest is 0 and the highest maxScore.
func (s *search) addInterPod(sum *domainCounts) {
	low, high := int64(math.MaxInt64), int64(math.MinInt64)
	for i, row := range s.rows {
		s.scratch[i] = 0
		for key := range sum.counts {
			n, _ := sum.at(s.c, key, row)
			s.scratch[i] += n
		}
		low, high = min(low, s.scratch[i]), max(high, s.scratch[i])
	}
	if high == low {
		return
	}
	for i, n := range s.scratch {
		s.scores[i] += weightInterPod * int64(maxScore*(float64(n-low)/float64(high-low)))
	}
}
