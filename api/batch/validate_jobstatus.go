package batch

import (
	"fmt"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// validateJobStatus checks a status that a job controller writes. Most rules count only where the fields they are
// about change, so that a status that breaks one can still be written in other parts.
func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	l, s, was, at := &check.List{}, &j.Status, &old.Status, field.NewPath("status")
	l.Nonnegative(at.Child("active"), int64(s.Active))
	l.Nonnegative(at.Child("succeeded"), int64(s.Succeeded))
	l.Nonnegative(at.Child("failed"), int64(s.Failed))
	optional(l, at.Child("ready"), s.Ready)
	optional(l, at.Child("terminating"), s.Terminating)
	checkUncounted(l, at.Child("uncountedTerminatedPods"), s.UncountedTerminatedPods)

	isTrue := func(t batchv1.JobConditionType) bool { return jobCondition(j, t) }
	turned := func(t batchv1.JobConditionType) bool { return isTrue(t) != jobCondition(old, t) }
	complete, failed, met := isTrue(batchv1.JobComplete), isTrue(batchv1.JobFailed), isTrue(batchv1.JobSuccessCriteriaMet)
	finished, completes, fails := complete || failed, turned(batchv1.JobComplete), turned(batchv1.JobFailed)
	finishes := finished != (jobCondition(old, batchv1.JobComplete) || jobCondition(old, batchv1.JobFailed))
	started, ended := api.Changed(s.StartTime, was.StartTime), api.Changed(s.CompletionTime, was.CompletionTime)
	done, lost := s.CompletedIndexes != was.CompletedIndexes, api.Changed(s.FailedIndexes, was.FailedIndexes)
	count, limit := j.Spec.Completions, j.Spec.BackoffLimitPerIndex
	suspended := j.Spec.Suspend != nil && *j.Spec.Suspend
	failedIndexes, indexErr := "", error(nil)
	if s.FailedIndexes != nil {
		failedIndexes = *s.FailedIndexes
	}
	indexes := func(when bool, name, text string) {
		if when && count != nil {
			if _, err := parseIndexes(text, *count); err != nil {
				l.Invalid(at.Child(name), text, fmt.Sprintf("error parsing %s: %s", name, err))
			}
		}
	}
	if count != nil && s.FailedIndexes != nil {
		indexErr = overlap(s.CompletedIndexes, failedIndexes, *count)
	}
	refuse, omit := refuseStatus(l), field.OmitValueType{}
	refuse((completes || fails) && complete && failed, "conditions", omit, "cannot set Complete=True and Failed=true conditions")
	refuse((completes || turned(batchv1.JobFailureTarget)) && complete && isTrue(batchv1.JobFailureTarget), "conditions", omit, "cannot set Complete=True and FailureTarget=true conditions")
	refuse((completes || ended) && s.CompletionTime != nil && !complete, "completionTime", s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
	if (completes || ended) && s.CompletionTime == nil && complete {
		l.Required(at.Child("completionTime"), "completionTime is required for Complete jobs")
	}
	refuse((started || ended) && s.StartTime != nil && s.CompletionTime != nil && s.CompletionTime.Before(s.StartTime), "completionTime", s.CompletionTime, "must be equal to or after `startTime`")
	refuse((fails || lost) && failed && !isTrue(batchv1.JobFailureTarget), "conditions", omit, "cannot set Failed=True condition without the FailureTarget=true condition")
	refuse((completes || turned(batchv1.JobSuccessCriteriaMet)) && complete && !met, "conditions", omit, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	refuse((finishes || s.Active != was.Active) && s.Active > 0 && finished, "active", s.Active, "active>0 is invalid for finished job")
	if (finishes || started) && s.StartTime == nil && finished && !(suspended && count != nil && *count == 0) {
		l.Required(at.Child("startTime"), "startTime is required for finished job")
	}
	u := s.UncountedTerminatedPods
	refuse((finishes || api.Changed(u, was.UncountedTerminatedPods)) && finished && u != nil && len(u.Failed)+len(u.Succeeded) > 0, "uncountedTerminatedPods", u, "must be empty for finished job")
	indexes(done, "completedIndexes", s.CompletedIndexes)
	indexes(lost && limit != nil && s.FailedIndexes != nil, "failedIndexes", failedIndexes)
	refuse(done && s.CompletedIndexes != "" && !indexed(&j.Spec), "completedIndexes", s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode")
	refuse(lost && limit == nil && s.FailedIndexes != nil, "failedIndexes", failedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
	if (done || lost) && indexErr != nil {
		l.Invalid(at.Child("failedIndexes"), failedIndexes, indexErr.Error())
	}
	refuse((finishes || api.Changed(s.Terminating, was.Terminating)) && finished && s.Terminating != nil && *s.Terminating > 0, "terminating", s.Terminating, "terminating>0 is invalid for finished job")
	if (api.Changed(s.Ready, was.Ready) || s.Active != was.Active) && s.Ready != nil && *s.Ready > s.Active {
		l.Invalid(at.Child("ready"), *s.Ready, "cannot set more ready pods than active")
	}
	refuse(met && failed, "conditions", omit, "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	refuse(met && isTrue(batchv1.JobFailureTarget), "conditions", omit, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	refuse(j.Spec.SuccessPolicy != nil && !met && complete, "conditions", omit, "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
	checkJobMoves(l, j, old)
	return l.Errors
}

// refuseStatus finds fault with a field of the status where something is so.
func refuseStatus(l *check.List) func(when bool, name string, value any, detail string) {
	return func(when bool, name string, value any, detail string) {
		if when {
			l.Invalid(field.NewPath("status", name), value, detail)
		}
	}
}

// checkJobMoves checks what a status may not go back on.
func checkJobMoves(l *check.List, j, old *batchv1.Job) {
	s, was := &j.Status, &old.Status
	refuse, omit, met := refuseStatus(l), field.OmitValueType{}, jobCondition(j, batchv1.JobSuccessCriteriaMet)
	started := api.Changed(s.StartTime, was.StartTime)
	suspended := j.Spec.Suspend != nil && *j.Spec.Suspend
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		refuse(jobCondition(old, t) && !jobCondition(j, t), "conditions", omit, fmt.Sprintf("cannot disable the terminal %s=True condition", t))
	}
	refuse(s.Failed < was.Failed, "failed", s.Failed, "cannot decrease the failed counter")
	scales := indexed(&j.Spec) && !api.Changed(j.Spec.Completions, j.Spec.Parallelism)
	refuse(!scales && s.Succeeded < was.Succeeded, "succeeded", s.Succeeded, "cannot decrease the succeeded counter")
	refuse(s.CompletionTime != nil && was.CompletionTime != nil && api.Changed(s.CompletionTime, was.CompletionTime), "completionTime", s.CompletionTime, "field is immutable")
	resumes := jobCondition(old, batchv1.JobSuspended) && conditionIs(j, batchv1.JobSuspended, corev1.ConditionFalse)
	refuse(started && !resumes && was.StartTime != nil && !suspended, "startTime", s.StartTime, "field is immutable for unsuspended job once set")
	refuse(jobCondition(old, batchv1.JobSuccessCriteriaMet) && !met, "conditions", omit, "cannot disable the SuccessCriteriaMet=True condition")
	refuse(jobCondition(old, batchv1.JobComplete) && !jobCondition(old, batchv1.JobSuccessCriteriaMet) && met, "conditions", omit, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
}

func checkUncounted(l *check.List, p *field.Path, u *batchv1.UncountedTerminatedPods) {
	if u == nil {
		return
	}
	seen := map[types.UID]bool{}
	for _, part := range []struct {
		name string
		uids []types.UID
	}{{"succeeded", u.Succeeded}, {"failed", u.Failed}} {
		for i, uid := range part.uids {
			if at := p.Child(part.name).Index(i); uid == "" {
				l.Invalid(at, uid, "must not be empty")
			} else if seen[uid] {
				l.Duplicate(at, uid)
			}
			seen[uid] = true
		}
	}
}

// span is a range of indexes, both ends included.
type span struct{ first, last int }

// parseIndexes reads "1,3-5": increasing and below count.
func parseIndexes(text string, count int32) ([]span, error) {
	var list []span
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		s, err := parseSpan(part, count)
		if err != nil {
			return nil, err
		}
		if n := len(list); n > 0 && list[n-1].last >= s.first {
			return nil, fmt.Errorf("non-increasing order, previous: %d, current: %d", list[n-1].last, s.first)
		}
		list = append(list, s)
	}
	return list, nil
}

func parseSpan(text string, count int32) (span, error) {
	ends := strings.Split(text, "-")
	if len(ends) > 2 {
		return span{}, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", text)
	}
	var n [2]int
	for i, end := range ends {
		var err error
		if n[i], err = strconv.Atoi(end); err != nil {
			return span{}, fmt.Errorf("cannot convert string to integer for index: %q", end)
		}
		if n[i] >= int(count) {
			return span{}, fmt.Errorf("too large index: %q", end)
		}
	}
	if len(ends) == 1 {
		return span{n[0], n[0]}, nil
	}
	if n[0] >= n[1] {
		return span{}, fmt.Errorf("non-increasing order, previous: %d, current: %d", n[0], n[1])
	}
	return span{n[0], n[1]}, nil
}

// overlap is an error if an index both completed and failed. What is no list of indexes is told by parseIndexes.
func overlap(completed, failed string, count int32) error {
	a, err1 := parseIndexes(completed, count)
	b, err2 := parseIndexes(failed, count)
	for err1 == nil && err2 == nil && len(a) > 0 && len(b) > 0 {
		if a[0].first <= b[0].last && b[0].first <= a[0].last {
			return fmt.Errorf("failedIndexes and completedIndexes overlap at index: %d", max(a[0].first, b[0].first))
		}
		if a[0].first <= b[0].first {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return nil
}
