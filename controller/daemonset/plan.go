package daemonset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/skiff-project/skiff/controller/history"
	"github.com/skiff-project/skiff/controller/workload"
)

// burst is the most Pods created, and the most deleted, by one reconcile.
const burst = 250

// observed is everything a plan depends on.
type observed struct {
	set    *appsv1.DaemonSet
	nodes  []*corev1.Node
	pods   map[string][]*corev1.Pod // by the node they are meant for; without deleted finished ones
	hash   string                   // of the current template
	now    time.Time
	failed func(node string) (wait time.Duration) // leave to replace a failed Pod now
}

// plan is what one look leads to.
type plan struct {
	create []string // names of nodes to put a Pod on
	remove []*corev1.Pod
	events []event
	again  time.Duration
}

type event struct{ kind, reason, message string }

// fit is what a node means to a DaemonSet.
type fit struct{ run, stay bool } // should have a Pod; may keep one that is there

// tolerations that every daemon Pod has, so that it comes early and stays long.
func tolerations(spec *corev1.PodSpec) []corev1.Toleration {
	out := slices.Clone(spec.Tolerations)
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		if !slices.ContainsFunc(out, func(x corev1.Toleration) bool { return x.MatchToleration(&t) }) {
			out = append(out, t)
		}
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	for _, key := range []string{corev1.TaintNodeDiskPressure, corev1.TaintNodeMemoryPressure,
		corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable} {
		add(key, corev1.TaintEffectNoSchedule)
	}
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	return out
}

func fits(ds *appsv1.DaemonSet, n *corev1.Node) fit {
	spec := &ds.Spec.Template.Spec
	if spec.NodeName != "" && spec.NodeName != n.Name {
		return fit{}
	}
	if ok, err := nodeaffinity.NewRequiredNodeAffinity(spec.NodeSelector, spec.Affinity).Match(n); err != nil || !ok {
		return fit{}
	}
	f := fit{run: true, stay: true}
	tols := tolerations(spec)
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || tolerated(tols, t) {
			continue
		}
		f.run = false
		if t.Effect == corev1.TaintEffectNoExecute {
			f.stay = false
		}
	}
	return f
}

func tolerated(tols []corev1.Toleration, t *corev1.Taint) bool {
	return slices.ContainsFunc(tols, func(x corev1.Toleration) bool {
		if x.Effect != "" && x.Effect != t.Effect || x.Key != "" && x.Key != t.Key {
			return false
		}
		return x.Operator == corev1.TolerationOpExists || x.Value == t.Value
	})
}

// onNode pins a Pod to a node; the scheduler still does the binding.
func onNode(a *corev1.Affinity, node string) *corev1.Affinity {
	a = a.DeepCopy()
	if a == nil {
		a = &corev1.Affinity{}
	}
	if a.NodeAffinity == nil {
		a.NodeAffinity = &corev1.NodeAffinity{}
	}
	a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}
	return a
}

// nodeOf returns the node p is bound to, or meant for.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil ||
		p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// planPods first settles which nodes have a Pod at all, and only when that is so rolls on.
func planPods(o observed) plan {
	var p plan
	known := map[string]bool{}
	for _, n := range o.nodes {
		known[n.Name] = true
		o.planNode(n, &p)
	}
	for _, node := range slices.Sorted(maps.Keys(o.pods)) {
		if known[node] {
			continue
		}
		for _, pod := range o.pods[node] {
			if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod) // its node went before it was bound
			}
		}
	}
	if len(p.create)+len(p.remove) == 0 && o.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		o.roll(&p)
	}
	p.create, p.remove = p.create[:min(len(p.create), burst)], p.remove[:min(len(p.remove), burst)]
	return p
}

func (o observed) planNode(n *corev1.Node, p *plan) {
	f := fits(o.set, n)
	pods, exists := o.pods[n.Name]
	switch {
	case f.run && !exists:
		p.create = append(p.create, n.Name)
	case f.stay:
		running := o.replaceFinished(n.Name, pods, p)
		slices.SortFunc(running, oldestFirst)
		switch {
		case len(running) > 1 && o.surges():
			o.planPair(running, p)
		case len(running) > 1:
			p.remove = append(p.remove, running[1:]...)
		case len(running) == 0 && f.run && o.surges():
			p.create = append(p.create, n.Name)
		}
	default:
		for _, pod := range pods {
			if pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		}
	}
}

