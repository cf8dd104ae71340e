package deployment

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-project/skiff/controller/workload"
)

// observed is everything a plan depends on. Nothing in it is changed.
type observed struct {
	deployment *appsv1.Deployment
	sets       []*appsv1.ReplicaSet // those the Deployment holds
	// oldPods reports whether a Pod that has not finished belongs to a set other than the one with
	// this UID. Only Recreate asks.
	oldPods func(except string) bool
	now     time.Time
}

// change is one write to a ReplicaSet, with the event to send once it has succeeded.
type change struct {
	set   *appsv1.ReplicaSet // as it should be
	verb  verb
	event string // text of a ScalingReplicaSet event, or empty
}

type verb int

const (
	create verb = iota
	update
	remove
)

// plan is what one look at a Deployment leads to: changes in this order, then the status.
type plan struct {
	changes []change
	// deployment carries the wanted status and annotations (and spec and annotations if rollback).
	deployment *appsv1.Deployment
	rollback   bool   // write the Deployment's spec: it goes back to an earlier template
	event      string // reason of an event on the Deployment, or empty
	message    string
	warning    bool
}

// model is a rollout being thought through: copies of the objects, and which of them changed.
type model struct {
	observed
	d       *appsv1.Deployment
	current *appsv1.ReplicaSet // with the Deployment's template; nil if there is none
	old     []*appsv1.ReplicaSet
	size    map[*appsv1.ReplicaSet]int32 // replicas before any change
	verbs   map[*appsv1.ReplicaSet]verb
	order   []*appsv1.ReplicaSet
}

// planRollout decides the next step of o.deployment.
func planRollout(o observed) plan {
	m := newModel(o)
	if m.d.DeletionTimestamp != nil {
		m.noteRevision()
		return m.finish(m.status())
	}
	m.notePause()
	if m.d.Spec.Paused {
		return m.resize()
	}
	if to, ok := rollbackTarget(m.d); ok {
		return m.rollback(to)
	}
	m.noteRevision()
	if m.resized() {
		return m.resize()
	}
	if m.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		m.recreate()
	} else {
		m.roll()
	}
	return m.finish(m.progress(m.status()))
}

func newModel(o observed) *model {
	m := &model{observed: o, d: o.deployment.DeepCopy(),
		size: map[*appsv1.ReplicaSet]int32{}, verbs: map[*appsv1.ReplicaSet]verb{}}
	for _, rs := range o.sets {
		c := rs.DeepCopy()
		m.old = append(m.old, c)
		m.size[c] = *c.Spec.Replicas
	}
	slices.SortFunc(m.old, byAge)
	for i, rs := range m.old {
		if sameTemplate(&rs.Spec.Template, &m.d.Spec.Template) {
			m.current = rs
			m.old = slices.Delete(m.old, i, i+1)
			break
		}
	}
	return m
}

func byAge(a, b *appsv1.ReplicaSet) int {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c
	}
	return cmp.Compare(a.Name, b.Name)
}

func (m *model) all() []*appsv1.ReplicaSet {
	if m.current == nil {
		return m.old
	}
	return append(slices.Clone(m.old), m.current)
}

func (m *model) touch(rs *appsv1.ReplicaSet, v verb) {
	if _, ok := m.verbs[rs]; !ok {
		m.verbs[rs] = v
		m.order = append(m.order, rs)
	}
}

