package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/workload"
)

const (
	burst        = 500 // most Pods created or deleted by one reconcile
	maxUncounted = 500 // most UIDs in status.uncountedTerminatedPods
)

// streak is how many Pods in a row have failed, and when the last did.
type streak struct {
	failures int
	last     time.Time
}

// wait returns how long to hold back the next Pod: 10 s, doubling to 10 minutes.
func (s streak) wait(now time.Time) time.Duration {
	if s.failures == 0 {
		return 0
	}
	d := 10 * time.Second << min(s.failures-1, 6)
	return max(0, min(d, 10*time.Minute)-now.Sub(s.last))
}

// observed is everything a plan depends on.
type observed struct {
	job     *batchv1.Job
	pods    []*corev1.Pod // held by the Job, finished ones too
	settled bool          // the cache shows our own last writes
	streak  streak        // before this look
	now     time.Time
}

// plan is what one look leads to, in this order: the status is written, then accounted Pods lose
// their finalizer, then Pods are removed and created. A crash in between counts no Pod twice and
// none never.
type plan struct {
	status batchv1.JobStatus
	strip  []*corev1.Pod
	remove []*corev1.Pod
	create []int            // one Pod each; the completion index, or -1
	marks  map[int]failures // of a Job with a limit per index: what Pods to be created carry
	events []event
	streak streak
	again  time.Duration
}

type event struct{ kind, reason, message string }

// model is a Job being thought through.
type model struct {
	observed
	p           plan
	active      []*corev1.Pod
	terminating int32
	succeeded   int32
	failed      int32
	done        map[int]bool // completed indexes
	failPolicy  string       // why the Pod failure policy fails the Job, or empty
	index       *perIndex    // nil: no limit per index
}

func planJob(o observed) plan {
	m := &model{observed: o, p: plan{status: *o.job.Status.DeepCopy(), streak: o.streak}}
	if finished(o.job) {
		for _, p := range o.pods {
			if tracked(p) {
				m.p.strip = append(m.p.strip, p)
			}
		}
		return m.p
	}
	for _, p := range o.pods {
		if workload.IsActive(p) {
			m.active = append(m.active, p)
		}
		if workload.IsTerminating(p) {
			m.terminating++
		}
	}
	m.index = m.perIndexOf()
	m.account()
	s := &m.p.status
	suspended := o.job.Spec.Suspend != nil && *o.job.Spec.Suspend
	if s.StartTime == nil && !suspended {
		s.StartTime = &metav1.Time{Time: o.now}
	}
	m.decide()
	if target := m.target(); target != nil {
		m.finish(target)
	} else if o.settled && o.job.DeletionTimestamp == nil {
		m.manage(suspended)
	}
	m.counts()
	return m.p
}

func finished(j *batchv1.Job) bool {
	return has(j.Status, batchv1.JobComplete) || has(j.Status, batchv1.JobFailed)
}

func has(s batchv1.JobStatus, t batchv1.JobConditionType) bool {
	c := condition(&s, t)
	return c != nil && c.Status == corev1.ConditionTrue
}

func condition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// failedPod reports whether p counts as failed. A Pod being deleted does, for it may never say so,
// unless the Job replaces only Pods that have truly failed.
func failedPod(j *batchv1.Job, p *corev1.Pod) bool {
	switch {
	case p.Status.Phase == corev1.PodFailed:
		return true
	case p.DeletionTimestamp == nil || p.Status.Phase == corev1.PodSucceeded:
		return false
	case onlyFailed(j):
		return p.Status.Phase == corev1.PodPending
	}
	return true
}

func onlyFailed(j *batchv1.Job) bool {
	return j.Spec.PodFailurePolicy != nil || j.Spec.PodReplacementPolicy != nil && *j.Spec.PodReplacementPolicy == batchv1.Failed
}

