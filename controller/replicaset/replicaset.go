// Package replicaset keeps as many Pods running as a ReplicaSet asks for: it adopts matching
// orphans, releases Pods that no longer match, creates what is missing in growing batches, deletes
// what is too much in upstream's order, and reports status. The same loop serves replication
// controllers (package replication) through Kind.
package replicaset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

// Kind is how the loop reads and writes one kind of replicated set. Sets are passed as ReplicaSets
// whatever they are stored as; those from Get and List are shared and must not be changed.
type Kind struct {
	Controller string // upstream's --controllers name
	GVK        schema.GroupVersionKind
	Resource   engine.Resource
	Informer   cache.SharedIndexInformer
	// NoTerminating says that the kind's status has no terminatingReplicas.
	NoTerminating bool
	Get           func(namespace, name string) (*appsv1.ReplicaSet, error)
	List          func(namespace string) ([]*appsv1.ReplicaSet, error)
	Fresh         func(ctx context.Context, namespace, name string) (metav1.Object, error)
	// SetStatus writes the status of a copy of the set.
	SetStatus func(ctx context.Context, rs *appsv1.ReplicaSet) error
	// Object is what events and owner references point to.
	Object func(rs *appsv1.ReplicaSet) workload.Owner
}

type controller struct {
	Kind
	pods   cache.SharedIndexInformer
	ctl    workload.PodControl
	expect *workload.Expectations
	now    func() time.Time
}

// New returns the ReplicaSet controller.
func New(env engine.Env) (*engine.Controller, error) {
	inf := env.Informers.Apps().V1().ReplicaSets()
	sets := env.Client.AppsV1()
	return NewFor(env, Kind{
		Controller: "replicaset-controller",
		GVK:        appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		Resource:   "replicasets.apps",
		Informer:   inf.Informer(),
		Get: func(ns, name string) (*appsv1.ReplicaSet, error) {
			return inf.Lister().ReplicaSets(ns).Get(name)
		},
		List: func(ns string) ([]*appsv1.ReplicaSet, error) {
			return inf.Lister().ReplicaSets(ns).List(labels.Everything())
		},
		Fresh: func(ctx context.Context, ns, name string) (metav1.Object, error) {
			return sets.ReplicaSets(ns).Get(ctx, name, metav1.GetOptions{})
		},
		SetStatus: func(ctx context.Context, rs *appsv1.ReplicaSet) error {
			_, err := sets.ReplicaSets(rs.Namespace).UpdateStatus(ctx, rs, metav1.UpdateOptions{})
			return err
		},
		Object: func(rs *appsv1.ReplicaSet) workload.Owner { return rs },
	})
}

// NewFor returns the controller of one Kind.
func NewFor(env engine.Env, k Kind) (*engine.Controller, error) {
	pods := env.Informers.Core().V1().Pods().Informer()
	if err := workload.IndexByOwner(pods); err != nil {
		return nil, fmt.Errorf("%s: index pods: %w", k.Controller, err)
	}
	c := &controller{
		Kind: k, pods: pods,
		ctl:    workload.PodControl{Client: env.Client, Events: env.Events},
		expect: workload.NewExpectations(env.Clock),
		now:    env.Clock.Now,
	}
	return &engine.Controller{
		Name:    k.Controller,
		Outputs: []engine.Resource{"pods", k.Resource + "/status"},
		Sources: []engine.Source{
			{Resource: k.Resource, Informer: k.Informer, On: engine.Each},
			engine.On("pods", pods, c.podChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

// podChanged wakes the owners of the Pod before and after the change; an orphan wakes every set
// that might adopt it.
func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	workload.WakeOwners(q, c.GVK.Kind, old, new, c.expect)
	if !workload.Orphaned(old, new) || new.DeletionTimestamp != nil {
		return
	}
	if sets, err := c.List(new.Namespace); err == nil {
		workload.WakeSelecting(q, new, sets, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector })
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	rs, err := c.Get(ns, name)
	if apierrors.IsNotFound(err) {
		c.expect.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	o, wait, err := c.observe(ctx, key, rs)
	if err != nil {
		return err
	}
	manageErr := c.manage(ctx, key, o, planReplicas(o))
	if status := planStatus(o, manageErr); !statusEqual(rs.Status, status) {
		rs = rs.DeepCopy()
		rs.Status = status
		if err := c.SetStatus(ctx, rs); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("update status of %s %s: %w", c.GVK.Kind, key, err)
		}
	}
	if manageErr != nil {
		return manageErr
	}
	next := workload.NextAvailable(o.pods, rs.Spec.MinReadySeconds, o.now)
	if wait > 0 && (next == 0 || wait < next) {
		next = wait
	}
	if next > 0 {
		return engine.Later(next)
	}
	return nil
}

// observe gathers the facts; wait is when to look again if the cache never settles.
func (c *controller) observe(ctx context.Context, key string, rs *appsv1.ReplicaSet) (observed, time.Duration, error) {
	sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return observed{}, 0, fmt.Errorf("%s %s: bad selector: %w", c.GVK.Kind, key, err)
	}
	o := observed{set: rs, now: c.now(), uncounted: c.NoTerminating}
	// asked before the Pods are read: what settles in between is then in the list
	var wait time.Duration
	o.settled, wait = c.expect.Settled(key, c.pods.GetIndexer())
	all, err := workload.Owned[corev1.Pod](c.pods, rs, true)
	if err != nil {
		return o, 0, err
	}
	o.terminating = workload.Filter(all, func(p *corev1.Pod) bool {
		return workload.IsTerminating(p) && metav1.IsControlledBy(p, rs) && sel.Matches(labels.Set(p.Labels))
	})
	o.pods, err = c.ctl.ClaimPods(ctx, workload.Claimant{
		Owner: c.Object(rs), Kind: c.GVK, Selector: sel,
		Fresh: func(ctx context.Context) (metav1.Object, error) { return c.Fresh(ctx, rs.Namespace, rs.Name) },
	}, workload.Filter(all, workload.IsActive))
	if err != nil {
		return o, 0, err
	}
	if len(o.pods) > int(*rs.Spec.Replicas) {
		o.rank, err = c.siblings(rs)
	}
	return o, wait, err
}

// siblings counts, per node, the active Pods of all sets with the same controller as rs, so that
// scaling down spreads what stays.
func (c *controller) siblings(rs *appsv1.ReplicaSet) (map[string]int, error) {
	sets := []*appsv1.ReplicaSet{rs}
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil {
		all, err := c.List(rs.Namespace)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if r := metav1.GetControllerOfNoCopy(s); r != nil && r.UID == ref.UID && s.UID != rs.UID {
				sets = append(sets, s)
			}
		}
	}
	rank := map[string]int{}
	for _, s := range sets {
		pods, err := workload.Owned[corev1.Pod](c.pods, s, false)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			if workload.IsActive(p) {
				rank[p.Spec.NodeName]++
			}
		}
	}
	return rank, nil
}

func (c *controller) manage(ctx context.Context, key string, o observed, p plan) error {
	owner := c.Object(o.set)
	if p.create > 0 {
		return workload.SlowStart(p.create, func(int) error {
			pod, err := c.ctl.Create(ctx, workload.PodFromTemplate(&o.set.Spec.Template, owner, c.GVK), owner)
			if err != nil {
				if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
					return nil // the namespace goes, and the set with it
				}
				return err
			}
			c.expect.Created(key, pod)
			return nil
		})
	}
	return workload.AtOnce(len(p.remove), func(i int) error {
		err := c.ctl.Delete(ctx, p.remove[i], owner)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			c.expect.Deleted(key, p.remove[i])
		}
		return err
	})
}
