package batch

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A job without labels of its own has those of its pods, the generated ones included.
func TestJobTakesItsPodsLabels(t *testing.T) {
	job := &batchv1.Job{}
	job.Name, job.UID = "sum", "1-2-3"
	defaultJob(job)
	jobResource().Strategy.PrepareForCreate(t.Context(), job)
	for _, labels := range []map[string]string{job.Labels, job.Spec.Template.Labels} {
		if labels[batchv1.JobNameLabel] != "sum" || labels[batchv1.ControllerUidLabel] != "1-2-3" {
			t.Errorf("labels %v", labels)
		}
	}
	own := &batchv1.Job{}
	own.Name, own.Labels = "own", map[string]string{"team": "a"}
	defaultJob(own)
	jobResource().Strategy.PrepareForCreate(t.Context(), own)
	if len(own.Labels) != 1 || own.Labels["team"] != "a" {
		t.Errorf("labels of its own became %v", own.Labels)
	}
}

func TestStatusOfJob(t *testing.T) {
	one, two, text := int32(1), int32(2), func(s string) *string { return &s }
	is := func(types ...batchv1.JobConditionType) (list []batchv1.JobCondition) {
		for _, c := range types {
			list = append(list, batchv1.JobCondition{Type: c, Status: corev1.ConditionTrue})
		}
		return list
	}
	start, end := metav1.Unix(100, 0), metav1.Unix(200, 0)
	done := is(batchv1.JobSuccessCriteriaMet, batchv1.JobComplete)
	indexed := batchv1.IndexedCompletion
	many := batchv1.JobSpec{CompletionMode: &indexed, Completions: ptr(int32(10)), BackoffLimitPerIndex: &one}
	for name, tc := range map[string]struct {
		spec     batchv1.JobSpec
		now, old batchv1.JobStatus
		want     string
	}{
		"complete":            {now: batchv1.JobStatus{StartTime: &start, CompletionTime: &end, Conditions: done}},
		"failed":              {now: batchv1.JobStatus{StartTime: &start, Conditions: is(batchv1.JobFailureTarget, batchv1.JobFailed)}},
		"untold before":       {now: batchv1.JobStatus{StartTime: &start, CompletionTime: &end, Conditions: is(batchv1.JobComplete)}, want: "without the SuccessCriteriaMet=true"},
		"complete, no times":  {now: batchv1.JobStatus{Conditions: done}, want: "completionTime is required"},
		"still active":        {now: batchv1.JobStatus{StartTime: &start, CompletionTime: &end, Conditions: done, Active: 1}, want: "active>0 is invalid"},
		"before it began":     {now: batchv1.JobStatus{StartTime: &end, CompletionTime: &start, Conditions: done}, want: "equal to or after"},
		"old sins are let be": {now: batchv1.JobStatus{Active: 1, Conditions: done}, old: batchv1.JobStatus{Active: 1, Conditions: done}},
		"not complete again":  {old: batchv1.JobStatus{Conditions: done}, want: "cannot disable the terminal Complete=True"},
		"more ready":          {now: batchv1.JobStatus{Ready: &two, Active: 1}, want: "more ready pods than active"},
		"fewer failed":        {now: batchv1.JobStatus{Failed: 1}, old: batchv1.JobStatus{Failed: 2}, want: "cannot decrease the failed counter"},
		"indexes":             {spec: many, now: batchv1.JobStatus{CompletedIndexes: "0,2-4", FailedIndexes: text("1,6-9")}},
		"indexes without":     {now: batchv1.JobStatus{CompletedIndexes: "0"}, want: "non-indexed completion mode"},
		"indexes too large":   {spec: many, now: batchv1.JobStatus{CompletedIndexes: "3,10"}, want: `too large index: "10"`},
		"indexes backwards":   {spec: many, now: batchv1.JobStatus{CompletedIndexes: "3,2"}, want: "non-increasing order, previous: 3, current: 2"},
		"indexes of three":    {spec: many, now: batchv1.JobStatus{CompletedIndexes: "1-2-3"}, want: "at most two parts"},
		"both at once":        {spec: many, now: batchv1.JobStatus{CompletedIndexes: "0-3", FailedIndexes: text("3-5")}, want: "overlap at index: 3"},
	} {
		t.Run(name, func(t *testing.T) {
			j, old := &batchv1.Job{Spec: tc.spec, Status: tc.now}, &batchv1.Job{Spec: tc.spec, Status: tc.old}
			errs := validateJobStatus(j, old)
			if tc.want == "" && len(errs) > 0 || tc.want != "" && (errs.ToAggregate() == nil || !strings.Contains(errs.ToAggregate().Error(), tc.want)) {
				t.Errorf("got %v, want %q", errs, tc.want)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }
