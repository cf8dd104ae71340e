package deployment

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Annotations by which a rollout keeps its books on Deployments and ReplicaSets.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"

	// maxHistory bounds the revision-history annotation, in bytes.
	maxHistory = 2000
)

// ownBooks are annotations that are never copied between a Deployment and its ReplicaSets.
var ownBooks = []string{
	corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation,
	desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo,
}

// revisionOf returns the set's revision, 0 if it has none; ok is false if it is no number.
func revisionOf(rs *appsv1.ReplicaSet) (rev int64, ok bool) {
	v, has := rs.Annotations[revisionAnnotation]
	if !has {
		return 0, true
	}
	rev, err := strconv.ParseInt(v, 10, 64)
	return rev, err == nil
}

func maxRevision(sets []*appsv1.ReplicaSet) int64 {
	top := int64(0)
	for _, rs := range sets {
		if r, ok := revisionOf(rs); ok {
			top = max(top, r)
		}
	}
	return top
}

// lastRevision returns the second-highest revision: what an undo without a number goes back to.
func lastRevision(sets []*appsv1.ReplicaSet) int64 {
	var revs []int64
	for _, rs := range sets {
		if r, ok := revisionOf(rs); ok {
			revs = append(revs, r)
		}
	}
	slices.Sort(revs)
	if len(revs) < 2 {
		return 0
	}
	return revs[len(revs)-2]
}

// keepBooks brings rs's annotations up to date with d at revision rev and reports a change.
func keepBooks(d *appsv1.Deployment, rs *appsv1.ReplicaSet, rev int64) bool {
	changed := false
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range d.Annotations {
		if old, ok := rs.Annotations[k]; slices.Contains(ownBooks, k) || (ok && old == v) {
			continue
		}
		rs.Annotations[k] = v
		changed = true
	}
	was, had := rs.Annotations[revisionAnnotation]
	old, ok := revisionOf(rs)
	if !ok && was != "" {
		return changed // somebody's own revision: leave it
	}
	if old >= rev {
		return changed
	}
	rs.Annotations[revisionAnnotation] = strconv.FormatInt(rev, 10)
	if had {
		rs.Annotations[historyAnnotation] = addHistory(rs.Annotations[historyAnnotation], was)
	}
	return true
}

// addHistory appends rev to the list and drops the oldest entries that no longer fit.
func addHistory(list, rev string) string {
	if list == "" {
		return rev
	}
	revs := append(strings.Split(list, ","), rev)
	for len(revs) > 1 && len(strings.Join(revs, ",")) > maxHistory {
		revs = revs[1:]
	}
	return strings.Join(revs, ",")
}

// noteSize writes the wanted and the greatest number of replicas on rs, and reports a change.
func noteSize(d *appsv1.Deployment, rs *appsv1.ReplicaSet) bool {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	want := map[string]string{
		desiredAnnotation: strconv.Itoa(int(*d.Spec.Replicas)),
		maxAnnotation:     strconv.Itoa(int(*d.Spec.Replicas + maxSurge(d))),
	}
	changed := false
	for k, v := range want {
		changed = changed || rs.Annotations[k] != v
		rs.Annotations[k] = v
	}
	return changed
}

func sizeAnnotation(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseUint(rs.Annotations[key], 10, 31)
	return int32(n), err == nil
}

// sameTemplate compares Pod templates without the hash label.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return equality.Semantic.DeepEqual(unhashed(a), unhashed(b))
}

func unhashed(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	c := *t
	if _, ok := t.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; ok {
		c.Labels = maps.Clone(t.Labels)
		delete(c.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	}
	return &c
}

// fenceposts resolves maxSurge (rounded up) and maxUnavailable (rounded down); both zero would
// never move, so one Pod may then be unavailable.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	ru := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || ru == nil {
		return 0, 0
	}
	n := int(*d.Spec.Replicas)
	s, err1 := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxSurge, intstr.FromInt32(0)), n, true)
	u, err2 := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxUnavailable, intstr.FromInt32(0)), n, false)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), int32(u)
}

func maxSurge(d *appsv1.Deployment) int32 {
	s, _ := fenceposts(d)
	return s
}

func maxUnavailable(d *appsv1.Deployment) int32 {
	_, u := fenceposts(d)
	return min(u, *d.Spec.Replicas)
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}
