package core

import (
	"math"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

var (
	skewed     = &status{plugin: PodTopologySpread, reasons: []string{"node(s) didn't match pod topology spread constraints"}}
	noTopology = &status{plugin: PodTopologySpread, unresolvable: true,
		reasons: []string{"node(s) didn't match pod topology spread constraints (missing required label)"}}
)

// counter counts, on each node, the pods of a namespace that a selector
// matches. Spreading asks for the same few again and again; they are kept up
// to date as pods come and go.
type counter struct {
	namespace string
	selector  labels.Selector
	byRow     []int32
	used      int64
}

// maxCounters bounds the counters that are kept.
const maxCounters = 256

func (n *counter) matches(p *Pod) bool {
	return p.DeletionTimestamp == nil && p.Namespace == n.namespace && n.selector.Matches(labels.Set(p.Labels))
}

// counter returns the counter of a selector, made if need be.
func (c *Cluster) counter(namespace string, selector labels.Selector) *counter {
	c.tick++
	key := namespace + "\x00" + selector.String()
	if n := c.counters[key]; n != nil {
		n.used = c.tick
		return n
	}
	if len(c.counters) >= maxCounters {
		oldest := key
		for k, n := range c.counters {
			if o := c.counters[oldest]; o == nil || n.used < o.used {
				oldest = k
			}
		}
		delete(c.counters, oldest)
	}
	n := &counter{namespace: namespace, selector: selector, byRow: make([]int32, len(c.nodes)), used: c.tick}
	for p := range c.byNS[namespace] {
		if n.matches(p) {
			n.byRow[c.index[p.Node]]++
		}
	}
	c.counters[key] = n
	return n
}

// spreadConstraint is one constraint ready for use.
type spreadConstraint struct {
	key        string
	column     *labelColumn
	counts     *counter
	selector   labels.Selector
	maxSkew    int64
	minDomains int
	affinity   bool // count only nodes the pod's node affinity selects
	taints     bool // count only nodes whose taints the pod tolerates
}

type spreadState struct {
	hard, soft []spreadConstraint
	defaulted  bool // soft are the defaults: nodes without the labels take part
}

// Default constraints of a pod that has none of its own.
var defaultSpread = []v1.TopologySpreadConstraint{
	{MaxSkew: 3, TopologyKey: v1.LabelHostname, WhenUnsatisfiable: v1.ScheduleAnyway},
	{MaxSkew: 5, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.ScheduleAnyway},
}

func (s *search) spreadState() *spreadState {
	if s.spread != nil {
		return s.spread
	}
	st := &spreadState{}
	s.spread = st
	own := s.pod.Spec.TopologySpreadConstraints
	for i := range own {
		sel, err := spreadSelector(s.pod.Pod, &own[i])
		if err != nil {
			continue // the API refuses such a pod
		}
		con := s.constraint(&own[i], sel)
		if own[i].WhenUnsatisfiable == v1.DoNotSchedule {
			st.hard = append(st.hard, con)
		} else {
			st.soft = append(st.soft, con)
		}
	}
	if len(own) == 0 && s.req.Spread != nil && !s.req.Spread.Empty() {
		st.defaulted = true
		for i := range defaultSpread {
			st.soft = append(st.soft, s.constraint(&defaultSpread[i], s.req.Spread))
		}
	}
	return st
}

func (s *search) constraint(in *v1.TopologySpreadConstraint, sel labels.Selector) spreadConstraint {
	con := spreadConstraint{
		key: in.TopologyKey, column: s.c.label(in.TopologyKey), selector: sel,
		counts: s.c.counter(s.pod.Namespace, sel), maxSkew: int64(in.MaxSkew), minDomains: 1, affinity: true,
	}
	if in.MinDomains != nil {
		con.minDomains = int(*in.MinDomains)
	}
	if in.NodeAffinityPolicy != nil {
		con.affinity = *in.NodeAffinityPolicy == v1.NodeInclusionPolicyHonor
	}
	con.taints = in.NodeTaintsPolicy != nil && *in.NodeTaintsPolicy == v1.NodeInclusionPolicyHonor
	return con
}

// spreadSelector is a constraint's selector with the pod's values of its
// matchLabelKeys.
func spreadSelector(pod *v1.Pod, in *v1.TopologySpreadConstraint) (labels.Selector, error) {
	sel, err := metav1.LabelSelectorAsSelector(in.LabelSelector)
	if err != nil {
		return nil, err
	}
	for _, key := range in.MatchLabelKeys {
		value, ok := pod.Labels[key]
		if !ok {
			continue
		}
		r, err := labels.NewRequirement(key, selection.In, []string{value})
		if err != nil {
			return nil, err
		}
		sel = sel.Add(*r)
	}
	return sel, nil
}

// included reports whether a node takes part in a constraint's counting.
func (s *search) included(con *spreadConstraint, row int32) bool {
	if con.affinity && !s.nodeMatcher().matches(s.c, row) {
		return false
	}
	return !con.taints || !s.taintTable().refused[s.c.taints[row]]
}

// hasAll reports whether a node has every topology label of the constraints.
func hasAll(cons []spreadConstraint, row int32) bool {
	for i := range cons {
		if cons[i].column.values[row] == 0 {
			return false
		}
	}
	return true
}

// filterSpread drops nodes on which the pod would skew a hard constraint.
func (s *search) filterSpread() {
	cons := s.spreadState().hard
	if len(cons) == 0 {
		return
	}
	counts := make([][]int64, len(cons)) // by number of the topology value
	least := make([]int64, len(cons))
	for i := range cons {
		counts[i], least[i] = s.countDomains(&cons[i], cons)
	}
	self := make([]int64, len(cons))
	for i := range cons {
		if cons[i].selector.Matches(labels.Set(s.pod.Labels)) {
			self[i] = 1
		}
	}
	s.keep(func(row int32) *status {
		for i := range cons {
			domain := cons[i].column.values[row]
			if domain == 0 {
				return noTopology
			}
			if counts[i][domain]+self[i]-least[i] > cons[i].maxSkew {
				return skewed
			}
		}
		return nil
	})
}

// countDomains counts the matching pods in every domain of a constraint, and
// the least of these.
func (s *search) countDomains(con *spreadConstraint, all []spreadConstraint) (counts []int64, least int64) {
	counts = make([]int64, len(con.column.names))
	present := make([]bool, len(con.column.names))
	for row, node := range s.c.nodes {
		row := int32(row)
		if node == nil || !hasAll(all, row) || !s.included(con, row) {
			continue
		}
		present[con.column.values[row]] = true
		counts[con.column.values[row]] += int64(con.counts.byRow[row])
	}
	domains := 0
	least = math.MaxInt32
	for no, ok := range present {
		if ok {
			domains++
			least = min(least, counts[no])
		}
	}
	if domains < con.minDomains {
		least = 0
	}
	return counts, least
}

// scoreSpread prefers nodes in domains with few matching pods.
func (s *search) scoreSpread() {
	st := s.spreadState()
	if len(st.soft) == 0 {
		return
	}
	sums := make([]float64, len(s.rows))
	ignored := make([]bool, len(s.rows))
	left := len(s.rows)
	if !st.defaulted {
		for i, row := range s.rows {
			if ignored[i] = !hasAll(st.soft, row); ignored[i] {
				left--
			}
		}
	}
	for i := range st.soft {
		s.addSpread(&st.soft[i], st, sums, ignored, left)
	}
	low, high := int64(math.MaxInt64), int64(0)
	for i := range sums {
		s.scratch[i] = int64(math.Round(sums[i]))
		if !ignored[i] {
			low, high = min(low, s.scratch[i]), max(high, s.scratch[i])
		}
	}
	for i, n := range s.scratch {
		switch {
		case ignored[i]:
		case high == 0:
			s.scores[i] += weightSpread * maxScore
		default:
			s.scores[i] += weightSpread * (maxScore * (high + low - n) / high)
		}
	}
}

// addSpread adds one soft constraint's part; left is how many nodes are not
// ignored.
func (s *search) addSpread(con *spreadConstraint, st *spreadState, sums []float64, ignored []bool, left int) {
	var counts []int64
	domains := left
	perNode := con.key == v1.LabelHostname
	if !perNode {
		counts, domains = s.softDomains(con, st, ignored)
	}
	weight := math.Log(float64(domains + 2))
	for i, row := range s.rows {
		domain := con.column.values[row]
		if ignored[i] || domain == 0 {
			continue
		}
		n := int64(con.counts.byRow[row])
		if !perNode {
			n = counts[domain]
		}
		sums[i] += float64(n)*weight + float64(con.maxSkew-1)
	}
}

// softDomains counts the matching pods in the domains of the nodes that are
// candidates, over all nodes, and these domains.
func (s *search) softDomains(con *spreadConstraint, st *spreadState, ignored []bool) (counts []int64, domains int) {
	counts = make([]int64, len(con.column.names))
	candidate := make([]bool, len(con.column.names))
	for i, row := range s.rows {
		if domain := con.column.values[row]; !ignored[i] && !candidate[domain] {
			candidate[domain] = true
			domains++
		}
	}
	for row, node := range s.c.nodes {
		row := int32(row)
		if node == nil || !candidate[con.column.values[row]] || (!st.defaulted && !hasAll(st.soft, row)) || !s.included(con, row) {
			continue
		}
		counts[con.column.values[row]] += int64(con.counts.byRow[row])
	}
	return counts, domains
}
