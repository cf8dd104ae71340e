package batch

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

// Limits of indexed jobs.
const (
	maxParallelism         = 100000
	maxFailedIndexes       = 100000
	manyCompletions        = 100000
	maxParallelismForMany  = 10000
	maxFailedForMany       = 10000
	maxFailureRules        = 20
	maxExitCodes           = 255
	maxConditionPatterns   = 20
	maxSuccessRules        = 20
	maxManagedByLength     = 63
	maxSuccessIndexesBytes = 64 * 1024
)

func optional(l *check.List, p *field.Path, n *int32) {
	if n != nil {
		l.Nonnegative(p, int64(*n))
	}
}

func validateJob(j *batchv1.Job) field.ErrorList {
	l := &check.List{}
	checkGeneratedSelector(l, j)
	checkSelected(l, j)
	checkNameFits(l, j)
	return l.Errors
}

// checkSelected checks a job's spec, and that it selects its own pods.
func checkSelected(l *check.List, j *batchv1.Job) {
	if j.Spec.Selector == nil {
		l.Required(specPath.Child("selector"), "")
	} else {
		l.Selector(specPath.Child("selector"), j.Spec.Selector)
	}
	checkJobSpec(l, specPath, &j.Spec)
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(labels.Set(j.Spec.Template.Labels)) {
		l.Invalid(specPath.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`")
	}
}

// checkNameFits checks that the last index still fits into a host name.
func checkNameFits(l *check.List, j *batchv1.Job) {
	if !indexed(&j.Spec) || j.Spec.Completions == nil || *j.Spec.Completions <= 0 {
		return
	}
	host := fmt.Sprintf("%s-%d", j.Name, *j.Spec.Completions-1)
	if msgs := validation.IsDNS1123Label(host); len(msgs) > 0 {
		l.Invalid(field.NewPath("metadata", "name"), j.Name, fmt.Sprintf("will not able to create pod with invalid DNS label: %s", host))
	}
}

func checkGeneratedSelector(l *check.List, j *batchv1.Job) {
	if j.Spec.ManualSelector != nil && *j.Spec.ManualSelector || j.Spec.Selector == nil {
		return
	}
	at := field.NewPath("spec", "template", "metadata", "labels")
	for key, want := range check.Sorted(map[string]string{batchv1.ControllerUidLabel: string(j.UID), batchv1.JobNameLabel: j.Name}) {
		if got := j.Spec.Template.Labels[key]; got != want {
			l.Invalid(at.Key(key), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", want))
		}
	}
	want := &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(j.UID)}}
	if metav1.FormatLabelSelector(want) != metav1.FormatLabelSelector(j.Spec.Selector) {
		l.Invalid(specPath.Child("selector"), j.Spec.Selector, "`selector` not auto-generated")
	}
}

func indexed(s *batchv1.JobSpec) bool {
	return s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
}

func checkJobSpec(l *check.List, p *field.Path, s *batchv1.JobSpec) {
	optional(l, p.Child("parallelism"), s.Parallelism)
	optional(l, p.Child("completions"), s.Completions)
	if s.ActiveDeadlineSeconds != nil {
		l.Nonnegative(p.Child("activeDeadlineSeconds"), *s.ActiveDeadlineSeconds)
	}
	optional(l, p.Child("backoffLimit"), s.BackoffLimit)
	optional(l, p.Child("ttlSecondsAfterFinished"), s.TTLSecondsAfterFinished)
	optional(l, p.Child("backoffLimitPerIndex"), s.BackoffLimitPerIndex)
	optional(l, p.Child("maxFailedIndexes"), s.MaxFailedIndexes)
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		l.Required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
	}
	if s.ManagedBy != nil {
		l.Add(validation.IsDomainPrefixedPath(p.Child("managedBy"), *s.ManagedBy))
		if len(*s.ManagedBy) > maxManagedByLength {
			l.TooLong(p.Child("managedBy"), maxManagedByLength)
		}
	}
	if s.CompletionMode != nil {
		check.OneOf(l, p.Child("completionMode"), *s.CompletionMode, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)
	}
	if indexed(s) {
		checkIndexed(l, p, s)
	} else if s.CompletionMode == nil || *s.CompletionMode == batchv1.NonIndexedCompletion {
		const needs = "requires indexed completion mode"
		if s.BackoffLimitPerIndex != nil {
			l.Invalid(p.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, needs)
		}
		if s.MaxFailedIndexes != nil {
			l.Invalid(p.Child("maxFailedIndexes"), *s.MaxFailedIndexes, needs)
		}
	}
	if s.PodFailurePolicy != nil {
		checkFailurePolicy(l, p.Child("podFailurePolicy", "rules"), s)
	}
	if s.SuccessPolicy != nil {
		if !indexed(s) {
			l.Invalid(p.Child("successPolicy"), *s.SuccessPolicy, "requires indexed completion mode")
		} else {
			checkSuccessPolicy(l, p.Child("successPolicy", "rules"), s)
		}
	}
	if r := s.PodReplacementPolicy; r != nil {
		if s.PodFailurePolicy != nil {
			check.OneOf(l, p.Child("podReplacementPolicy"), *r, batchv1.Failed)
		} else {
			check.OneOf(l, p.Child("podReplacementPolicy"), *r, batchv1.Failed, batchv1.TerminatingOrFailed)
		}
	}
	podspec.CheckPodTemplate(l, p.Child("template"), &s.Template)
	checkJobRestart(l, p.Child("template", "spec", "restartPolicy"), s)
}

func checkJobRestart(l *check.List, p *field.Path, s *batchv1.JobSpec) {
	switch policy := s.Template.Spec.RestartPolicy; policy {
	case corev1.RestartPolicyAlways, "":
		l.Required(p, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))
	case corev1.RestartPolicyOnFailure:
		if s.PodFailurePolicy != nil {
			l.Invalid(p, policy, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))
		}
	default:
		check.OneOf(l, p, policy, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	}
}

func checkIndexed(l *check.List, p *field.Path, s *batchv1.JobSpec) {
	if s.Completions == nil {
		l.Required(p.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion))
	}
	if n := s.Parallelism; n != nil && *n > maxParallelism {
		l.Invalid(p.Child("parallelism"), *n, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxParallelism, batchv1.IndexedCompletion))
	}
	failed := s.MaxFailedIndexes
	if failed != nil && s.Completions != nil && *failed > *s.Completions {
		l.Invalid(p.Child("maxFailedIndexes"), *failed, "must be less than or equal to completions")
	}
	if failed != nil && *failed > maxFailedIndexes {
		l.Invalid(p.Child("maxFailedIndexes"), *failed, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes))
	}
	if s.Completions == nil || *s.Completions <= manyCompletions || s.BackoffLimitPerIndex == nil {
		return
	}
	const text = "must be less than or equal to %d when completions are above %d and used with backoff limit per index"
	if failed == nil {
		l.Required(p.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions))
	} else if *failed > maxFailedForMany {
		l.Invalid(p.Child("maxFailedIndexes"), *failed, fmt.Sprintf(text, maxFailedForMany, manyCompletions))
	}
	if n := s.Parallelism; n != nil && *n > maxParallelismForMany {
		l.Invalid(p.Child("parallelism"), *n, fmt.Sprintf(text, maxParallelismForMany, manyCompletions))
	}
}

func checkFailurePolicy(l *check.List, p *field.Path, s *batchv1.JobSpec) {
	rules := s.PodFailurePolicy.Rules
	if len(rules) > maxFailureRules {
		l.TooMany(p, len(rules), maxFailureRules)
	}
	names := sets.Set[string]{}
	for _, list := range [][]corev1.Container{s.Template.Spec.Containers, s.Template.Spec.InitContainers} {
		for _, c := range list {
			names.Insert(c.Name)
		}
	}
	actions := []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}
	for i := range rules {
		r, at := &rules[i], p.Index(i)
		switch {
		case r.Action == "":
			l.Required(at.Child("action"), fmt.Sprintf("valid values: %q", actions))
		case r.Action != batchv1.PodFailurePolicyActionFailIndex:
			check.OneOf(l, at.Child("action"), r.Action, actions...)
		case s.BackoffLimitPerIndex == nil:
			l.Invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set")
		}
		if r.OnExitCodes != nil {
			checkExitCodes(l, at.Child("onExitCodes"), r.OnExitCodes, names)
		}
		checkPatterns(l, at.Child("onPodConditions"), r.OnPodConditions)
		switch {
		case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
			l.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported")
		case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
			l.Invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required")
		}
	}
}

func checkExitCodes(l *check.List, p *field.Path, r *batchv1.PodFailurePolicyOnExitCodesRequirement, names sets.Set[string]) {
	operators := []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}
	if r.Operator == "" {
		l.Required(p.Child("operator"), fmt.Sprintf("valid values: %q", operators))
	} else {
		check.OneOf(l, p.Child("operator"), r.Operator, operators...)
	}
	if r.ContainerName != nil && !names.Has(*r.ContainerName) {
		l.Invalid(p.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template")
	}
	values, ordered, seen := p.Child("values"), true, sets.Set[int32]{}
	if len(r.Values) == 0 {
		l.Invalid(values, r.Values, "at least one value is required")
	} else if len(r.Values) > maxExitCodes {
		l.TooMany(values, len(r.Values), maxExitCodes)
	}
	for i, v := range r.Values {
		if v == 0 && r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
			l.Invalid(values.Index(i), v, "must not be 0 for the In operator")
		}
		if seen.Has(v) {
			l.Duplicate(values.Index(i), v)
		}
		seen.Insert(v)
		ordered = ordered && (i == 0 || r.Values[i-1] <= v)
	}
	if !ordered {
		l.Invalid(values, r.Values, "must be ordered")
	}
}

func checkPatterns(l *check.List, p *field.Path, patterns []batchv1.PodFailurePolicyOnPodConditionsPattern) {
	if len(patterns) > maxConditionPatterns {
		l.TooMany(p, len(patterns), maxConditionPatterns)
	}
	statuses := []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
	for i, c := range patterns {
		l.QualifiedName(p.Index(i).Child("type"), string(c.Type))
		if c.Status == "" {
			l.Required(p.Index(i).Child("status"), fmt.Sprintf("valid values: %q", statuses))
		} else {
			check.OneOf(l, p.Index(i).Child("status"), c.Status, statuses...)
		}
	}
}

func checkSuccessPolicy(l *check.List, p *field.Path, s *batchv1.JobSpec) {
	rules := s.SuccessPolicy.Rules
	if len(rules) == 0 {
		l.Required(p, "at least one rules must be specified when the successPolicy is specified")
	}
	if len(rules) > maxSuccessRules {
		l.TooMany(p, len(rules), maxSuccessRules)
	}
	completions := core.Replicas(s.Completions)
	for i := range rules {
		r, at, total := &rules[i], p.Index(i), int32(0)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			l.Required(at, "at least one of succeededCount or succeededIndexes must be specified")
		}
		if r.SucceededIndexes != nil {
			path := at.Child("succeededIndexes")
			if len(*r.SucceededIndexes) > maxSuccessIndexesBytes {
				l.TooLong(path, maxSuccessIndexesBytes)
			}
			var err error
			if total, err = countIndexes(*r.SucceededIndexes, completions); err != nil {
				l.Invalid(path, *r.SucceededIndexes, fmt.Sprintf("error parsing succeededIndexes: %s", err))
			}
		}
		if n := r.SucceededCount; n != nil {
			path := at.Child("succeededCount")
			l.Nonnegative(path, int64(*n))
			if *n > completions {
				l.Invalid(path, *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions))
			}
			if r.SucceededIndexes != nil && *n > total {
				l.Invalid(path, *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total))
			}
		}
	}
}