// replaceFinished deletes failed (with back-off) and succeeded Pods and returns the others.
func (o observed) replaceFinished(node string, pods []*corev1.Pod, p *plan) []*corev1.Pod {
	var running []*corev1.Pod
	for _, pod := range pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed:
			if wait := o.failed(node); wait > 0 {
				if p.again == 0 || wait < p.again {
					p.again = wait
				}
				continue
			}
			p.events = append(p.events, event{corev1.EventTypeWarning, "FailedDaemonPod",
				fmt.Sprintf("Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, node)})
			p.remove = append(p.remove, pod)
		case pod.Status.Phase == corev1.PodSucceeded:
			p.events = append(p.events, event{corev1.EventTypeNormal, "SucceededDaemonPod",
				fmt.Sprintf("Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, node)})
			p.remove = append(p.remove, pod)
		default:
			running = append(running, pod)
		}
	}
	return running
}

// planPair keeps the oldest old and the oldest new Pod of a node while surging, and drops the old
// one once it is not ready or the new one is available.
func (o observed) planPair(running []*corev1.Pod, p *plan) {
	var old, new *corev1.Pod
	for _, pod := range running {
		switch {
		case pod.Labels[history.HashLabel] == o.hash && new == nil:
			new = pod
		case pod.Labels[history.HashLabel] != o.hash && old == nil:
			old = pod
		default:
			p.remove = append(p.remove, pod)
		}
	}
	if old != nil && new != nil && (!workload.IsReady(old) || o.available(new)) {
		p.remove = append(p.remove, old)
	}
}

func oldestFirst(a, b *corev1.Pod) int {
	if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
		if a.Spec.NodeName != "" {
			return -1
		}
		return 1
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

func (o observed) available(p *corev1.Pod) bool {
	return p != nil && workload.IsAvailable(p, o.set.Spec.MinReadySeconds, o.now)
}

func (o observed) surges() bool {
	surge, _ := o.limits(1)
	return surge > 0
}

// limits resolves maxSurge and maxUnavailable for n nodes; both zero would never move.
func (o observed) limits(n int) (surge, unavailable int) {
	ru := o.set.Spec.UpdateStrategy.RollingUpdate
	if o.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || ru == nil {
		return 0, 0
	}
	surge, _ = intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxSurge, intstr.FromInt32(0)), n, true)
	unavailable, _ = intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxUnavailable, intstr.FromInt32(0)), n, true)
	if n > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// pair returns a node's old and new Pod; ok is false if there are several of a kind.
func (o observed) pair(node string) (old, new *corev1.Pod, ok bool) {
	for _, p := range o.pods[node] {
		switch {
		case p.DeletionTimestamp != nil:
		case p.Labels[history.HashLabel] == o.hash && new == nil:
			new = p
		case p.Labels[history.HashLabel] != o.hash && old == nil:
			old = p
		default:
			return nil, nil, false
		}
	}
	return old, new, true
}

// roll replaces old Pods by new ones within the limits.
func (o observed) roll(p *plan) {
	var nodes []string
	run := map[string]bool{}
	desired := 0
	for _, n := range o.nodes {
		run[n.Name] = fits(o.set, n).run
		if run[n.Name] {
			desired++
		}
		if run[n.Name] || len(o.pods[n.Name]) > 0 {
			nodes = append(nodes, n.Name)
		}
	}
	slices.Sort(nodes)
	surge, unavailable := o.limits(desired)
	if surge == 0 {
		o.rollInPlace(nodes, unavailable, p)
		return
	}
	var wait, candidates []string
	inFlight := 0
	for _, node := range nodes {
		old, new, ok := o.pair(node)
		switch {
		case !ok:
			inFlight++
		case old == nil:
		case new == nil && !run[node]:
			p.remove = append(p.remove, old)
		case new == nil && !o.available(old):
			wait = append(wait, node)
		case new == nil:
			candidates = append(candidates, node)
		case o.available(new):
			p.remove = append(p.remove, old)
		default:
			inFlight++
		}
	}
	room := min(max(0, surge-inFlight), len(candidates))
	p.create = append(append(p.create, wait...), candidates[:room]...)
}

func (o observed) rollInPlace(nodes []string, limit int, p *plan) {
	var candidates []*corev1.Pod
	down := 0
	for _, node := range nodes {
		old, new, ok := o.pair(node)
		switch {
		case !ok || (old == nil) == (new == nil):
			down++
		case new != nil:
			if !o.available(new) {
				down++
			}
		case !o.available(old):
			p.remove = append(p.remove, old)
			down++
		default:
			candidates = append(candidates, old)
		}
	}
	p.remove = append(p.remove, candidates[:min(max(0, limit-down), len(candidates))]...)
}

// planStatus counts nodes, not Pods.
func planStatus(o observed) appsv1.DaemonSetStatus {
	s := *o.set.Status.DeepCopy()
	s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.NumberMisscheduled = 0, 0, 0
	s.NumberReady, s.UpdatedNumberScheduled, s.NumberAvailable = 0, 0, 0
	for _, n := range o.nodes {
		pods := slices.Clone(o.pods[n.Name])
		if !fits(o.set, n).run {
			if len(pods) > 0 {
				s.NumberMisscheduled++
			}
			continue
		}
		s.DesiredNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		p := slices.MinFunc(pods, oldestFirst)
		if workload.IsReady(p) {
			s.NumberReady++
		}
		if o.available(p) {
			s.NumberAvailable++
		}
		if p.Labels[history.HashLabel] == o.hash {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	return s
}
