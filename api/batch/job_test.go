package batch

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
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
