package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Request is one pod to place, with what the cluster's columns do not hold.
type Request struct {
	Pod *Pod
	// Spread selects the pods that the pod's controllers and services select;
	// the default spreading constraints use it. Nil or empty: no default spreading.
	Spread labels.Selector
	// Volumes is what is known of the pod's claims.
	Volumes Volumes
	// Preemption lets a pod that fits nowhere take the place of less important
	// ones.
	Preemption bool
	// Disruptions returns the budgets that preemption tries to keep; may be nil.
	Disruptions func() []Budget
	// Rand breaks ties: it returns a number in [0, n).
	Rand func(n int) int
}

// Decision is where a pod goes, or why nowhere.
type Decision struct {
	Node  string // "" if it fits nowhere
	Score int64
	// Feasible is how many nodes passed the filters.
	Feasible int

	// Message says why the pod fits nowhere, in upstream's words.
	Message string
	// Rejected names the plugins that refused a node, for requeueing.
	Rejected map[string]bool
	// Nominated is the node that is free once Victims are gone.
	Nominated string
	Victims   []*Pod
}

// status is why one node was dropped.
type status struct {
	plugin  string
	reasons []string
	// unresolvable: no preemption can help.
	unresolvable bool
}

// search is a decision in the making.
type search struct {
	c   *Cluster
	req *Request
	pod *Pod

	rows     []int32   // nodes that passed so far
	brief    bool      // nobody asks why nodes were dropped
	statuses []*status // by row, nil for the others; nil if none was dropped
	pre      *status   // a filter refused every node at once
	rejected map[string]bool

	taints  *taintTable
	matcher *nodeMatcher
	spread  *spreadState
	budgets []Budget
	scores  []int64 // by position in rows
	scratch []int64
}

func newSearch(c *Cluster, req *Request) *search {
	return &search{c: c, req: req, pod: req.Pod, rejected: map[string]bool{}, rows: c.allRows()}
}

// allRows lists the known nodes, in memory of the next decision's.
func (c *Cluster) allRows() []int32 {
	rows := c.scratch.rows[:0]
	for row, node := range c.nodes {
		if node != nil {
			rows = append(rows, int32(row))
		}
	}
	c.scratch.rows = rows
	return rows
}

// scratch is memory that one decision leaves to the next.
type scratch struct {
	rows           []int32
	scores, scaled []int64
}

// zeros returns n zeros in *buf's memory.
func zeros(buf *[]int64, n int) []int64 {
	if cap(*buf) < n {
		*buf = make([]int64, n)
	}
	s := (*buf)[:n]
	clear(s)
	return s
}

// why returns the status of a row, nil if it has not been dropped.
func (s *search) why(row int32) *status {
	if s.statuses == nil {
		return nil
	}
	return s.statuses[row]
}

// keep drops the rows for which refuse returns a status.
func (s *search) keep(refuse func(row int32) *status) {
	kept := s.rows[:0]
	for _, row := range s.rows {
		if st := refuse(row); st != nil {
			if s.brief {
				continue
			}
			if s.statuses == nil {
				s.statuses = make([]*status, len(s.c.nodes))
			}
			s.statuses[row] = st
			s.rejected[st.plugin] = true
			continue
		}
		kept = append(kept, row)
	}
	s.rows = kept
}

// refuseAll ends the search before any node is looked at.
func (s *search) refuseAll(plugin, reason string) {
	s.pre = &status{plugin: plugin, reasons: []string{reason}, unresolvable: true}
	if !s.brief {
		s.rejected[plugin] = true
	}
	s.rows = s.rows[:0]
}

// Decide finds the best node for a pod. It changes nothing.
func (c *Cluster) Decide(req *Request) Decision {
	cl := c.class(req)
	s := &search{c: c, req: req, pod: req.Pod, rows: c.scratch.rows[:0], brief: true}
	for row, score := range cl.scores {
		if score != refused {
			s.rows = append(s.rows, int32(row))
		}
	}
	c.scratch.rows = s.rows
	if len(s.rows) > 0 {
		s.filterTogether()
	}
	if len(s.rows) == 0 {
		return c.refuse(req)
	}
	d := Decision{Feasible: len(s.rows)}
	best := 0
	if len(s.rows) > 1 {
		s.score(cl)
		best = s.best()
		d.Score = s.scores[best]
	}
	d.Node = c.nodes[s.rows[best]].Name
	return d
}

// refuse is the decision about a pod that fits nowhere.
func (c *Cluster) refuse(req *Request) Decision {
	s := newSearch(c, req)
	all := len(s.rows)
	if all == 0 {
		return Decision{Message: noNodesMessage}
	}
	s.filter()
	d := Decision{Rejected: s.rejected}
	d.Message = s.explain(all)
	if req.Preemption {
		s.preempt(&d, all)
	}
	return d
}

// best returns the position of a row with the highest score, any of them with
// the same chance.
func (s *search) best() int {
	high := slices.Max(s.scores)
	ties := 0
	for _, n := range s.scores {
		if n == high {
			ties++
		}
	}
	skip := 0
	if s.req.Rand != nil && ties > 1 {
		skip = s.req.Rand(ties)
	}
	for i, n := range s.scores {
		if n != high {
			continue
		}
		if skip--; skip < 0 {
			return i
		}
	}
	return 0 // not reached: Rand is below ties
}

const noNodesMessage = "no nodes available to schedule pods"

// explain is the message of a pod that fits nowhere: how many nodes gave each
// reason.
func (s *search) explain(all int) string {
	msg := fmt.Sprintf("0/%d nodes are available:", all)
	if s.pre != nil {
		return msg + fmt.Sprintf(" %s.", strings.Join(s.pre.reasons, ", "))
	}
	return msg + histogram(s.statuses, "", 0)
}

// histogram counts reasons; other more nodes have the reason rest.
func histogram(statuses []*status, rest string, other int) string {
	// Most nodes share a few statuses: count these first.
	same := map[*status]int{}
	var last *status
	run := 0
	for _, st := range statuses {
		if st != last {
			same[last] += run
			last, run = st, 0
		}
		run++
	}
	same[last] += run
	count := map[string]int{}
	for st, n := range same {
		if st == nil {
			continue
		}
		for _, reason := range st.reasons {
			count[reason] += n
		}
	}
	if other > 0 {
		count[rest] += other
	}
	var parts []string
	for _, reason := range slices.Collect(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[reason], reason))
	}
	if len(parts) == 0 {
		return ""
	}
	slices.Sort(parts)
	return fmt.Sprintf(" %s.", strings.Join(parts, ", "))
}

// Fits reports whether a pod passes every filter on one node as things are.
func (c *Cluster) Fits(req *Request, node string) bool {
	row, ok := c.index[node]
	if !ok || c.nodes[row] == nil {
		return false
	}
	s := &search{c: c, req: req, pod: req.Pod, rejected: map[string]bool{}, rows: []int32{row}}
	s.filter()
	return len(s.rows) == 1
}
