package batch

import (
	"fmt"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// countIndexes counts the indexes of a list such as "1,3-5,7", which must be
// in order and below completions.
func countIndexes(list string, completions int32) (int32, error) {
	if list == "" {
		return 0, nil
	}
	var total int32
	last := int64(-1)
	for _, part := range strings.Split(list, ",") {
		ends := strings.Split(part, "-")
		if len(ends) > 2 {
			return 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", part)
		}
		first, err := parseIndex(ends[0], completions, last)
		if err != nil {
			return 0, err
		}
		last = first
		if len(ends) == 2 {
			if last, err = parseIndex(ends[1], completions, first); err != nil {
				return 0, err
			}
		}
		total += int32(last - first + 1)
	}
	return total, nil
}

func parseIndex(s string, completions int32, after int64) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	switch {
	case err != nil:
		return 0, fmt.Errorf("cannot convert string to integer for index: %q", s)
	case n >= int64(completions):
		return 0, fmt.Errorf("too large index: %q", s)
	case n <= after:
		return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", after, n)
	}
	return n, nil
}

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	l, now, was := &check.List{}, &j.Spec, &old.Spec
	checkSelected(l, j)
	checkCompletions(l, now, was)
	l.Immutable(specPath.Child("selector"), now.Selector, was.Selector)
	checkTemplateChange(l, j, old)
	l.Immutable(specPath.Child("completionMode"), now.CompletionMode, was.CompletionMode)
	l.Immutable(specPath.Child("podFailurePolicy"), now.PodFailurePolicy, was.PodFailurePolicy)
	l.Immutable(specPath.Child("backoffLimitPerIndex"), now.BackoffLimitPerIndex, was.BackoffLimitPerIndex)
	l.Immutable(specPath.Child("managedBy"), now.ManagedBy, was.ManagedBy)
	l.Immutable(specPath.Child("successPolicy"), now.SuccessPolicy, was.SuccessPolicy)
	checkNameFits(l, j)
	return l.Errors
}

// checkCompletions lets an indexed job scale, its parallelism along with it.
func checkCompletions(l *check.List, now, was *batchv1.JobSpec) {
	at := specPath.Child("completions")
	switch {
	case !indexed(now):
		l.Immutable(at, now.Completions, was.Completions)
	case now.Completions == nil || !api.Changed(now.Completions, was.Completions):
	case now.Parallelism == nil || *now.Completions != *now.Parallelism:
		l.Invalid(at, now.Completions, "can only be modified in tandem with spec.parallelism")
	}
}

// checkTemplateChange lets only a suspended job that runs nothing change where
// its pods go and what they ask for.
func checkTemplateChange(l *check.List, j, old *batchv1.Job) {
	now, was := &j.Spec.Template, old.Spec.Template.DeepCopy()
	if idle(old) {
		var affinity *corev1.NodeAffinity
		if now.Spec.Affinity != nil {
			affinity = now.Spec.Affinity.NodeAffinity
		}
		if was.Spec.Affinity == nil && now.Spec.Affinity != nil {
			was.Spec.Affinity = &corev1.Affinity{}
		}
		if was.Spec.Affinity != nil {
			was.Spec.Affinity.NodeAffinity = affinity
			if now.Spec.Affinity == nil && *was.Spec.Affinity == (corev1.Affinity{}) {
				was.Spec.Affinity = nil
			}
		}
		was.Spec.NodeSelector, was.Spec.Tolerations = now.Spec.NodeSelector, now.Spec.Tolerations
		was.Spec.SchedulingGates = now.Spec.SchedulingGates
		takeResources(was.Spec.Containers, now.Spec.Containers)
		takeResources(was.Spec.InitContainers, now.Spec.InitContainers)
		l.Immutable(specPath.Child("template", "spec"), now.Spec, was.Spec)
		return
	}
	if api.Changed(*now, *was) {
		l.Immutable(specPath.Child("template"), *now, *was)
	}
}

func takeResources(to, from []corev1.Container) {
	for i := range to {
		if i < len(from) {
			to[i].Resources = from[i].Resources
		}
	}
}

// idle tells whether a job is suspended and none of its pods is left.
func idle(j *batchv1.Job) bool {
	if j.Spec.Suspend == nil || !*j.Spec.Suspend {
		return false
	}
	return j.Status.Active == 0 && (j.Status.StartTime == nil || jobCondition(j, batchv1.JobSuspended))
}
