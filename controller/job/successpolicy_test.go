package job

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestMatchSuccessPolicy(t *testing.T) {
	done := map[int]bool{0: true, 2: true, 3: true}
	for _, c := range []struct {
		name  string
		rules []batchv1.SuccessPolicyRule
		want  string
	}{
		{"all indexes of a rule", []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0,2-3")}}, "Matched rules at index 0"},
		{"one is missing", []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0-2")}}, ""},
		{"enough of them", []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0-2"), SucceededCount: new(int32(2))}}, "Matched rules at index 0"},
		{"too few of them", []batchv1.SuccessPolicyRule{{SucceededIndexes: new("1-2"), SucceededCount: new(int32(2))}}, ""},
		{"any so many", []batchv1.SuccessPolicyRule{{SucceededCount: new(int32(4))}, {SucceededCount: new(int32(3))}}, "Matched rules at index 1"},
	} {
		if got := matchSuccessPolicy(&batchv1.SuccessPolicy{Rules: c.rules}, 5, done); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSuccessPolicyEndsTheJob(t *testing.T) {
	w := world(t, pi(new(int32(5)), 2, asIndexed, func(j *batchv1.Job) {
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: new(int32(1))}}}
	})).Settle()
	end(w, 1, corev1.PodSucceeded)
	for _, p := range unfinished(w) { // what still ran is deleted; it is gone once the node says so
		t.Errorf("pod %s runs on", p.Name)
	}
	if c := condition(&get(w).Status, batchv1.JobSuccessCriteriaMet); c == nil || c.Reason != "SuccessPolicy" || c.Message != "Matched rules at index 0" {
		t.Errorf("condition %+v", c)
	}
	expect(t, "one done", show(w), "active 0 succeeded 1 failed 0, SuccessCriteriaMet SuccessPolicy, Complete SuccessPolicy")
}
