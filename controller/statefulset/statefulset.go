// Package statefulset keeps Pods with an identity: each ordinal its own name, host name and volume
// claims, started in order, stopped in reverse, updated from the highest ordinal down. A Pod is
// replaced only after its predecessor is gone from the API server, so two Pods never share an
// identity.
package statefulset

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/history"
	"github.com/skiff-project/skiff/controller/workload"
)

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

type controller struct {
	env     engine.Env
	sets    listers.StatefulSetLister
	claims  corelisters.PersistentVolumeClaimLister
	pods    cache.SharedIndexInformer
	history history.Keeper
	ctl     workload.PodControl
}

// New returns the StatefulSet controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, apps := env.Informers.Core().V1(), env.Informers.Apps().V1()
	c := &controller{env: env, sets: apps.StatefulSets().Lister(), claims: core.PersistentVolumeClaims().Lister(),
		pods:    core.Pods().Informer(),
		history: history.Keeper{Client: env.Client, Cache: apps.ControllerRevisions().Informer(), GVK: kind},
		ctl:     workload.PodControl{Client: env.Client, Events: env.Events}}
	for _, inf := range []cache.SharedIndexInformer{c.pods, c.history.Cache} {
		if err := workload.IndexByOwner(inf); err != nil {
			return nil, fmt.Errorf("statefulset controller: index: %w", err)
		}
	}
	return &engine.Controller{
		Name:    "statefulset-controller",
		Outputs: []engine.Resource{"pods", "persistentvolumeclaims", "controllerrevisions.apps", "statefulsets.apps/status"},
		Sources: []engine.Source{
			{Resource: "statefulsets.apps", Informer: apps.StatefulSets().Informer(), On: engine.Each},
			engine.On("pods", c.pods, c.podChanged),
			engine.Reads("persistentvolumeclaims", core.PersistentVolumeClaims().Informer()),
			engine.Reads("controllerrevisions.apps", c.history.Cache),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	workload.WakeOwners(q, kind.Kind, old, new, nil)
	if !workload.Orphaned(old, new) {
		return
	}
	if parent, n := ordinal(new.Name); n >= 0 {
		if _, err := c.sets.StatefulSets(new.Namespace).Get(parent); err == nil {
			q.Add(new.Namespace + "/" + parent)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	set, err := c.sets.StatefulSets(ns).Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	sel, err := history.Selector(set, set.Spec.Selector)
	if err != nil {
		return err
	}
	cl := workload.Claimant{Owner: set, Kind: kind, Selector: sel,
		Fresh: func(ctx context.Context) (metav1.Object, error) {
			return c.env.Client.AppsV1().StatefulSets(ns).Get(ctx, name, metav1.GetOptions{})
		},
		Adoptable: func(p metav1.Object) bool {
			parent, _ := ordinal(p.GetName())
			return parent == set.Name
		}}
	o, revs, err := c.observe(ctx, set, cl)
	if err != nil {
		return err
	}
	p := planSet(o)
	applyErr := c.apply(ctx, set, p)
	if err := c.setStatus(ctx, set, p.status); err != nil {
		return errors.Join(applyErr, err)
	}
	if err := c.trim(ctx, o, revs); err != nil || applyErr != nil {
		return errors.Join(applyErr, err)
	}
	if next := workload.NextAvailable(o.pods, set.Spec.MinReadySeconds, o.now); next > 0 {
		return engine.Later(next)
	}
	return nil
}

func (c *controller) observe(ctx context.Context, set *appsv1.StatefulSet, cl workload.Claimant) (observed, []*appsv1.ControllerRevision, error) {
	o := observed{set: set, now: c.env.Clock.Now(), claim: func(name string) *corev1.PersistentVolumeClaim {
		pvc, err := c.claims.PersistentVolumeClaims(set.Namespace).Get(name)
		if err != nil {
			return nil
		}
		return pvc
	}}
	revs, err := c.revisions(ctx, &o, cl)
	if err != nil {
		return o, nil, err
	}
	all, err := workload.Owned[corev1.Pod](c.pods, set, true)
	if err != nil {
		return o, nil, err
	}
	o.pods, err = c.ctl.ClaimPods(ctx, cl, all)
	return o, revs, err
}

// revisions finds or makes the revision of the set's template, and the one it comes from.
func (c *controller) revisions(ctx context.Context, o *observed, cl workload.Claimant) ([]*appsv1.ControllerRevision, error) {
	set := o.set
	all, err := c.history.List(ctx, cl)
	if err != nil {
		return nil, err
	}
	if set.Status.CollisionCount != nil {
		o.collisions = *set.Status.CollisionCount
	}
	next := int64(1)
	if len(all) > 0 {
		next = all[len(all)-1].Revision + 1
	}
	want, err := history.New(set, kind, &set.Spec.Template, next)
	if err != nil {
		return nil, err
	}
	var same *appsv1.ControllerRevision
	for _, r := range all {
		if history.Same(r, want) {
			same = r
		}
		if r.Name == set.Status.CurrentRevision {
			o.current = r
		}
	}
	switch {
	case same != nil && same == all[len(all)-1]:
		o.update = same
	case same != nil:
		o.update, err = c.history.Renumber(ctx, same, next)
	default:
		hash := func(n int32) string { return history.Hash(want.Data.Raw, &n) }
		o.update, o.collisions, err = c.history.Create(ctx, want, set.Name, hash, o.collisions)
	}
	if err != nil {
		return nil, err
	}
	if o.current == nil {
		o.current = o.update
	}
	o.currentTemplate, err = history.Template(o.current)
	return all, err
}

// apply makes the writes of a plan: one after the other for an ordered set, whose plan is short;
// Pod by Pod at once in growing batches for a parallel one.
func (c *controller) apply(ctx context.Context, set *appsv1.StatefulSet, p plan) error {
	var groups [][]op
	for _, o := range p.ops {
		if n := len(groups); n > 0 && groups[n-1][0].pod.Name == o.pod.Name {
			groups[n-1] = append(groups[n-1], o)
			continue
		}
		groups = append(groups, []op{o})
	}
	return workload.SlowStart(len(groups), func(i int) error {
		for _, o := range groups[i] {
			if err := c.write(ctx, set, o); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *controller) write(ctx context.Context, set *appsv1.StatefulSet, o op) error {
	core := c.env.Client.CoreV1()
	switch o.verb {
	case createClaim:
		_, err := core.PersistentVolumeClaims(set.Namespace).Create(ctx, o.claim, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		c.tell(set, "Create", fmt.Sprintf("Create Claim %s Pod %s in StatefulSet %s", o.claim.Name, o.pod.Name, set.Name), " success", err)
		if err != nil {
			return fmt.Errorf("failed to create PVC %s: %w", o.claim.Name, err)
		}
		return nil
	case updateClaim:
		_, err := core.PersistentVolumeClaims(set.Namespace).Update(ctx, o.claim, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", o.claim.Name, err)
		}
		return nil
	}
	return c.writePod(ctx, set, o)
}

func (c *controller) writePod(ctx context.Context, set *appsv1.StatefulSet, o op) error {
	pods := c.env.Client.CoreV1().Pods(set.Namespace)
	var err error
	word := ""
	switch o.verb {
	case createPod:
		word = "Create"
		if _, err = pods.Create(ctx, o.pod, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			return err // the cache lags behind
		}
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
	case updatePod:
		word = "Update"
		_, err = pods.Update(ctx, o.pod, metav1.UpdateOptions{})
	default:
		word = "Delete"
		// the UID keeps a lagging cache from deleting the Pod's successor
		err = pods.Delete(ctx, o.pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(o.pod.UID))})
		if apierrors.IsNotFound(err) {
			err = nil
		}
	}
	c.tell(set, word, fmt.Sprintf("%s Pod %s in StatefulSet %s", word, o.pod.Name, set.Name), " successful", err)
	return err
}

func (c *controller) tell(set *appsv1.StatefulSet, word, what, ok string, err error) {
	if err == nil {
		c.env.Events.Event(set, corev1.EventTypeNormal, "Successful"+word, what+ok)
		return
	}
	c.env.Events.Event(set, corev1.EventTypeWarning, "Failed"+word, fmt.Sprintf("%s failed error: %s", what, err))
}

func (c *controller) setStatus(ctx context.Context, set *appsv1.StatefulSet, s appsv1.StatefulSetStatus) error {
	if equality.Semantic.DeepEqual(set.Status, s) {
		return nil
	}
	set = set.DeepCopy()
	set.Status = s
	_, err := c.env.Client.AppsV1().StatefulSets(set.Namespace).UpdateStatus(ctx, set, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

func (c *controller) trim(ctx context.Context, o observed, revs []*appsv1.ControllerRevision) error {
	if o.set.Spec.RevisionHistoryLimit == nil || o.set.DeletionTimestamp != nil {
		return nil
	}
	live := labels.Set{o.current.Name: "", o.update.Name: ""}
	for _, p := range o.pods {
		live[revisionOf(p)] = ""
	}
	return c.history.Trim(ctx, revs, *o.set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool { return live.Has(r.Name) })
}
