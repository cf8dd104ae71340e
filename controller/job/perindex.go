package job

import (
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// perIndex is a Job with backoffLimitPerIndex being thought through. How often
// an index has failed is written on its Pods, so the last failed Pod of an
// index keeps its finalizer until its replacement carries the number on.
type perIndex struct {
	limit  int32
	failed map[int]bool        // indexes given up
	last   map[int]*corev1.Pod // of each index to be tried again, the Pod to be replaced
}

// failures are how often an index has failed, and how often more that did not count.
type failures struct{ counted, ignored int }

func failuresOf(p *corev1.Pod) failures {
	number := func(key string) int {
		n, err := strconv.ParseInt(p.Annotations[key], 10, 32)
		if err != nil || n < 0 {
			return 0 // a Pod somebody has tampered with
		}
		return int(n)
	}
	return failures{number(batchv1.JobIndexFailureCountAnnotation), number(batchv1.JobIndexIgnoredFailureCountAnnotation)}
}

func (f failures) all() int { return f.counted + f.ignored }

// mark writes the failures on a new Pod.
func (f failures) mark(p *corev1.Pod) {
	p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(f.counted)
	if f.ignored > 0 {
		p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(f.ignored)
	}
}

// perIndexOf looks at a Job's Pods by index; nil if it has no limit per index.
func (m *model) perIndexOf() *perIndex {
	if m.job.Spec.BackoffLimitPerIndex == nil || !indexed(m.job) {
		return nil
	}
	x := &perIndex{limit: *m.job.Spec.BackoffLimitPerIndex, last: map[int]*corev1.Pod{}}
	limit := int(*m.job.Spec.Completions)
	if s := m.job.Status.FailedIndexes; s != nil {
		x.failed = parseIndexes(*s, limit)
	} else {
		x.failed = map[int]bool{}
	}
	settled := parseIndexes(m.job.Status.CompletedIndexes, limit) // done, or worked on
	for _, p := range m.active {
		settled[indexOf(p)] = true
	}
	var failed []*corev1.Pod
	for _, p := range m.pods {
		i := indexOf(p)
		switch {
		case i < 0 || i >= limit || !tracked(p):
		case p.Status.Phase == corev1.PodSucceeded:
			settled[i] = true
		case failedPod(m.job, p):
			failed = append(failed, p)
			counts, failsIndex, _ := matchFailurePolicy(m.job.Spec.PodFailurePolicy, p)
			if failsIndex || counts && failuresOf(p).counted >= int(x.limit) {
				x.failed[i] = true
			}
		}
	}
	for _, p := range failed {
		i := indexOf(p)
		if settled[i] || x.failed[i] {
			continue
		}
		if old := x.last[i]; old == nil || failuresOf(old).all() <= failuresOf(p).all() && !finishedAt(p).Before(finishedAt(old)) {
			x.last[i] = p
		}
	}
	text := formatIndexes(x.failed)
	m.p.status.FailedIndexes = &text
	return x
}

// holds reports whether p is to stay until it is replaced.
func (x *perIndex) holds(p *corev1.Pod) bool { return x != nil && x.last[indexOf(p)] == p }

// verdict says whether the failed indexes fail the Job.
func (x *perIndex) verdict(j *batchv1.Job, done int) (reason, message string) {
	switch {
	case x == nil || len(x.failed) == 0:
	case j.Spec.MaxFailedIndexes != nil && len(x.failed) > int(*j.Spec.MaxFailedIndexes):
		return batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes"
	case len(x.failed)+done >= int(*j.Spec.Completions):
		return batchv1.JobReasonFailedIndexes, "Job has failed indexes"
	}
	return "", ""
}

// mayTry reports whether an index gets a Pod now, and notes what that is to carry.
func (m *model) mayTry(i int) bool {
	var f failures
	if p := m.index.last[i]; p != nil {
		f = failuresOf(p)
		if wait := (streak{f.all() + 1, finishedAt(p)}).wait(m.now); wait > 0 {
			m.comeBack(wait)
			return false
		}
		if counts, _, _ := matchFailurePolicy(m.job.Spec.PodFailurePolicy, p); counts {
			f.counted++
		} else {
			f.ignored++
		}
	}
	if m.p.marks == nil {
		m.p.marks = map[int]failures{}
	}
	m.p.marks[i] = f
	return !m.index.failed[i]
}
