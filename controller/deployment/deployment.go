// Package deployment rolls Pod templates out through ReplicaSets: it makes one set per template,
// moves replicas from old sets to the current one (or recreates), scales all of them in proportion,
// keeps revision history, undoes, and reports progress.
//
// A reconcile is one call of the pure planRollout on copies of the cached objects, then the writes
// it lists. The plan never waits: whatever it cannot do yet, a later change will bring about.
package deployment

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

type controller struct {
	client      kubernetes.Interface
	events      record.EventRecorder
	deployments listers.DeploymentLister
	sets        listers.ReplicaSetLister
	setInformer cache.SharedIndexInformer
	pods        cache.SharedIndexInformer
	now         func() time.Time
}

// New returns the Deployment controller.
func New(env engine.Env) (*engine.Controller, error) {
	apps := env.Informers.Apps().V1()
	c := &controller{
		client: env.Client, events: env.Events,
		deployments: apps.Deployments().Lister(),
		sets:        apps.ReplicaSets().Lister(),
		setInformer: apps.ReplicaSets().Informer(),
		pods:        env.Informers.Core().V1().Pods().Informer(),
		now:         env.Clock.Now,
	}
	for _, inf := range []cache.SharedIndexInformer{c.setInformer, c.pods} {
		if err := workload.IndexByOwner(inf); err != nil {
			return nil, fmt.Errorf("deployment controller: index: %w", err)
		}
	}
	return &engine.Controller{
		Name:    "deployment-controller",
		Outputs: []engine.Resource{"replicasets.apps", "deployments.apps", "deployments.apps/status"},
		Sources: []engine.Source{
			{Resource: "deployments.apps", Informer: apps.Deployments().Informer(), On: engine.Each},
			engine.On("replicasets.apps", c.setInformer, c.setChanged),
			engine.On("pods", c.pods, c.podChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) setChanged(q engine.Queue, old, new *appsv1.ReplicaSet) {
	workload.WakeOwners(q, "Deployment", old, new, nil)
	if !workload.Orphaned(old, new) || new.DeletionTimestamp != nil {
		return
	}
	if all, err := c.deployments.Deployments(new.Namespace).List(labels.Everything()); err == nil {
		workload.WakeSelecting(q, new, all, func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector })
	}
}

// podChanged wakes a Recreate Deployment when one of its Pods is gone.
func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	if new != nil {
		return
	}
	ref := metav1.GetControllerOfNoCopy(old)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	rs, err := c.sets.ReplicaSets(old.Namespace).Get(ref.Name)
	if err != nil {
		return
	}
	ref = metav1.GetControllerOfNoCopy(rs)
	if ref == nil || ref.Kind != "Deployment" {
		return
	}
	d, err := c.deployments.Deployments(old.Namespace).Get(ref.Name)
	if err == nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		q.Add(d.Namespace + "/" + d.Name)
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	d, err := c.deployments.Deployments(ns).Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	if equality.Semantic.DeepEqual(d.Spec.Selector, &metav1.LabelSelector{}) {
		return c.refuse(ctx, d)
	}
	sets, err := c.claim(ctx, d)
	if err != nil {
		return err
	}
	p := planRollout(observed{deployment: d, sets: sets, now: c.now(),
		oldPods: func(except string) bool { return c.runsOld(sets, except) }})
	if err := c.apply(ctx, d, p); err != nil {
		return err
	}
	if next := nextLook(p.deployment, c.now()); next > 0 && !p.rollback {
		return engine.Later(next)
	}
	return nil
}

// refuse answers a Deployment that selects every Pod.
func (c *controller) refuse(ctx context.Context, d *appsv1.Deployment) error {
	c.events.Event(d, corev1.EventTypeWarning, "SelectingAll",
		"This deployment is selecting all pods. A non-empty selector is required.")
	if d.Status.ObservedGeneration >= d.Generation {
		return nil
	}
	d = d.DeepCopy()
	d.Status.ObservedGeneration = d.Generation
	_, err := c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return err
}

// claim returns the sets d holds, adopting and releasing on the way.
func (c *controller) claim(ctx context.Context, d *appsv1.Deployment) ([]*appsv1.ReplicaSet, error) {
	sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("deployment %s/%s: bad selector: %w", d.Namespace, d.Name, err)
	}
	all, err := workload.Owned[appsv1.ReplicaSet](c.setInformer, d, true)
	if err != nil {
		return nil, err
	}
	api := c.client.AppsV1()
	var own []*appsv1.ReplicaSet
	for _, rs := range all {
		var patch []byte
		switch workload.Claim(d, sel, rs) {
		case workload.Own:
			own = append(own, rs)
			continue
		case workload.Release:
			patch = workload.ReleasePatch(d.UID, rs.UID)
		case workload.Adopt:
			err := workload.Recheck(ctx, d, func(ctx context.Context) (metav1.Object, error) {
				return api.Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
			})
			if err != nil {
				return nil, fmt.Errorf("adopt replica set %s: %w", rs.Name, err)
			}
			patch = workload.AdoptPatch(d, appsv1.SchemeGroupVersion.WithKind("Deployment"), rs.UID)
		default:
			continue
		}
		patched, err := api.ReplicaSets(rs.Namespace).Patch(ctx, rs.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("claim replica set %s: %w", rs.Name, err)
		}
		if metav1.IsControlledBy(patched, d) {
			own = append(own, patched)
		}
	}
	return own, nil
}

