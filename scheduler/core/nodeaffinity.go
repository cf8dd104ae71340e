package core

import (
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	wrongLabels = &status{plugin: NodeAffinity, reasons: []string{"node(s) didn't match Pod's node affinity/selector"}, unresolvable: true}
	wrongNames  = &status{plugin: NodeAffinity, reasons: []string{"node(s) didn't satisfy plugin(s) [NodeAffinity]"}, unresolvable: true}
)

// nodeMatcher is a pod's node selector and required node affinity, evaluated
// for every label value of the cluster.
type nodeMatcher struct {
	all      []requirement   // the node selector
	terms    [][]requirement // one of them must hold
	anyTerm  bool            // there is a required affinity
	names    map[string]bool // the only nodes that can match; nil: any
	conflict bool            // no node can match
}

// requirement is one condition on a label, or on the node's name.
type requirement struct {
	column *labelColumn
	ok     []bool // by number of the value
	name   func(string) bool
}

func (r *requirement) holds(c *Cluster, row int32) bool {
	if r.name != nil {
		return r.name(c.nodes[row].Name)
	}
	return r.ok[r.column.values[row]]
}

func (s *search) prepareNodeAffinity() {
	m := s.nodeMatcher()
	if m.conflict {
		s.refuseAll(NodeAffinity, "pod affinity terms conflict")
	}
}

func (s *search) nodeMatcher() *nodeMatcher {
	if s.matcher != nil {
		return s.matcher
	}
	m := &nodeMatcher{}
	s.matcher = m
	for key, value := range s.pod.Spec.NodeSelector {
		m.all = append(m.all, s.c.require(key, v1.NodeSelectorOpIn, []string{value}))
	}
	a := s.pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return m
	}
	m.anyTerm = true
	required := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	for i := range required {
		if len(required[i].MatchExpressions)+len(required[i].MatchFields) > 0 { // an empty term matches nothing
			m.terms = append(m.terms, s.c.term(&required[i]))
		}
	}
	m.names, m.conflict = namedNodes(required)
	return m
}

// namedNodes returns the nodes that terms name, nil if one names none.
func namedNodes(terms []v1.NodeSelectorTerm) (names map[string]bool, conflict bool) {
	for _, t := range terms {
		var named []string
		restricted := false
		for _, r := range t.MatchFields {
			if r.Key != metav1.ObjectNameField || r.Operator != v1.NodeSelectorOpIn {
				continue
			}
			if restricted {
				named = slices.DeleteFunc(named, func(n string) bool { return !slices.Contains(r.Values, n) })
			} else {
				restricted, named = true, slices.Clone(r.Values)
			}
		}
		if !restricted {
			return nil, false
		}
		if names == nil {
			names = map[string]bool{}
		}
		for _, n := range named {
			names[n] = true
		}
	}
	return names, names != nil && len(names) == 0
}

func (c *Cluster) term(t *v1.NodeSelectorTerm) []requirement {
	var out []requirement
	for _, e := range t.MatchExpressions {
		out = append(out, c.require(e.Key, e.Operator, e.Values))
	}
	for _, f := range t.MatchFields {
		out = append(out, requirement{name: func(name string) bool {
			if f.Key != metav1.ObjectNameField {
				return false
			}
			in := slices.Contains(f.Values, name)
			return f.Operator == v1.NodeSelectorOpIn && in || f.Operator == v1.NodeSelectorOpNotIn && !in
		}})
	}
	return out
}

// require evaluates a label condition for every value of the label.
func (c *Cluster) require(key string, op v1.NodeSelectorOperator, values []string) requirement {
	col := c.label(key)
	r := requirement{column: col, ok: make([]bool, len(col.names))}
	switch op {
	case v1.NodeSelectorOpIn:
		for _, v := range values {
			if no, ok := col.number[v]; ok {
				r.ok[no] = true
			}
		}
	case v1.NodeSelectorOpNotIn:
		for no := range r.ok {
			r.ok[no] = true
		}
		for _, v := range values {
			if no, ok := col.number[v]; ok {
				r.ok[no] = false
			}
		}
	case v1.NodeSelectorOpExists, v1.NodeSelectorOpDoesNotExist:
		for no := range r.ok {
			r.ok[no] = (no > 0) == (op == v1.NodeSelectorOpExists)
		}
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		for no := 1; no < len(r.ok) && len(values) == 1; no++ {
			have, err1 := strconv.ParseInt(col.names[no], 10, 64)
			want, err2 := strconv.ParseInt(values[0], 10, 64)
			r.ok[no] = err1 == nil && err2 == nil && (op == v1.NodeSelectorOpGt && have > want || op == v1.NodeSelectorOpLt && have < want)
		}
	}
	return r
}

func (m *nodeMatcher) matches(c *Cluster, row int32) bool {
	if !holdAll(c, m.all, row) {
		return false
	}
	if !m.anyTerm {
		return true
	}
	for _, t := range m.terms {
		if holdAll(c, t, row) {
			return true
		}
	}
	return false
}

func holdAll(c *Cluster, rs []requirement, row int32) bool {
	for i := range rs {
		if !rs[i].holds(c, row) {
			return false
		}
	}
	return true
}

// filterNodeAffinity keeps the nodes the pod's node selector and required
// affinity select.
func (s *search) filterNodeAffinity() {
	m := s.nodeMatcher()
	if len(m.all) == 0 && !m.anyTerm {
		return
	}
	s.keep(func(row int32) *status {
		if m.matches(s.c, row) {
			return nil
		}
		return wrongLabels
	})
}

// filterNamed drops the nodes that required affinity does not name, before any
// other filter gives them a reason.
func (s *search) filterNamed() {
	names := s.nodeMatcher().names
	if names == nil {
		return
	}
	s.keep(func(row int32) *status {
		if names[s.c.nodes[row].Name] {
			return nil
		}
		return wrongNames
	})
}

// scoreNodeAffinity adds up the weights of the preferred terms that match.
func (s *search) scoreNodeAffinity() {
	a := s.pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return
	}
	clear(s.scratch)
	for i := range a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
		p := &a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution[i]
		if p.Weight == 0 || len(p.Preference.MatchExpressions)+len(p.Preference.MatchFields) == 0 {
			continue
		}
		t := s.c.term(&p.Preference)
		for i, row := range s.rows {
			if holdAll(s.c, t, row) {
				s.scratch[i] += int64(p.Weight)
			}
		}
	}
	s.addScaled(weightAffinity, false)
}
