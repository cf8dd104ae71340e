package nodelifecycle

import (
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// observed is everything a plan depends on.
type observed struct {
	node      *corev1.Node
	lastSign  time.Time // when the node last showed that it lives
	disrupted bool      // no node of the cluster is ready: probably the fault is ours
	mayEvict  bool      // the node's zone allows one more node to be emptied
	now       time.Time
}

// plan is what one look at a node leads to.
type plan struct {
	status  *corev1.Node   // write its status; nil if it is right
	lost    bool           // it was ready, and now nobody knows
	taints  []corev1.Taint // the wanted taints; set only if retaint
	retaint bool
	needs   bool // wants a first NoExecute taint but may not have it yet
	labels  map[string]string
	again   time.Duration // when the node is overdue if it shows no sign of life
}

// lifeSigns are the conditions a kubelet posts and nobody else.
var lifeSigns = []corev1.NodeConditionType{
	corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// noSchedule says which taint keeps new Pods off a node with a condition in a bad state.
var noSchedule = map[corev1.NodeConditionType]map[corev1.ConditionStatus]string{
	corev1.NodeReady: {corev1.ConditionFalse: corev1.TaintNodeNotReady,
		corev1.ConditionUnknown: corev1.TaintNodeUnreachable},
	corev1.NodeMemoryPressure:     {corev1.ConditionTrue: corev1.TaintNodeMemoryPressure},
	corev1.NodeDiskPressure:       {corev1.ConditionTrue: corev1.TaintNodeDiskPressure},
	corev1.NodeNetworkUnavailable: {corev1.ConditionTrue: corev1.TaintNodeNetworkUnavailable},
	corev1.NodePIDPressure:        {corev1.ConditionTrue: corev1.TaintNodePIDPressure},
}

// ours reports whether the controller decides about t.
func ours(t corev1.Taint) bool {
	switch t.Effect {
	case corev1.TaintEffectNoSchedule:
		if t.Key == corev1.TaintNodeUnschedulable {
			return true
		}
		for _, by := range noSchedule {
			for _, key := range by {
				if t.Key == key {
					return true
				}
			}
		}
	case corev1.TaintEffectNoExecute:
		return t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable
	}
	return false
}

// planNode decides about one node.
func planNode(o observed, cfg Config) plan {
	var p plan
	p.labels = missingLabels(o.node)
	node := o.node
	grace := cfg.MonitorGracePeriod
	if condition(node, corev1.NodeReady) == nil {
		grace = cfg.StartupGracePeriod
	}
	if left := o.lastSign.Add(grace).Sub(o.now); left >= 0 {
		p.again = left + time.Millisecond
	} else {
		was := condition(node, corev1.NodeReady)
		if silent := unknown(node, o.now); silent != nil {
			p.status, node = silent, silent
			p.lost = was != nil && was.Status == corev1.ConditionTrue
		}
	}
	want, needs := taints(o, node)
	p.needs = needs
	if !sameTaints(o.node.Spec.Taints, want) {
		p.taints, p.retaint = want, true
	}
	return p
}

func condition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// unknown returns a copy of the node with every life sign Unknown, or nil if that is so already.
func unknown(n *corev1.Node, now time.Time) *corev1.Node {
	out := n.DeepCopy()
	changed := false
	for _, t := range lifeSigns {
		c := condition(out, t)
		switch {
		case c == nil:
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: t,
				Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message:           "Kubelet never posted node status.",
				LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: metav1.NewTime(now)})
			changed = true
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			c.LastTransitionTime = metav1.NewTime(now)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return out
}

// taints computes the node's taints from its (new) conditions; other parties' taints stay.
func taints(o observed, n *corev1.Node) (want []corev1.Taint, needs bool) {
	var mine []corev1.Taint
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Taint{Key: key, Effect: effect}
		i := slices.IndexFunc(o.node.Spec.Taints, func(x corev1.Taint) bool { return x.MatchTaint(&t) })
		if i >= 0 {
			t = o.node.Spec.Taints[i]
		} else {
			t.TimeAdded = &metav1.Time{Time: o.now}
		}
		mine = append(mine, t)
	}
	for _, c := range n.Status.Conditions {
		if key, ok := noSchedule[c.Type][c.Status]; ok {
			add(key, corev1.TaintEffectNoSchedule)
		}
	}
	if n.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	if ready := condition(n, corev1.NodeReady); ready != nil && ready.Status != corev1.ConditionTrue && !o.disrupted {
		// changing one kind for the other empties no further node and needs no leave
		if evicting(o.node) || o.mayEvict {
			add(noSchedule[corev1.NodeReady][ready.Status], corev1.TaintEffectNoExecute)
		} else {
			needs = true
		}
	}
	for _, t := range o.node.Spec.Taints {
		if !ours(t) {
			want = append(want, t)
		}
	}
	return append(want, mine...), needs
}

// evicting reports whether the node has one of our NoExecute taints.
func evicting(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute && ours(t)
	})
}

// sameTaints compares without regard to order.
func sameTaints(a, b []corev1.Taint) bool {
	return len(a) == len(b) && !slices.ContainsFunc(b, func(t corev1.Taint) bool {
		return !slices.ContainsFunc(a, func(x corev1.Taint) bool { return x.MatchTaint(&t) })
	})
}

// missingLabels keeps the old names of the os and arch labels equal to the new ones.
func missingLabels(n *corev1.Node) map[string]string {
	var out map[string]string
	for now, old := range map[string]string{
		corev1.LabelOSStable: "beta.kubernetes.io/os", corev1.LabelArchStable: "beta.kubernetes.io/arch"} {
		if v, ok := n.Labels[now]; ok && n.Labels[old] != v {
			if out == nil {
				out = map[string]string{}
			}
			out[old] = v
		}
	}
	return out
}

// patch is the merge patch for taints and labels; the resource version guards the taint list, which
// others write as well.
func (p plan) patch(n *corev1.Node) []byte {
	meta := map[string]any{"uid": n.UID}
	body := map[string]any{"metadata": meta}
	if p.labels != nil {
		meta["labels"] = p.labels
	}
	if p.retaint {
		meta["resourceVersion"] = n.ResourceVersion
		list := p.taints
		if list == nil {
			list = []corev1.Taint{}
		}
		body["spec"] = map[string]any{"taints": list}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // plain values always encode
	}
	return b
}