func (c *controller) runsOld(sets []*appsv1.ReplicaSet, except string) bool {
	for _, rs := range sets {
		if string(rs.UID) == except {
			continue
		}
		pods, err := workload.Owned[corev1.Pod](c.pods, rs, false)
		if err != nil {
			return true
		}
		for _, p := range pods {
			if !workload.IsFinished(p) {
				return true
			}
		}
	}
	return false
}

func (c *controller) apply(ctx context.Context, d *appsv1.Deployment, p plan) error {
	for _, ch := range p.changes {
		if err := c.write(ctx, p, ch); err != nil {
			return err
		}
		if ch.event != "" {
			c.events.Event(d, corev1.EventTypeNormal, "ScalingReplicaSet", ch.event)
		}
	}
	api := c.client.AppsV1().Deployments(d.Namespace)
	if p.event != "" {
		c.events.Event(d, eventType(p.warning), p.event, p.message)
	}
	if p.rollback {
		_, err := api.Update(ctx, p.deployment, metav1.UpdateOptions{})
		return err
	}
	if equality.Semantic.DeepEqual(d.Status, p.deployment.Status) &&
		d.Annotations[revisionAnnotation] == p.deployment.Annotations[revisionAnnotation] {
		return nil
	}
	// the status sub-resource carries annotations: the revision travels with it, as upstream's does
	_, err := api.UpdateStatus(ctx, p.deployment, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

func (c *controller) write(ctx context.Context, p plan, ch change) error {
	api := c.client.AppsV1().ReplicaSets(ch.set.Namespace)
	switch ch.verb {
	case update:
		_, err := api.Update(ctx, ch.set, metav1.UpdateOptions{})
		return err
	case remove:
		return engine.IgnoreNotFound(api.Delete(ctx, ch.set.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(ch.set.UID))}))
	}
	_, err := api.Create(ctx, ch.set, metav1.CreateOptions{})
	switch {
	case err == nil:
		return nil
	case apierrors.IsAlreadyExists(err):
		return c.collision(ctx, p.deployment, ch.set, err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return err
	}
	msg := fmt.Sprintf("Failed to create new replica set %q: %v", ch.set.Name, err)
	c.events.Event(p.deployment, corev1.EventTypeWarning, "ReplicaSetCreateError", msg)
	if hasDeadline(p.deployment) {
		m := &model{observed: observed{now: c.now()}}
		m.set(&p.deployment.Status, appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", msg)
		_, _ = c.client.AppsV1().Deployments(p.deployment.Namespace).UpdateStatus(ctx, p.deployment, metav1.UpdateOptions{})
	}
	return err
}

// collision handles a set of the wanted name that the plan did not know: either our own, which the
// cache has not shown yet (look again later), or another template with the same hash.
func (c *controller) collision(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet, exists error) error {
	live, err := c.client.AppsV1().ReplicaSets(rs.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if metav1.IsControlledBy(live, d) && sameTemplate(&d.Spec.Template, &live.Spec.Template) {
		return exists // created a moment ago; the watch brings it
	}
	fresh, err := c.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	n := int32(1)
	if fresh.Status.CollisionCount != nil {
		n += *fresh.Status.CollisionCount
	}
	fresh.Status.CollisionCount = &n
	if _, err := c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return exists
}
