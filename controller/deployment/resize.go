package deployment

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// resized reports whether the Deployment was scaled since its sets were last sized.
func (m *model) resized() bool {
	for _, rs := range active(m.all()) {
		if n, ok := sizeAnnotation(rs, desiredAnnotation); ok && n != *m.d.Spec.Replicas {
			return true
		}
	}
	return false
}

// resize follows a change of spec.replicas (or anything while paused) without moving the rollout:
// one active set takes the whole size, several share the difference in proportion.
func (m *model) resize() plan {
	m.noteRevision()
	want := *m.d.Spec.Replicas
	act := active(m.all())
	switch {
	case len(act) == 1:
		m.scale(act[0], want)
		if noteSize(m.d, act[0]) { // else a set scaled by hand would look resized for ever
			m.touch(act[0], update)
		}
	case len(act) == 0 && m.current != nil:
		m.scale(m.current, want)
	case len(act) == 0 && len(m.old) > 0:
		m.scale(slices.MaxFunc(m.old, byAge), want)
	case m.saturated():
		for _, rs := range active(m.old) {
			m.scale(rs, 0)
		}
	case m.d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType:
		m.share(act)
	}
	if _, undo := rollbackTarget(m.d); m.d.Spec.Paused && !undo {
		m.trim()
	}
	return m.finish(m.status())
}

func (m *model) saturated() bool {
	if m.current == nil {
		return false
	}
	want := *m.d.Spec.Replicas
	n, ok := sizeAnnotation(m.current, desiredAnnotation)
	return ok && n == want && *m.current.Spec.Replicas == want && m.current.Status.AvailableReplicas == want
}

// share spreads the difference to the greatest allowed size over sets, biggest first, newest first
// when growing and oldest first when shrinking; rounding leftovers go to the first.
func (m *model) share(sets []*appsv1.ReplicaSet) {
	limit := int32(0)
	if *m.d.Spec.Replicas > 0 {
		limit = *m.d.Spec.Replicas + maxSurge(m.d)
	}
	left := limit - sum(sets, specReplicas)
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		if c := cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas); c != 0 {
			return c
		}
		if left > 0 {
			return byAge(b, a)
		}
		return byAge(a, b)
	})
	sizes := make([]int32, len(sets))
	for i, rs := range sets {
		sizes[i] = *rs.Spec.Replicas
		if left == 0 {
			continue
		}
		part := m.fraction(rs)
		if left > 0 {
			part = min(part, left)
		} else {
			part = max(part, left)
		}
		sizes[i] += part
		left -= part
	}
	sizes[0] = max(0, sizes[0]+left)
	for i, rs := range sets {
		m.scale(rs, sizes[i])
		if noteSize(m.d, rs) {
			m.touch(rs, update)
		}
	}
}

// fraction is the share of rs in the difference, by its share of the size before.
func (m *model) fraction(rs *appsv1.ReplicaSet) int32 {
	have := *rs.Spec.Replicas
	if *m.d.Spec.Replicas == 0 {
		return -have
	}
	before, ok := sizeAnnotation(rs, maxAnnotation)
	if !ok || before == 0 {
		if before = m.d.Status.Replicas; before == 0 {
			return 0
		}
	}
	limit := *m.d.Spec.Replicas + maxSurge(m.d)
	return int32(math.Round(float64(have)*float64(limit)/float64(before))) - have
}

// rollbackTarget reads the request to undo; 0 is the revision before.
func rollbackTarget(d *appsv1.Deployment) (int64, bool) {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedRollbackTo], 10, 64)
	return n, err == nil
}

// rollback puts the template of revision to back and withdraws the request.
func (m *model) rollback(to int64) plan {
	m.noteRevision()
	delete(m.d.Annotations, appsv1.DeprecatedRollbackTo)
	p := plan{deployment: m.d, rollback: true, warning: true, event: "DeploymentRollbackRevisionNotFound"}
	if to == 0 {
		if to = lastRevision(m.all()); to == 0 {
			p.message = "Unable to find last revision."
			return p
		}
	}
	i := slices.IndexFunc(m.all(), func(rs *appsv1.ReplicaSet) bool {
		r, ok := revisionOf(rs)
		return ok && r == to
	})
	if i < 0 {
		p.message = "Unable to find the revision to rollback to."
		return p
	}
	rs := m.all()[i]
	if sameTemplate(&m.d.Spec.Template, &rs.Spec.Template) {
		p.event = "DeploymentRollbackTemplateUnchanged"
		p.message = fmt.Sprintf("The rollback revision contains the same template as current deployment %q", m.d.Name)
		return p
	}
	m.d.Spec.Template = *unhashed(&rs.Spec.Template).DeepCopy()
	for k := range m.d.Annotations {
		if !slices.Contains(ownBooks, k) {
			delete(m.d.Annotations, k)
		}
	}
	for k, v := range rs.Annotations {
		if !slices.Contains(ownBooks, k) {
			m.d.Annotations[k] = v
		}
	}
	p.warning, p.event = false, "DeploymentRollback"
	p.message = fmt.Sprintf("Rolled back deployment %q to revision %d", m.d.Name, to)
	return p
}

func eventType(warning bool) string {
	if warning {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}
