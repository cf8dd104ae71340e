// Package daemonset keeps one Pod of a DaemonSet on every node that fits, replaces failed ones with
// back-off, and rolls template changes over the nodes within maxUnavailable or maxSurge.
package daemonset

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

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

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

type controller struct {
	env     engine.Env
	sets    listers.DaemonSetLister
	nodes   corelisters.NodeLister
	pods    cache.SharedIndexInformer
	history history.Keeper
	ctl     workload.PodControl
	expect  *workload.Expectations
	backoff *workload.Backoff
}

// New returns the DaemonSet controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, apps := env.Informers.Core().V1(), env.Informers.Apps().V1()
	c := &controller{env: env, sets: apps.DaemonSets().Lister(), nodes: core.Nodes().Lister(), pods: core.Pods().Informer(),
		history: history.Keeper{Client: env.Client, Cache: apps.ControllerRevisions().Informer(), GVK: kind},
		ctl:     workload.PodControl{Client: env.Client, Events: env.Events},
		expect:  workload.NewExpectations(env.Clock),
		backoff: workload.NewBackoff(time.Second, 15*time.Minute, env.Clock)}
	for _, inf := range []cache.SharedIndexInformer{c.pods, c.history.Cache} {
		if err := workload.IndexByOwner(inf); err != nil {
			return nil, fmt.Errorf("daemonset controller: index: %w", err)
		}
	}
	return &engine.Controller{
		Name:    "daemonset-controller",
		Outputs: []engine.Resource{"pods", "controllerrevisions.apps", "daemonsets.apps/status"},
		Sources: []engine.Source{
			{Resource: "daemonsets.apps", Informer: apps.DaemonSets().Informer(), On: engine.Each},
			engine.On("nodes", core.Nodes().Informer(), c.nodeChanged),
			engine.On("pods", c.pods, c.podChanged),
			engine.Reads("controllerrevisions.apps", c.history.Cache),
		},
		Reconcile: c.reconcile,
	}, nil
}

