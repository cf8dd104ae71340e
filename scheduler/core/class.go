package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// class is what pods of one template share: for each node, whether the
// filters that look at that node alone let them in, and the part of the score
// that nothing but the node decides. Of a cluster of thousands of nodes a
// placement changes one, so the next pod of the template costs a look at that
// one and a walk over the scores.
type class struct {
	scores []int64 // by row; refused, or at least 0
	seen   int     // position in the cluster's journal up to which scores hold
	used   int64   // age
}

// refused is the score of a node that a filter drops.
const refused = -1

const (
	// maxClasses bounds the classes that are kept.
	maxClasses = 32
	// maxJournal bounds the rows that classes can catch up with; one that has
	// fallen behind is made anew.
	maxJournal = 4096
)

// journal is the rows that changed, oldest first. Its first entry has position start.
type journal struct {
	rows  []int32
	start int
}

func (j *journal) end() int { return j.start + len(j.rows) }

// touch notes that a row changed.
func (c *Cluster) touch(row int32) {
	if j := &c.journal; len(c.classes) > 0 {
		if len(j.rows) == maxJournal {
			j.start, j.rows = j.end(), j.rows[:0]
		}
		j.rows = append(j.rows, row)
	}
}

// template tells pods apart whose classes differ: it holds all of a pod that
// the filters and scores of single nodes look at.
func (p *Pod) template() string {
	if p.class != "" {
		return p.class
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v %v %q %q", p.req, p.nonzero, p.ports, p.Spec.NodeName, p.Spec.NodeSelector)
	for i := range p.Spec.Tolerations {
		t := &p.Spec.Tolerations[i]
		fmt.Fprintf(&b, " tolerates %q %q %q %q", t.Key, t.Operator, t.Value, t.Effect)
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		text, _ := a.NodeAffinity.Marshal() // a message cannot fail to become bytes
		fmt.Fprintf(&b, " likes %q", text)
	}
	for name := range p.images() {
		fmt.Fprintf(&b, " runs %q", name)
	}
	p.class = b.String()
	return p.class
}

// class returns a pod's class, up to date.
func (c *Cluster) class(req *Request) *class {
	if v := &req.Volumes; v.Missing || v.Refused != "" || len(v.Affinities) > 0 || v.Late != nil {
		return c.newClass(req) // of this pod alone
	}
	c.tick++
	key := req.Pod.template()
	cl := c.classes[key]
	switch {
	case cl == nil && len(c.classes) >= maxClasses:
		delete(c.classes, slices.MinFunc(slices.Collect(maps.Keys(c.classes)), func(a, b string) int {
			return int(c.classes[a].used - c.classes[b].used)
		}))
		fallthrough
	case cl == nil || cl.seen < c.journal.start:
		cl = c.newClass(req)
		c.classes[key] = cl
	default:
		c.judge(cl, req, append(c.scratch.rows[:0], c.journal.rows[cl.seen-c.journal.start:]...))
	}
	cl.seen, cl.used = c.journal.end(), c.tick
	return cl
}

func (c *Cluster) newClass(req *Request) *class {
	cl := &class{scores: slices.Repeat([]int64{refused}, len(c.nodes))}
	c.judge(cl, req, c.allRows())
	return cl
}

// judge brings a class's view of some rows up to date; it uses up the list.
func (c *Cluster) judge(cl *class, req *Request, rows []int32) {
	for _, row := range rows {
		cl.scores[row] = refused
	}
	known := slices.DeleteFunc(rows, func(row int32) bool { return c.nodes[row] == nil })
	s := &search{c: c, req: req, pod: req.Pod, rows: known, brief: true}
	s.filterEach()
	s.scores = zeros(&c.scratch.scores, len(s.rows))
	s.scoreEach()
	for i, row := range s.rows {
		cl.scores[row] = s.scores[i]
	}
}
