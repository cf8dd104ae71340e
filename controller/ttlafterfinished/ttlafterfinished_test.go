package ttlafterfinished_test

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/ttlafterfinished"
)

func job(ttl *int32, done bool) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "j", UID: "j"}, Spec: batchv1.JobSpec{TTLSecondsAfterFinished: ttl}}
	if done {
		j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(enginetest.Epoch)}}
	}
	return j
}

func TestTTL(t *testing.T) {
	for name, c := range map[string]struct {
		job  *batchv1.Job
		gone bool
	}{"finished": {job(new(int32(60)), true), true}, "running": {job(new(int32(60)), false), false}, "no TTL": {job(nil, true), false}} {
		t.Run(name, func(t *testing.T) {
			w := enginetest.New(t, c.job)
			w.Build(ttlafterfinished.New(w.Env)).Settle()
			there := func() bool {
				_, err := w.Client.BatchV1().Jobs("ns").Get(t.Context(), "j", metav1.GetOptions{})
				return err == nil
			}
			w.Step(59 * time.Second).Settle()
			if !there() {
				t.Fatal("deleted too early")
			}
			w.Step(2 * time.Second).Settle()
			if there() == c.gone {
				t.Errorf("there: %v", there())
			}
		})
	}
}