// account moves finished Pods through status.uncountedTerminatedPods into the counters: a UID is
// listed there before its finalizer goes, and counted only after.
func (m *model) account() {
	s := &m.p.status
	if s.UncountedTerminatedPods == nil {
		s.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	u := s.UncountedTerminatedPods
	held := map[types.UID]bool{}
	for _, p := range m.pods {
		held[p.UID] = tracked(p)
	}
	settle := func(list []types.UID, counter *int32) []types.UID {
		return slices.DeleteFunc(list, func(uid types.UID) bool {
			if !held[uid] {
				*counter++
			}
			return !held[uid]
		})
	}
	u.Succeeded, u.Failed = settle(u.Succeeded, &s.Succeeded), settle(u.Failed, &s.Failed)
	limit := 0
	if indexed(m.job) {
		limit = int(*m.job.Spec.Completions)
		m.done = parseIndexes(s.CompletedIndexes, limit)
	}
	hold := m.job.DeletionTimestamp == nil && m.target() == nil
	var news []*corev1.Pod
	for _, p := range m.pods {
		if len(u.Succeeded)+len(u.Failed)+len(m.p.strip) >= maxUncounted {
			m.p.again = time.Millisecond
			break
		}
		if !tracked(p) || p.Status.Phase != corev1.PodSucceeded && !failedPod(m.job, p) || hold && m.index.holds(p) {
			continue
		}
		if m.accountPod(p, limit) {
			news = append(news, p)
		}
		m.p.strip = append(m.p.strip, p)
	}
	m.count(news)
}

// accountPod notes one finished Pod in the status and reports whether it is new there.
func (m *model) accountPod(p *corev1.Pod, limit int) bool {
	u, i := m.p.status.UncountedTerminatedPods, indexOf(p)
	if slices.Contains(u.Failed, p.UID) || slices.Contains(u.Succeeded, p.UID) {
		return false // listed as what it was when it was first seen to end
	}
	if p.Status.Phase == corev1.PodSucceeded {
		switch {
		case indexed(m.job):
			if i < 0 || i >= limit || m.done[i] {
				return false
			}
			m.done[i] = true
		default:
			u.Succeeded = append(u.Succeeded, p.UID)
		}
		return true
	}
	if indexed(m.job) && (i < 0 || i >= limit) {
		return false
	}
	counts, _, why := matchFailurePolicy(m.job.Spec.PodFailurePolicy, p)
	if why != "" {
		m.failPolicy = why
	}
	if counts {
		u.Failed = append(u.Failed, p.UID)
	}
	return counts
}

// count sums up, and extends the streak of failures with the newly finished Pods.
func (m *model) count(news []*corev1.Pod) {
	s := &m.p.status
	u := s.UncountedTerminatedPods
	m.succeeded = s.Succeeded + int32(len(u.Succeeded))
	m.failed = s.Failed + int32(len(u.Failed))
	if indexed(m.job) {
		s.CompletedIndexes = formatIndexes(m.done)
		m.succeeded = int32(len(m.done))
		s.Succeeded = m.succeeded
	}
	slices.SortFunc(news, func(a, b *corev1.Pod) int { return finishedAt(a).Compare(finishedAt(b)) })
	for _, p := range news {
		if p.Status.Phase == corev1.PodSucceeded {
			m.p.streak = streak{}
			continue
		}
		m.p.streak.failures++
		m.p.streak.last = finishedAt(p)
	}
}

// finishedAt is the best guess at when a Pod finished.
func finishedAt(p *corev1.Pod) time.Time {
	var last time.Time
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Terminated != nil && c.State.Terminated.FinishedAt.After(last) {
			last = c.State.Terminated.FinishedAt.Time
		}
	}
	if last.IsZero() {
		if c := workload.Condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse {
			last = c.LastTransitionTime.Time
		}
	}
	if last.IsZero() && p.DeletionTimestamp != nil {
		last = p.DeletionTimestamp.Time
		if p.DeletionGracePeriodSeconds != nil {
			last = last.Add(-time.Duration(*p.DeletionGracePeriodSeconds) * time.Second)
		}
	}
	if last.IsZero() {
		last = p.CreationTimestamp.Time
	}
	return last
}

// decide sets SuccessCriteriaMet or FailureTarget when the Job's fate is clear.
func (m *model) decide() {
	if m.target() != nil {
		return
	}
	spec := &m.job.Spec
	fail := func(reason, msg string) {
		m.setCondition(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, msg)
	}
	suspended := spec.Suspend != nil && *spec.Suspend
	switch {
	case m.failPolicy != "":
		fail(batchv1.JobReasonPodFailurePolicy, m.failPolicy)
	case spec.BackoffLimit != nil && (m.failed > *spec.BackoffLimit || m.restartedTooOften()):
		fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case spec.ActiveDeadlineSeconds != nil && !suspended && m.p.status.StartTime != nil:
		left := m.p.status.StartTime.Add(time.Duration(*spec.ActiveDeadlineSeconds) * time.Second).Sub(m.now)
		if left <= 0 {
			fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
			return
		}
		m.comeBack(left)
	}
	if reason, msg := m.index.verdict(m.job, len(m.done)); reason != "" && m.target() == nil {
		fail(reason, msg)
	}
	if m.target() == nil && indexed(m.job) {
		if rule := matchSuccessPolicy(spec.SuccessPolicy, int(*spec.Completions), m.done); rule != "" {
			m.setCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonSuccessPolicy, rule)
		}
	}
	if m.target() == nil && len(m.active) == 0 && m.complete() {
		m.setCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonCompletionsReached,
			"Reached expected number of succeeded pods")
	}
}

func (m *model) complete() bool {
	if m.job.Spec.Completions == nil {
		return m.succeeded > 0
	}
	return m.succeeded >= *m.job.Spec.Completions
}

// restartedTooOften applies the limit to containers restarted in place.
func (m *model) restartedTooOften() bool {
	if m.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := int32(0)
	for _, p := range m.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			n += c.RestartCount
		}
	}
	limit := *m.job.Spec.BackoffLimit
	return limit == 0 && n > 0 || limit > 0 && n >= limit
}

