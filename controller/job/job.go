// Package job runs Pods to completion: counted or indexed, with back-off after failures, deadlines,
// suspension and Pod failure policies. Every Pod carries a finalizer until the Job's status has
// accounted for it, so Pods that vanish are neither forgotten nor counted twice.
package job

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/history"
	"github.com/skiff-project/skiff/controller/workload"
)

var kind = batchv1.SchemeGroupVersion.WithKind("Job")

// orphanPrefix starts the keys of Pods whose Job is gone.
const orphanPrefix = "orphan:"

type controller struct {
	env    engine.Env
	jobs   listers.JobLister
	pods   cache.SharedIndexInformer
	lister corelisters.PodLister
	ctl    workload.PodControl
	expect *workload.Expectations

	mu      sync.Mutex
	streaks map[string]streak // by key, for Jobs with failures
}

// New returns the Job controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, jobs := env.Informers.Core().V1(), env.Informers.Batch().V1().Jobs()
	c := &controller{env: env, jobs: jobs.Lister(), pods: core.Pods().Informer(), lister: core.Pods().Lister(),
		ctl:    workload.PodControl{Client: env.Client, Events: env.Events},
		expect: workload.NewExpectations(env.Clock), streaks: map[string]streak{}}
	if err := workload.IndexByOwner(c.pods); err != nil {
		return nil, fmt.Errorf("job controller: index pods: %w", err)
	}
	return &engine.Controller{
		Name:    "job-controller",
		Outputs: []engine.Resource{"pods", "jobs.batch/status"},
		Sources: []engine.Source{
			engine.On("jobs.batch", jobs.Informer(), c.jobChanged),
			engine.On("pods", c.pods, c.podChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) jobChanged(q engine.Queue, old, new *batchv1.Job) {
	if new != nil {
		q.Add(new.Namespace + "/" + new.Name)
		return
	}
	q.Add(old.Namespace + "/" + old.Name)
	pods, err := workload.Owned[corev1.Pod](c.pods, old, false)
	if err != nil {
		return
	}
	for _, p := range pods {
		if tracked(p) {
			q.Add(orphanPrefix + p.Namespace + "/" + p.Name)
		}
	}
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	workload.WakeOwners(q, kind.Kind, old, new, c.expect)
	if new != nil && tracked(new) {
		ref := metav1.GetControllerOfNoCopy(new)
		alone := ref == nil
		if ref != nil && ref.Kind == kind.Kind {
			j, err := c.jobs.Jobs(new.Namespace).Get(ref.Name)
			alone = err != nil || j.UID != ref.UID
		}
		if alone {
			q.Add(orphanPrefix + new.Namespace + "/" + new.Name)
		}
	}
	if !workload.Orphaned(old, new) {
		return
	}
	if all, err := c.jobs.Jobs(new.Namespace).List(labels.Everything()); err == nil {
		workload.WakeSelecting(q, new, all, func(j *batchv1.Job) *metav1.LabelSelector { return j.Spec.Selector })
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	if pod, ok := strings.CutPrefix(key, orphanPrefix); ok {
		return c.orphan(ctx, pod)
	}
	ns, name := engine.SplitKey(key)
	j, err := c.jobs.Jobs(ns).Get(name)
	if apierrors.IsNotFound(err) {
		c.expect.Forget(key)
		c.setStreak(key, streak{})
		return nil
	}
	if err != nil || j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName {
		return err
	}
	sel, err := history.Selector(j, j.Spec.Selector)
	if err != nil {
		return err
	}
	o := observed{job: j, now: c.env.Clock.Now(), streak: c.getStreak(key)}
	settled, wait := c.expect.Settled(key, c.pods.GetIndexer())
	o.settled = settled
	owned, err := workload.Owned[corev1.Pod](c.pods, j, true)
	if err != nil {
		return err
	}
	o.pods, err = c.ctl.ClaimPods(ctx, workload.Claimant{Owner: j, Kind: kind, Selector: sel,
		Fresh: func(ctx context.Context) (metav1.Object, error) {
			return c.env.Client.BatchV1().Jobs(ns).Get(ctx, name, metav1.GetOptions{})
		}}, owned)
	if err != nil {
		return err
	}
	p := planJob(o)
	if err := c.apply(ctx, key, j, p); err != nil {
		return err
	}
	if wait > 0 && (p.again == 0 || wait < p.again) {
		p.again = wait
	}
	if p.again > 0 {
		return engine.Later(p.again)
	}
	return nil
}

func (c *controller) apply(ctx context.Context, key string, j *batchv1.Job, p plan) error {
	if !equality.Semantic.DeepEqual(j.Status, p.status) {
		next := j.DeepCopy()
		next.Status = p.status
		if _, err := c.env.Client.BatchV1().Jobs(j.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("update status of job %s: %w", key, err)
		}
	}
	c.setStreak(key, p.streak)
	for _, e := range p.events {
		c.env.Events.Event(j, e.kind, e.reason, e.message)
	}
	if err := workload.AtOnce(len(p.strip), func(i int) error { return c.strip(ctx, p.strip[i]) }); err != nil {
		return err
	}
	err := workload.AtOnce(len(p.remove), func(i int) error {
		err := c.ctl.Delete(ctx, p.remove[i], j)
		if err == nil {
			c.expect.Deleted(key, p.remove[i])
		}
		return engine.IgnoreNotFound(err)
	})
	if err != nil {
		return err
	}
	return workload.SlowStart(len(p.create), func(i int) error {
		made, err := c.ctl.Create(ctx, podFor(j, p.create[i], p.marks), j)
		if err == nil {
			c.expect.Created(key, made)
		}
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	})
}

func podFor(j *batchv1.Job, index int, marks map[int]failures) *corev1.Pod {
	p := workload.PodFromTemplate(&j.Spec.Template, j, kind)
	if !tracked(p) {
		p.Finalizers = append(p.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if index >= 0 {
		giveIndex(j, p, index)
	}
	if f, ok := marks[index]; ok {
		f.mark(p)
	}
	return p
}

// strip takes the tracking finalizer off a Pod that is accounted for.
func (c *controller) strip(ctx context.Context, p *corev1.Pod) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID,
		"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer}}})
	if err != nil {
		return err
	}
	if err := c.ctl.Patch(ctx, p, patch); err != nil {
		return fmt.Errorf("remove job finalizer from pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// orphan lets a Pod go whose Job is gone.
func (c *controller) orphan(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	p, err := c.lister.Pods(ns).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !tracked(p) {
		return err
	}
	if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.Kind == kind.Kind {
		j, err := c.env.Client.BatchV1().Jobs(ns).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err == nil && j.UID == ref.UID {
			return nil // the cache was behind
		}
	}
	return c.strip(ctx, p)
}

func (c *controller) getStreak(key string) streak {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streaks[key]
}

func (c *controller) setStreak(key string, s streak) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.failures == 0 {
		delete(c.streaks, key)
		return
	}
	c.streaks[key] = s
}
