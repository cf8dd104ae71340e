package core

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Budget is a PodDisruptionBudget as preemption sees it.
type Budget struct {
	Namespace string
	Selector  labels.Selector
	Allowed   int32
	Disrupted map[string]bool // pods whose eviction is counted already
}

// Bounds of the nodes that are tried out: a tenth of the cluster, at least 100.
const (
	minCandidates     = 100
	candidatesPercent = 10
)

const (
	notHelpful = "Preemption is not helpful for scheduling"
	noVictims  = "No preemption victims found for incoming pod"
)

// candidate is a node that would fit the pod without some other pods.
type candidate struct {
	row        int32
	victims    []*Pod // most important first
	violations int    // victims whose budget does not allow it
}

// preempt looks for the node on which the least harm makes room for the pod,
// and adds the outcome to the decision. It takes pods off the cluster and puts
// them back.
func (s *search) preempt(d *Decision, all int) {
	if reason := s.ineligible(); reason != "" {
		d.Message += " preemption: " + reason
		return
	}
	if s.req.Disruptions != nil {
		s.budgets = s.req.Disruptions()
	}
	var found []candidate
	statuses := make([]*status, len(s.statuses))
	tried := 0
	limit := max(minCandidates, all*candidatesPercent/100)
	for row, st := range s.statuses {
		if s.pre != nil || st == nil || st.unresolvable {
			continue
		}
		tried++
		cand, why := s.tryNode(int32(row))
		if why != nil {
			statuses[row] = why
			continue
		}
		if found = append(found, cand); len(found) >= limit {
			break
		}
	}
	if len(found) == 0 {
		d.Message += fmt.Sprintf(" preemption: 0/%d nodes are available:%s", all, histogram(statuses, notHelpful, all-tried))
		return
	}
	best := pickCandidate(found)
	d.Nominated, d.Victims = s.c.nodes[best.row].Name, best.victims
	d.Message += fmt.Sprintf(" preemption: found a potential placement for pod on node %s, preempting %d victims", d.Nominated, len(d.Victims))
}

// ineligible says why the pod may not preempt now, "" if it may.
func (s *search) ineligible() string {
	if pp := s.pod.Spec.PreemptionPolicy; pp != nil && *pp == v1.PreemptNever {
		return "not eligible due to preemptionPolicy=Never."
	}
	row, ok := s.c.index[s.pod.Status.NominatedNodeName]
	if !ok || s.why(row) != nil && s.why(row).unresolvable {
		return ""
	}
	for _, p := range s.c.pods[row] {
		if p.Priority < s.pod.Priority && terminatingByPreemption(p) {
			return "not eligible due to a terminating pod on the nominated node."
		}
	}
	return ""
}

func terminatingByPreemption(p *Pod) bool {
	if p.DeletionTimestamp == nil {
		return false
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == v1.DisruptionTarget {
			return cond.Status == v1.ConditionTrue && cond.Reason == v1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

// tryNode takes every less important pod off a node and puts back, the most
// important first, those without which the pod fits as well.
func (s *search) tryNode(row int32) (candidate, *status) {
	c := s.c
	node := c.nodes[row].Name
	var removed []*Pod
	for _, p := range slices.Clone(c.pods[row]) {
		if p.Priority < s.pod.Priority {
			removed = append(removed, p)
		}
	}
	if len(removed) == 0 {
		return candidate{}, &status{reasons: []string{noVictims}}
	}
	for _, p := range removed {
		c.RemovePod(p)
	}
	defer func() {
		for _, p := range removed {
			c.AddPod(p, node)
		}
	}()
	if st := s.refusal(row); st != nil {
		return candidate{}, st
	}
	slices.SortFunc(removed, moreImportant)
	violating, rest := s.splitByBudget(removed)
	cand := candidate{row: row}
	reprieve := func(p *Pod) bool {
		c.AddPod(p, node)
		if s.refusal(row) == nil {
			return true
		}
		c.RemovePod(p)
		cand.victims = append(cand.victims, p)
		return false
	}
	for _, p := range violating {
		if !reprieve(p) {
			cand.violations++
		}
	}
	for _, p := range rest {
		reprieve(p)
	}
	if len(cand.victims) == 0 {
		return candidate{}, &status{reasons: []string{noVictims}}
	}
	slices.SortFunc(cand.victims, moreImportant)
	return cand, nil
}

// refusal is why the pod does not fit one node as things are, nil if it does.
func (s *search) refusal(row int32) *status {
	one := &search{c: s.c, req: s.req, pod: s.pod, rejected: map[string]bool{}, rows: []int32{row},
		taints: s.taints, matcher: s.matcher}
	one.filter()
	return one.why(row)
}

// moreImportant orders pods: higher priority first, then those that run longer.
func moreImportant(a, b *Pod) int {
	if n := cmp.Compare(b.Priority, a.Priority); n != 0 {
		return n
	}
	return started(a).Compare(started(b))
}

func started(p *Pod) time.Time {
	if p.Status.StartTime == nil {
		return time.Unix(math.MaxInt32, 0)
	}
	return p.Status.StartTime.Time
}

// splitByBudget separates the pods whose eviction their budgets do not allow.
func (s *search) splitByBudget(pods []*Pod) (violating, rest []*Pod) {
	budgets := s.budgets
	allowed := make([]int32, len(budgets))
	for i := range budgets {
		allowed[i] = budgets[i].Allowed
	}
	for _, p := range pods {
		bad := false
		for i := range budgets {
			b := &budgets[i]
			if len(p.Labels) == 0 || b.Namespace != p.Namespace || b.Selector.Empty() ||
				!b.Selector.Matches(labels.Set(p.Labels)) || b.Disrupted[p.Name] {
				continue
			}
			allowed[i]--
			bad = bad || allowed[i] < 0
		}
		if bad {
			violating = append(violating, p)
		} else {
			rest = append(rest, p)
		}
	}
	return violating, rest
}

// pickCandidate chooses as upstream does: fewest budget violations; lowest
// priority of the most important victim; lowest sum of priorities; fewest
// victims; the most important victims started latest.
func pickCandidate(found []candidate) candidate {
	return slices.MinFunc(found, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(a.violations, b.violations),
			cmp.Compare(a.victims[0].Priority, b.victims[0].Priority),
			cmp.Compare(a.prioritySum(), b.prioritySum()),
			cmp.Compare(len(a.victims), len(b.victims)),
			b.earliestStart().Compare(a.earliestStart()),
		)
	})
}

func (c *candidate) prioritySum() (sum int64) {
	for _, p := range c.victims {
		sum += int64(p.Priority) + math.MaxInt32 + 1
	}
	return sum
}

// earliestStart is when the first of the most important victims started.
func (c *candidate) earliestStart() time.Time {
	first := started(c.victims[0])
	for _, p := range c.victims {
		if p.Priority == c.victims[0].Priority && started(p).Before(first) {
			first = started(p)
		}
	}
	return first
}