// target returns the condition that says how the Job will end, once that is clear.
func (m *model) target() *batchv1.JobCondition {
	for _, t := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget} {
		if c := condition(&m.p.status, t); c != nil && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// finish takes down what still runs; when no Pod is left to account for, the Job ends.
func (m *model) finish(target *batchv1.JobCondition) {
	if m.settled {
		m.p.remove = m.active[:min(len(m.active), burst)]
	}
	u := m.p.status.UncountedTerminatedPods
	if len(m.active) > 0 || m.terminating > 0 || len(u.Succeeded)+len(u.Failed) > 0 || slices.ContainsFunc(m.pods, tracked) {
		return
	}
	if target.Type == batchv1.JobFailureTarget {
		m.setCondition(batchv1.JobFailed, corev1.ConditionTrue, target.Reason, target.Message)
		m.tell(corev1.EventTypeWarning, target.Reason, target.Message)
		return
	}
	m.setCondition(batchv1.JobComplete, corev1.ConditionTrue, target.Reason, target.Message)
	m.p.status.CompletionTime = &metav1.Time{Time: m.now}
	m.tell(corev1.EventTypeNormal, "Completed", "Job completed")
}

// manage creates missing Pods and removes those too many.
func (m *model) manage(suspended bool) {
	if suspended {
		m.p.remove = m.active[:min(len(m.active), burst)]
		if m.setCondition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended") {
			m.tell(corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
		return
	}
	if condition(&m.p.status, batchv1.JobSuspended) != nil &&
		m.setCondition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed") {
		m.tell(corev1.EventTypeNormal, "Resumed", "Job resumed")
		m.p.status.StartTime = &metav1.Time{Time: m.now}
	}
	want := *m.job.Spec.Parallelism
	switch {
	case m.job.Spec.Completions != nil:
		want = max(0, min(want, *m.job.Spec.Completions-m.succeeded))
	case m.succeeded > 0:
		want = int32(len(m.active)) // a work queue that has begun to empty gets no new workers
	}
	if m.p.remove = m.surplus(int(want)); len(m.p.remove) > 0 {
		return
	}
	missing := int(want) - len(m.active)
	if onlyFailed(m.job) {
		missing -= int(m.terminating)
	}
	if missing <= 0 {
		return
	}
	if wait := m.p.streak.wait(m.now); wait > 0 && m.index == nil {
		m.comeBack(wait)
		return
	}
	m.p.create = m.freeIndexes(min(missing, burst))
}

// surplus picks the active Pods to remove: those with a wrong or doubled index, then the least
// advanced of those too many.
func (m *model) surplus(want int) []*corev1.Pod {
	var out, rest []*corev1.Pod
	taken := map[int]bool{}
	for _, p := range workload.DeletionOrder(m.active, nil, m.now) {
		rest = append([]*corev1.Pod{p}, rest...) // most advanced first
	}
	var keep []*corev1.Pod
	for _, p := range rest {
		i := indexOf(p)
		if indexed(m.job) && (i < 0 || i >= int(*m.job.Spec.Completions) || taken[i]) {
			out = append(out, p)
			continue
		}
		taken[i] = true
		keep = append(keep, p)
	}
	for n := len(keep) - 1; n >= want; n-- {
		out = append(out, keep[n])
	}
	return out[:min(len(out), burst)]
}

// freeIndexes returns n completion indexes that are neither done nor worked on; -1s for a Job
// without indexes.
func (m *model) freeIndexes(n int) []int {
	var out []int
	if !indexed(m.job) {
		return slices.Repeat([]int{-1}, n)
	}
	busy := map[int]bool{}
	for _, p := range m.active {
		busy[indexOf(p)] = true
	}
	for i := 0; i < int(*m.job.Spec.Completions) && len(out) < n; i++ {
		if busy[i] || m.done[i] || m.index != nil && !m.mayTry(i) {
			continue
		}
		out = append(out, i)
	}
	return out
}

func (m *model) counts() {
	s := &m.p.status
	s.Active = int32(len(m.active))
	ready := int32(len(workload.Filter(m.active, workload.IsReady)))
	s.Ready, s.Terminating = &ready, &m.terminating
}

func (m *model) comeBack(d time.Duration) {
	if m.p.again == 0 || d < m.p.again {
		m.p.again = d
	}
}

func (m *model) tell(kind, reason, msg string) {
	m.p.events = append(m.p.events, event{kind, reason, msg})
}

func (m *model) setCondition(t batchv1.JobConditionType, st corev1.ConditionStatus, reason, msg string) bool {
	now := metav1.NewTime(m.now)
	c := batchv1.JobCondition{Type: t, Status: st, Reason: reason, Message: msg, LastProbeTime: now, LastTransitionTime: now}
	if old := condition(&m.p.status, t); old != nil {
		if old.Status == st && old.Reason == reason && old.Message == msg {
			return false
		}
		*old = c
		return true
	}
	m.p.status.Conditions = append(m.p.status.Conditions, c)
	return true
}
