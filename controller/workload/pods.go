// Package workload holds what the controllers that own Pods share: readiness and availability,
// the order in which Pods are given up, adoption and release by controller reference, Pods made
// from a template, expectations against stale caches, and template hashes. Everything except
// PodControl and Expectations is a pure function.
package workload

import (
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IsActive reports whether p counts as a replica: not finished and not being deleted.
func IsActive(p *corev1.Pod) bool { return !IsFinished(p) && p.DeletionTimestamp == nil }

// IsFinished reports whether p has succeeded or failed.
func IsFinished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// IsTerminating reports whether p is being deleted and has not finished yet.
func IsTerminating(p *corev1.Pod) bool { return !IsFinished(p) && p.DeletionTimestamp != nil }

// Condition returns p's condition of type t, or nil.
func Condition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// IsReady reports whether p's Ready condition is True.
func IsReady(p *corev1.Pod) bool {
	c := Condition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// IsAvailable reports whether p has been ready for minReady seconds at now.
func IsAvailable(p *corev1.Pod, minReady int32, now time.Time) bool {
	if !IsReady(p) {
		return false
	}
	if minReady == 0 {
		return true
	}
	since := Condition(p, corev1.PodReady).LastTransitionTime
	return !since.IsZero() && !since.Add(time.Duration(minReady)*time.Second).After(now)
}

// NextAvailable returns how long after now the next ready Pod becomes available; 0 if none will.
func NextAvailable(pods []*corev1.Pod, minReady int32, now time.Time) time.Duration {
	var next time.Duration
	for _, p := range pods {
		if minReady <= 0 || !IsReady(p) || IsAvailable(p, minReady, now) {
			continue
		}
		since := Condition(p, corev1.PodReady).LastTransitionTime
		d := max(since.Add(time.Duration(minReady)*time.Second).Sub(now), time.Millisecond)
		if next == 0 || d < next {
			next = d
		}
	}
	return next
}

// Filter returns the pods for which keep is true.
func Filter(pods []*corev1.Pod, keep func(*corev1.Pod) bool) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range pods {
		if keep(p) {
			out = append(out, p)
		}
	}
	return out
}

// DeletionOrder sorts pods so that those to give up first come first, by upstream's rules:
// unscheduled, then pending, then not ready, then lower deletion cost, then more related Pods on
// the node, then ready or created more recently (in powers of two of age), then more restarts.
// rank is the number of related active Pods per node name; nil ranks nothing.
func DeletionOrder(pods []*corev1.Pod, rank map[string]int, now time.Time) []*corev1.Pod {
	out := slices.Clone(pods)
	slices.SortStableFunc(out, func(a, b *corev1.Pod) int {
		for _, by := range []func() int{
			func() int { return falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != "") },
			func() int { return phaseOrder(a) - phaseOrder(b) },
			func() int { return falseFirst(IsReady(a), IsReady(b)) },
			func() int { return int(deletionCost(a)) - int(deletionCost(b)) },
			func() int { return rank[b.Spec.NodeName] - rank[a.Spec.NodeName] },
			func() int {
				if !IsReady(a) {
					return 0
				}
				return youngerFirst(a, b, [2]time.Time{readySince(a), readySince(b)}, now)
			},
			func() int { return restarts(b, false) - restarts(a, false) },
			func() int { return restarts(b, true) - restarts(a, true) },
			func() int {
				return youngerFirst(a, b, [2]time.Time{a.CreationTimestamp.Time, b.CreationTimestamp.Time}, now)
			},
		} {
			if c := by(); c != 0 {
				return c
			}
		}
		return 0
	})
	return out
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func phaseOrder(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	}
	return 0
}

func deletionCost(p *corev1.Pod) int32 {
	v := p.Annotations[corev1.PodDeletionCost]
	if v == "" || (len(v) > 1 && (v[0] == '+' || v[0] == '0')) {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func readySince(p *corev1.Pod) time.Time {
	if c := Condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// youngerFirst compares ages in powers of two, so that Pods of about the same age are given up in
// an order that looks random but is stable: by UID.
func youngerFirst(a, b *corev1.Pod, t [2]time.Time, now time.Time) int {
	switch {
	case t[0].Equal(t[1]):
		return 0
	case t[0].IsZero():
		return -1
	case t[1].IsZero():
		return 1
	}
	if d := ageClass(t[0], now) - ageClass(t[1], now); d != 0 {
		return d
	}
	if a.UID < b.UID {
		return -1
	}
	return 1
}

func ageClass(t, now time.Time) int {
	d := now.Sub(t)
	if d <= 0 {
		return -1
	}
	return int(math.Log2(float64(d)))
}

func restarts(p *corev1.Pod, sidecars bool) int {
	n := int32(0)
	if !sidecars {
		for i := range p.Status.ContainerStatuses {
			n = max(n, p.Status.ContainerStatuses[i].RestartCount)
		}
		return int(n)
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		for j := range p.Status.InitContainerStatuses {
			if p.Status.InitContainerStatuses[j].Name == c.Name {
				n = max(n, p.Status.InitContainerStatuses[j].RestartCount)
			}
		}
	}
	return int(n)
}

// SetCondition sets c in status, keeping the transition time while the status value is the same,
// and reports whether anything changed.
func SetCondition(status *corev1.PodStatus, c corev1.PodCondition, now time.Time) bool {
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message &&
			old.ObservedGeneration == c.ObservedGeneration {
			return false
		}
		c.LastTransitionTime = old.LastTransitionTime
		if old.Status != c.Status {
			c.LastTransitionTime = metav1.NewTime(now)
		}
		c.LastProbeTime = old.LastProbeTime
		*old = c
		return true
	}
	c.LastTransitionTime = metav1.NewTime(now)
	status.Conditions = append(status.Conditions, c)
	return true
}
