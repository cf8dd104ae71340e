// Package ttlafterfinished deletes finished Jobs once their ttlSecondsAfterFinished has passed.
package ttlafterfinished

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// New returns the TTL controller.
func New(env engine.Env) (*engine.Controller, error) {
	jobs := env.Informers.Batch().V1().Jobs()
	reconcile := func(ctx context.Context, key string) error {
		ns, name := engine.SplitKey(key)
		j, err := jobs.Lister().Jobs(ns).Get(name)
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		left, ends := remaining(j, env.Clock.Now())
		if !ends {
			return nil
		}
		if left > 0 {
			return engine.Later(left)
		}
		// the cache may be behind a longer TTL: ask
		j, err = env.Client.BatchV1().Jobs(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		if left, ends = remaining(j, env.Clock.Now()); !ends {
			return nil
		}
		if left > 0 {
			return engine.Later(left)
		}
		policy := metav1.DeletePropagationForeground
		err = env.Client.BatchV1().Jobs(ns).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy,
			Preconditions: metav1.NewUIDPreconditions(string(j.UID))})
		return engine.IgnoreNotFound(err)
	}
	return &engine.Controller{
		Name:    "ttl-after-finished-controller",
		Outputs: []engine.Resource{"jobs.batch"},
		Sources: []engine.Source{engine.On("jobs.batch", jobs.Informer(), func(q engine.Queue, _, new *batchv1.Job) {
			if new == nil {
				return
			}
			if _, ends := remaining(new, env.Clock.Now()); ends {
				q.Add(new.Namespace + "/" + new.Name)
			}
		})},
		Reconcile: reconcile,
	}, nil
}

// remaining returns how long a Job has still to stay; ends is false if it stays for ever or has
// not finished.
func remaining(j *batchv1.Job, now time.Time) (left time.Duration, ends bool) {
	if j.Spec.TTLSecondsAfterFinished == nil || j.DeletionTimestamp != nil {
		return 0, false
	}
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second).Sub(now), true
		}
	}
	return 0, false
}
