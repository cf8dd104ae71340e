package core

import (
	"strconv"

	v1 "k8s.io/api/core/v1"
)

var (
	cordoned    = &status{plugin: NodeUnschedulable, reasons: []string{"node(s) were unschedulable"}, unresolvable: true}
	untolerated = &status{plugin: TaintToleration, reasons: []string{"node(s) had untolerated taint(s)"}, unresolvable: true}
)

// filterUnschedulable drops cordoned nodes, unless the pod tolerates the taint
// that stands for it.
func (s *search) filterUnschedulable() {
	taint := v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
	if tolerated(s.pod.Spec.Tolerations, &taint) {
		return
	}
	s.keep(func(row int32) *status {
		if s.c.unschedulable[row] {
			return cordoned
		}
		return nil
	})
}

// taintTable is a pod's view of every taint set of the cluster.
type taintTable struct {
	refused  []bool  // by number of the set
	disliked []int64 // untolerated PreferNoSchedule taints
	any      bool    // some set is disliked
}

func (s *search) taintTable() *taintTable {
	if s.taints != nil {
		return s.taints
	}
	t := &taintTable{refused: make([]bool, len(s.c.sets)), disliked: make([]int64, len(s.c.sets))}
	for no, set := range s.c.sets {
		for i := range set {
			if tolerated(s.pod.Spec.Tolerations, &set[i]) {
				continue
			}
			switch set[i].Effect {
			case v1.TaintEffectNoSchedule, v1.TaintEffectNoExecute:
				t.refused[no] = true
			case v1.TaintEffectPreferNoSchedule:
				t.disliked[no]++
				t.any = true
			}
		}
	}
	s.taints = t
	return t
}

// filterTaints drops nodes with a taint the pod does not tolerate.
func (s *search) filterTaints() {
	t := s.taintTable()
	if len(t.refused) == 1 {
		return // no node is tainted
	}
	s.keep(func(row int32) *status {
		if t.refused[s.c.taints[row]] {
			return untolerated
		}
		return nil
	})
}

// scoreTaints prefers nodes with few untolerated PreferNoSchedule taints.
func (s *search) scoreTaints() {
	t := s.taintTable()
	if !t.any {
		for i := range s.scores {
			s.scores[i] += weightTaints * maxScore
		}
		return
	}
	for i, row := range s.rows {
		s.scratch[i] = t.disliked[s.c.taints[row]]
	}
	s.addScaled(weightTaints, true)
}

// tolerated reports whether one of the tolerations covers a taint.
func tolerated(tolerations []v1.Toleration, taint *v1.Taint) bool {
	for i := range tolerations {
		if covers(&tolerations[i], taint) {
			return true
		}
	}
	return false
}

func covers(t *v1.Toleration, taint *v1.Taint) bool {
	if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
		return false
	}
	switch t.Operator {
	case "", v1.TolerationOpEqual:
		return t.Value == taint.Value
	case v1.TolerationOpExists:
		return true
	case v1.TolerationOpLt, v1.TolerationOpGt:
		want, err1 := strconv.ParseInt(t.Value, 10, 64)
		have, err2 := strconv.ParseInt(taint.Value, 10, 64)
		if err1 != nil || err2 != nil {
			return false
		}
		if t.Operator == v1.TolerationOpLt {
			return have < want
		}
		return have > want
	}
	return false
}
