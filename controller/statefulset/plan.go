package statefulset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/history"
	"github.com/skiff-project/skiff/controller/workload"
)

// observed is everything a plan depends on.
type observed struct {
	set             *appsv1.StatefulSet
	pods            []*corev1.Pod // held by the set
	claim           func(name string) *corev1.PersistentVolumeClaim
	current, update *appsv1.ControllerRevision
	currentTemplate *corev1.PodTemplateSpec
	collisions      int32
	now             time.Time
}

type verb int

const (
	createClaim verb = iota
	updateClaim
	createPod
	updatePod
	deletePod
)

func (v verb) String() string {
	return [...]string{"create claim", "update claim", "create pod", "update pod", "delete pod"}[v]
}

// op is one write; pod is the Pod it is for.
type op struct {
	verb  verb
	pod   *corev1.Pod
	claim *corev1.PersistentVolumeClaim
}

// plan is what one look leads to. Ops of a parallel set are independent of each other except for
// the order within one Pod; those of an ordered set are at most one Pod's.
type plan struct {
	ops    []op
	status appsv1.StatefulSetStatus
}

func revisionOf(p *corev1.Pod) string { return p.Labels[history.HashLabel] }

func created(p *corev1.Pod) bool { return p.UID != "" }

func (o observed) available(p *corev1.Pod) bool {
	return created(p) && p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning &&
		workload.IsAvailable(p, o.set.Spec.MinReadySeconds, o.now)
}

// planSet decides the next step of a set: first every ordinal gets its Pod, from the lowest; then
// what is too much goes, from the highest; then old revisions are replaced, from the highest.
func planSet(o observed) plan {
	replicas, condemned := o.sort()
	p := plan{status: o.status()}
	if o.set.DeletionTimestamp == nil {
		ordered := o.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
		done := o.fill(replicas, ordered, &p) && o.shrink(replicas, condemned, ordered, &p)
		if done && o.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
			o.roll(replicas, ordered, &p)
		}
	}
	n := *o.set.Spec.Replicas
	if s := &p.status; s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	return p
}

// sort puts Pods at their ordinals, makes those that are missing, and lists the others from the
// highest ordinal down.
func (o observed) sort() (replicas, condemned []*corev1.Pod) {
	replicas = make([]*corev1.Pod, *o.set.Spec.Replicas)
	for _, p := range o.pods {
		_, n := ordinal(p.Name)
		switch {
		case inRange(o.set, n):
			replicas[n-start(o.set)] = p
		case n >= 0:
			condemned = append(condemned, p)
		}
	}
	for i := range replicas {
		if replicas[i] == nil {
			replicas[i] = o.make(i)
		}
	}
	slices.SortFunc(condemned, func(a, b *corev1.Pod) int { return byOrdinal(b, a) })
	return replicas, condemned
}

// make returns a new Pod for the i-th replica, of the revision that place should have now.
func (o observed) make(i int) *corev1.Pod {
	n := start(o.set) + i
	old := false
	if s := o.set.Spec.UpdateStrategy; s.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		if s.RollingUpdate == nil || s.RollingUpdate.Partition == nil {
			old = i < int(o.set.Status.CurrentReplicas)
		} else {
			old = i < int(*s.RollingUpdate.Partition)
		}
	}
	if old {
		return newPod(o.set, o.currentTemplate, o.current.Name, n)
	}
	return newPod(o.set, &o.set.Spec.Template, o.update.Name, n)
}

// claimOps makes the claims of p that are missing; false if one is being deleted.
func (o observed) claimOps(p *corev1.Pod, ops *[]op) bool {
	_, n := ordinal(p.Name)
	for _, c := range claims(o.set, n) {
		switch have := o.claim(c.Name); {
		case have == nil:
			if w := retain(o.set, p, n, c); w != nil {
				c = w
			}
			*ops = append(*ops, op{createClaim, p, c})
		case have.DeletionTimestamp != nil:
			return false
		}
	}
	return true
}

// retainOps brings the owners of p's claims in line with the retention policy.
func (o observed) retainOps(p *corev1.Pod, ops *[]op) {
	_, n := ordinal(p.Name)
	for _, c := range claims(o.set, n) {
		if have := o.claim(c.Name); have != nil {
			if w := retain(o.set, p, n, have); w != nil {
				*ops = append(*ops, op{updateClaim, p, w})
			}
		}
	}
}