// nodeChanged wakes the sets to which the node means something else than before.
func (c *controller) nodeChanged(q engine.Queue, old, new *corev1.Node) {
	all, err := c.sets.List(labels.Everything())
	if err != nil {
		return
	}
	if old != nil && new != nil && maps.Equal(old.Labels, new.Labels) && equality.Semantic.DeepEqual(old.Spec.Taints, new.Spec.Taints) {
		return
	}
	for _, ds := range all {
		var was, is fit
		if old != nil {
			was = fits(ds, old)
		}
		if new != nil {
			is = fits(ds, new)
		}
		if was != is || new == nil {
			q.Add(ds.Namespace + "/" + ds.Name)
		}
	}
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	workload.WakeOwners(q, kind.Kind, old, new, c.expect)
	if !workload.Orphaned(old, new) || new.DeletionTimestamp != nil {
		return
	}
	if all, err := c.sets.DaemonSets(new.Namespace).List(labels.Everything()); err == nil {
		workload.WakeSelecting(q, new, all, func(ds *appsv1.DaemonSet) *metav1.LabelSelector { return ds.Spec.Selector })
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	ds, err := c.sets.DaemonSets(ns).Get(name)
	if apierrors.IsNotFound(err) {
		c.expect.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	if equality.Semantic.DeepEqual(ds.Spec.Selector, &metav1.LabelSelector{}) {
		c.env.Events.Event(ds, corev1.EventTypeWarning, "SelectingAll",
			"This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	if ds.DeletionTimestamp != nil {
		return nil
	}
	sel, err := history.Selector(ds, ds.Spec.Selector)
	if err != nil {
		return err
	}
	cl := workload.Claimant{Owner: ds, Kind: kind, Selector: sel, Fresh: func(ctx context.Context) (metav1.Object, error) {
		return c.env.Client.AppsV1().DaemonSets(ns).Get(ctx, name, metav1.GetOptions{})
	}}
	current, old, collisions, err := c.revisions(ctx, ds, cl)
	if err != nil {
		return err
	}
	settled, wait := c.expect.Settled(key, c.pods.GetIndexer())
	o, all, err := c.observe(ctx, ds, cl)
	if err != nil {
		return err
	}
	o.hash = current.Labels[history.HashLabel]
	var p plan
	var applyErr error
	if settled {
		p = planPods(o)
		applyErr = c.apply(ctx, key, ds, o, p)
		if applyErr == nil {
			applyErr = c.trim(ctx, ds, old, all)
		}
	}
	status := planStatus(o)
	if collisions > 0 {
		status.CollisionCount = &collisions
	}
	if settled {
		status.ObservedGeneration = ds.Generation
	}
	if err := c.setStatus(ctx, ds, status); err != nil {
		return err
	}
	if applyErr != nil {
		return applyErr
	}
	return again(wait, p.again, c.nextAvailable(o))
}

// again asks for the earliest of the given waits, if any.
func again(waits ...time.Duration) error {
	first := time.Duration(0)
	for _, w := range waits {
		if w > 0 && (first == 0 || w < first) {
			first = w
		}
	}
	if first > 0 {
		return engine.Later(first)
	}
	return nil
}

func (c *controller) nextAvailable(o observed) time.Duration {
	var all []*corev1.Pod
	for _, pods := range o.pods {
		all = append(all, pods...)
	}
	return workload.NextAvailable(all, o.set.Spec.MinReadySeconds, o.now)
}

// revisions finds or makes the revision of the current template; old are the others.
func (c *controller) revisions(ctx context.Context, ds *appsv1.DaemonSet, cl workload.Claimant) (current *appsv1.ControllerRevision, old []*appsv1.ControllerRevision, collisions int32, err error) {
	all, err := c.history.List(ctx, cl)
	if err != nil {
		return nil, nil, 0, err
	}
	if ds.Status.CollisionCount != nil {
		collisions = *ds.Status.CollisionCount
	}
	next := int64(1)
	want, err := history.New(ds, kind, &ds.Spec.Template, 0)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, r := range all {
		if history.Same(r, want) {
			current = r
			continue
		}
		old = append(old, r)
		next = max(next, r.Revision+1)
	}
	want.Revision = next
	switch {
	case current == nil:
		hash := func(n int32) string {
			if n == 0 {
				return workload.TemplateHash(&ds.Spec.Template, ds.Status.CollisionCount)
			}
			return workload.TemplateHash(&ds.Spec.Template, &n)
		}
		current, collisions, err = c.history.Create(ctx, want, ds.Name, hash, collisions)
	case current.Revision < next:
		current, err = c.history.Renumber(ctx, current, next)
	}
	return current, old, collisions, err
}

func (c *controller) observe(ctx context.Context, ds *appsv1.DaemonSet, cl workload.Claimant) (observed, []*corev1.Pod, error) {
	o := observed{set: ds, now: c.env.Clock.Now(), pods: map[string][]*corev1.Pod{},
		failed: func(node string) time.Duration { return c.backoff.Try(string(ds.UID) + "/" + node) }}
	var err error
	if o.nodes, err = c.nodes.List(labels.Everything()); err != nil {
		return o, nil, err
	}
	owned, err := workload.Owned[corev1.Pod](c.pods, ds, true)
	if err != nil {
		return o, nil, err
	}
	all, err := c.ctl.ClaimPods(ctx, cl, owned)
	if err != nil {
		return o, nil, err
	}
	for _, p := range all {
		if workload.IsFinished(p) && p.DeletionTimestamp != nil {
			continue
		}
		if node := nodeOf(p); node != "" {
			o.pods[node] = append(o.pods[node], p)
		}
	}
	return o, all, nil
}

func (c *controller) apply(ctx context.Context, key string, ds *appsv1.DaemonSet, o observed, p plan) error {
	for _, e := range p.events {
		c.env.Events.Event(ds, e.kind, e.reason, e.message)
	}
	t := podTemplate(ds, o.hash)
	createErr := workload.SlowStart(len(p.create), func(i int) error {
		pod := workload.PodFromTemplate(t, ds, kind)
		pod.Spec.Affinity = onNode(pod.Spec.Affinity, p.create[i])
		made, err := c.ctl.Create(ctx, pod, ds)
		if err != nil {
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			return err
		}
		c.expect.Created(key, made)
		return nil
	})
	err := workload.AtOnce(len(p.remove), func(i int) error {
		err := c.ctl.Delete(ctx, p.remove[i], ds)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			c.expect.Deleted(key, p.remove[i])
		}
		return err
	})
	if createErr != nil {
		return createErr
	}
	return err
}

func podTemplate(ds *appsv1.DaemonSet, hash string) *corev1.PodTemplateSpec {
	t := ds.Spec.Template.DeepCopy()
	t.Spec.Tolerations = tolerations(&t.Spec)
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	if g, err := strconv.ParseInt(ds.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64); err == nil {
		t.Labels["pod-template-generation"] = strconv.FormatInt(g, 10)
	}
	t.Labels[history.HashLabel] = hash
	return t
}

func (c *controller) trim(ctx context.Context, ds *appsv1.DaemonSet, old []*appsv1.ControllerRevision, pods []*corev1.Pod) error {
	if ds.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	live := map[string]bool{}
	for _, p := range pods {
		live[p.Labels[history.HashLabel]] = true
	}
	return c.history.Trim(ctx, old, *ds.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool {
		return live[r.Labels[history.HashLabel]]
	})
}

func (c *controller) setStatus(ctx context.Context, ds *appsv1.DaemonSet, s appsv1.DaemonSetStatus) error {
	if equality.Semantic.DeepEqual(ds.Status, s) {
		return nil
	}
	ds = ds.DeepCopy()
	ds.Status = s
	_, err := c.env.Client.AppsV1().DaemonSets(ds.Namespace).UpdateStatus(ctx, ds, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}