// notePause sets or clears the paused marker in the Progressing condition.
func (m *model) notePause() {
	c := condition(m.d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(m.d) || (c != nil && c.Reason == "ProgressDeadlineExceeded") {
		return
	}
	marked := c != nil && c.Reason == "DeploymentPaused"
	switch {
	case m.d.Spec.Paused && !marked:
		m.set(&m.d.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !m.d.Spec.Paused && marked:
		m.set(&m.d.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

// noteRevision makes the current set the newest revision and copies what it inherits.
func (m *model) noteRevision() {
	if m.current == nil {
		return
	}
	changed := keepBooks(m.d, m.current, maxRevision(m.old)+1)
	if m.current.Spec.MinReadySeconds != m.d.Spec.MinReadySeconds {
		m.current.Spec.MinReadySeconds = m.d.Spec.MinReadySeconds
		changed = true
	}
	if changed {
		m.touch(m.current, update)
	}
	m.setRevision(m.current.Annotations[revisionAnnotation])
	if hasDeadline(m.d) && condition(m.d.Status, appsv1.DeploymentProgressing) == nil {
		m.set(&m.d.Status, appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet",
			fmt.Sprintf("Found new replica set %q", m.current.Name))
	}
}

func (m *model) setRevision(rev string) {
	if m.d.Annotations == nil {
		m.d.Annotations = map[string]string{}
	}
	m.d.Annotations[revisionAnnotation] = rev
}

// start adds the set for the current template, if there is none.
func (m *model) start() {
	if m.current != nil {
		return
	}
	hash := workload.TemplateHash(&m.d.Spec.Template, m.d.Status.CollisionCount)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:      setName(m.d.Name, hash),
			Namespace: m.d.Namespace,
			OwnerReferences: []metav1.OwnerReference{
				*metav1.NewControllerRef(m.d, appsv1.SchemeGroupVersion.WithKind("Deployment"))},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        new(int32),
			MinReadySeconds: m.d.Spec.MinReadySeconds,
			Selector:        m.d.Spec.Selector.DeepCopy(),
			Template:        *m.d.Spec.Template.DeepCopy(),
		},
	}
	if rs.Spec.Template.Labels == nil {
		rs.Spec.Template.Labels = map[string]string{}
	}
	rs.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	rs.Labels = rs.Spec.Template.Labels
	metav1.AddLabelToSelector(rs.Spec.Selector, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	rev := maxRevision(m.old) + 1
	keepBooks(m.d, rs, rev)
	noteSize(m.d, rs)
	m.current = rs
	*rs.Spec.Replicas = m.roomFor()
	m.size[rs] = 0
	m.touch(rs, create)
	m.setRevision(strconv.FormatInt(rev, 10))
	if hasDeadline(m.d) {
		m.set(&m.d.Status, appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated",
			fmt.Sprintf("Created new replica set %q", rs.Name))
	}
}

func setName(deployment, hash string) string {
	longest := validation.DNS1123SubdomainMaxLength - 1 - len(hash)
	return deployment[:min(len(deployment), longest)] + "-" + hash
}

// roomFor returns the size the current set may grow to now.
func (m *model) roomFor() int32 {
	want := *m.d.Spec.Replicas
	if m.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want
	}
	have, now := *m.current.Spec.Replicas, sum(m.all(), specReplicas)
	limit := want + maxSurge(m.d)
	if now >= limit {
		return have
	}
	return have + min(limit-now, want-have)
}

// scale sets rs's size and reports whether it changed.
func (m *model) scale(rs *appsv1.ReplicaSet, n int32) bool {
	if *rs.Spec.Replicas == n {
		return false
	}
	*rs.Spec.Replicas = n
	noteSize(m.d, rs)
	m.touch(rs, update)
	return true
}

// roll moves Pods from the old sets to the current one within the fenceposts.
func (m *model) roll() {
	m.start()
	want := *m.d.Spec.Replicas
	switch have := *m.current.Spec.Replicas; {
	case have > want:
		m.scale(m.current, want)
		return
	case have < want:
		if m.scale(m.current, m.roomFor()) {
			return
		}
	}
	if m.shrinkOld() {
		return
	}
	m.cleanUp()
}

// shrinkOld takes down old Pods, first those that are not available, as far as availability allows.
func (m *model) shrinkOld() bool {
	old := active(m.old)
	if len(old) == 0 {
		return false
	}
	minAvailable := *m.d.Spec.Replicas - maxUnavailable(m.d)
	notYet := *m.current.Spec.Replicas - m.current.Status.AvailableReplicas
	spare := sum(m.all(), specReplicas) - minAvailable - notYet
	if spare <= 0 {
		return false
	}
	changed := false
	for _, rs := range old {
		n := min(spare, *rs.Spec.Replicas-rs.Status.AvailableReplicas)
		if n > 0 && m.scale(rs, *rs.Spec.Replicas-n) {
			spare -= n
			changed = true
		}
	}
	free := sum(append(slices.Clone(old), m.current), availableReplicas) - minAvailable
	for _, rs := range old {
		n := min(free, *rs.Spec.Replicas)
		if n > 0 && m.scale(rs, *rs.Spec.Replicas-n) {
			free -= n
			changed = true
		}
	}
	return changed
}

// recreate takes every old Pod down before the first new one comes up.
func (m *model) recreate() {
	shrunk := false
	for _, rs := range active(m.old) {
		shrunk = m.scale(rs, 0) || shrunk
	}
	if shrunk || sum(m.old, statusReplicas) > 0 {
		return
	}
	uid := ""
	if m.current != nil {
		uid = string(m.current.UID)
	}
	if m.oldPods(uid) {
		return
	}
	m.start()
	m.scale(m.current, *m.d.Spec.Replicas)
	m.cleanUp()
}

// cleanUp removes old sets beyond the history limit once the rollout is complete.
func (m *model) cleanUp() {
	if complete(m.d, &m.d.Status) {
		m.trim()
	}
}

func (m *model) trim() {
	limit := m.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	var alive []*appsv1.ReplicaSet
	for _, rs := range m.old {
		if rs.DeletionTimestamp == nil {
			alive = append(alive, rs)
		}
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int {
		ra, ok1 := revisionOf(a)
		rb, ok2 := revisionOf(b)
		if !ok1 || !ok2 || ra == rb {
			return byAge(a, b)
		}
		return cmp.Compare(ra, rb)
	})
	for _, rs := range alive[:max(0, len(alive)-int(*limit))] {
		if rs.Status.Replicas == 0 && *rs.Spec.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			m.touch(rs, remove)
		}
	}
}

func (m *model) finish(status appsv1.DeploymentStatus) plan {
	m.d.Status = status
	p := plan{deployment: m.d}
	for _, rs := range m.order {
		c := change{set: rs, verb: m.verbs[rs]}
		if was, is := m.size[rs], *rs.Spec.Replicas; c.verb != remove && was != is {
			way := "up"
			if is < was {
				way = "down"
			}
			c.event = fmt.Sprintf("Scaled %s replica set %s from %d to %d", way, rs.Name, was, is)
		}
		p.changes = append(p.changes, c)
	}
	return p
}

func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	var out []*appsv1.ReplicaSet
	for _, rs := range sets {
		if *rs.Spec.Replicas > 0 {
			out = append(out, rs)
		}
	}
	return out
}

func specReplicas(rs *appsv1.ReplicaSet) int32      { return *rs.Spec.Replicas }
func statusReplicas(rs *appsv1.ReplicaSet) int32    { return rs.Status.Replicas }
func readyReplicas(rs *appsv1.ReplicaSet) int32     { return rs.Status.ReadyReplicas }
func availableReplicas(rs *appsv1.ReplicaSet) int32 { return rs.Status.AvailableReplicas }

func sum(sets []*appsv1.ReplicaSet, of func(*appsv1.ReplicaSet) int32) int32 {
	n := int32(0)
	for _, rs := range sets {
		n += of(rs)
	}
	return n
}