// fill gives every ordinal its Pod. In an ordered set it stops at the first that is not available
// and returns false.
func (o observed) fill(replicas []*corev1.Pod, ordered bool, p *plan) bool {
	for i, pod := range replicas {
		switch {
		case workload.IsFinished(pod):
			if pod.DeletionTimestamp == nil {
				p.ops = append(p.ops, op{verb: deletePod, pod: pod})
			}
		case !created(pod):
			if o.claimOps(pod, &p.ops) {
				p.ops = append(p.ops, op{verb: createPod, pod: pod})
			}
		default:
			if pod.Status.Phase == corev1.PodPending {
				o.claimOps(pod, &p.ops)
			}
			if ordered && !o.available(pod) {
				return false
			}
			o.retainOps(pod, &p.ops)
			n := start(o.set) + i
			if !matches(o.set, pod, n) {
				pod = pod.DeepCopy()
				identify(o.set, pod, n)
				mount(o.set, pod, n)
				p.ops = append(p.ops, op{verb: updatePod, pod: pod})
			}
			continue
		}
		if ordered {
			return false
		}
	}
	return true
}

// shrink deletes the Pods beyond the wanted number, in an ordered set one at a time, and none while
// another Pod is unavailable, unless that one is itself the next to go.
func (o observed) shrink(replicas, condemned []*corev1.Pod, ordered bool, p *plan) bool {
	for _, pod := range condemned {
		o.retainOps(pod, &p.ops)
	}
	var sick *corev1.Pod
	upwards := slices.Clone(condemned)
	slices.Reverse(upwards)
	for _, pod := range slices.Concat(replicas, upwards) {
		if !o.available(pod) {
			sick = pod
			break
		}
	}
	for _, pod := range condemned {
		if pod.DeletionTimestamp != nil {
			if ordered {
				return false
			}
			continue
		}
		if ordered && !o.available(pod) && pod != sick {
			return false
		}
		p.ops = append(p.ops, op{verb: deletePod, pod: pod})
		if ordered {
			return false
		}
	}
	return true
}

// roll deletes Pods of older revisions, from the highest ordinal down to the partition, as many as
// maxUnavailable (default 1) allows.
func (o observed) roll(replicas []*corev1.Pod, ordered bool, p *plan) {
	partition, limit := 0, 1
	if ru := o.set.Spec.UpdateStrategy.RollingUpdate; ru != nil {
		if ru.Partition != nil {
			partition = int(*ru.Partition)
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxUnavailable, intstr.FromInt32(1)), len(replicas), false)
		if err == nil {
			limit = max(n, 1)
		}
	}
	for _, pod := range replicas {
		if !o.available(pod) {
			limit--
		}
	}
	drop := func(pod *corev1.Pod) {
		p.ops = append(p.ops, op{verb: deletePod, pod: pod})
		p.status.CurrentReplicas--
	}
	for i := len(replicas) - 1; i >= partition; i-- {
		pod := replicas[i]
		if !created(pod) || pod.DeletionTimestamp != nil || revisionOf(pod) == o.update.Name {
			continue
		}
		switch {
		case !ordered && !o.available(pod): // it serves nobody: replacing it costs nothing
			drop(pod)
		case limit > 0:
			drop(pod)
			limit--
		}
	}
}

// status counts the Pods as they are.
func (o observed) status() appsv1.StatefulSetStatus {
	s := appsv1.StatefulSetStatus{ObservedGeneration: o.set.Generation, CurrentRevision: o.current.Name,
		UpdateRevision: o.update.Name, CollisionCount: &o.collisions, Conditions: o.set.Status.Conditions}
	for _, p := range o.pods {
		if p.Status.Phase != "" {
			s.Replicas++
			if p.DeletionTimestamp == nil {
				if revisionOf(p) == o.current.Name {
					s.CurrentReplicas++
				}
				if revisionOf(p) == o.update.Name {
					s.UpdatedReplicas++
				}
			}
		}
		if p.Status.Phase == corev1.PodRunning && workload.IsReady(p) {
			s.ReadyReplicas++
			if workload.IsAvailable(p, o.set.Spec.MinReadySeconds, o.now) {
				s.AvailableReplicas++
			}
		}
	}
	return s
}
