// Package disruption keeps the status of Pod disruption budgets: how many of the selected Pods may
// be evicted now. The eviction sub-resource of the API server spends what this package allows.
//
// How many Pods there should be is asked of their owners: Deployments, ReplicaSets, StatefulSets
// and replication controllers. A percentage over Pods of other owners is refused in the condition.
package disruption

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	listers "k8s.io/client-go/listers/policy/v1"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

type controller struct {
	env         engine.Env
	budgets     listers.PodDisruptionBudgetLister
	pods        corelisters.PodLister
	deployments appslisters.DeploymentLister
	replicas    appslisters.ReplicaSetLister
	stateful    appslisters.StatefulSetLister
	controllers corelisters.ReplicationControllerLister
}

// New returns the disruption controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, apps, policy := env.Informers.Core().V1(), env.Informers.Apps().V1(), env.Informers.Policy().V1()
	c := &controller{env: env, budgets: policy.PodDisruptionBudgets().Lister(), pods: core.Pods().Lister(),
		deployments: apps.Deployments().Lister(), replicas: apps.ReplicaSets().Lister(),
		stateful: apps.StatefulSets().Lister(), controllers: core.ReplicationControllers().Lister()}
	return &engine.Controller{
		Name:    "disruption-controller",
		Outputs: []engine.Resource{"poddisruptionbudgets.policy/status"},
		Workers: 2,
		Sources: []engine.Source{
			{Resource: "poddisruptionbudgets.policy", Informer: policy.PodDisruptionBudgets().Informer(), On: engine.Each},
			engine.On("pods", core.Pods().Informer(), c.podChanged),
			engine.Reads("deployments.apps", apps.Deployments().Informer()),
			engine.Reads("replicasets.apps", apps.ReplicaSets().Informer()),
			engine.Reads("statefulsets.apps", apps.StatefulSets().Informer()),
			engine.Reads("replicationcontrollers", core.ReplicationControllers().Informer()),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	if old != nil && new != nil && maps.Equal(old.Labels, new.Labels) && workload.IsReady(old) == workload.IsReady(new) &&
		(old.DeletionTimestamp == nil) == (new.DeletionTimestamp == nil) && old.Status.Phase == new.Status.Phase {
		return
	}
	p := new
	if p == nil {
		p = old
	}
	all, err := c.budgets.PodDisruptionBudgets(p.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, b := range all {
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && (old != nil && sel.Matches(labels.Set(old.Labels)) || new != nil && sel.Matches(labels.Set(new.Labels))) {
			q.Add(b.Namespace + "/" + b.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	b, err := c.budgets.PodDisruptionBudgets(ns).Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	o := observed{budget: b, now: c.env.Clock.Now()}
	sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return fmt.Errorf("pod disruption budget %s: bad selector: %w", key, err)
	}
	if o.pods, err = c.pods.Pods(ns).List(sel); err != nil {
		return err
	}
	if len(o.pods) == 0 {
		c.env.Events.Event(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	o.scale, o.scaleErr = c.scale(o.pods)
	p := planBudget(o)
	if o.scaleErr != nil && p.status.Conditions[0].Reason == policyv1.SyncFailedReason {
		c.env.Events.Eventf(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed",
			"Failed to calculate the number of expected pods: %v", o.scaleErr)
	}
	for _, pod := range p.kept {
		c.env.Events.Eventf(pod, corev1.EventTypeWarning, "NotDeleted",
			"Pod was expected by PDB %s/%s to be deleted but it wasn't", ns, name)
	}
	if !equality.Semantic.DeepEqual(b.Status, p.status) {
		next := b.DeepCopy()
		next.Status = p.status
		// an update, not a patch: the resource version keeps an eviction admitted meanwhile from being lost
		if _, err := c.env.Client.PolicyV1().PodDisruptionBudgets(ns).UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	if p.again > 0 {
		return engine.Later(p.again)
	}
	return nil
}

// scale sums up what the owners of the Pods want, each owner once. Pods without an owner count
// for nothing.
func (c *controller) scale(pods []*corev1.Pod) (int32, error) {
	seen := map[types.UID]bool{}
	total := int32(0)
	for _, p := range pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil || seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		uid, n, err := c.scaleOf(p.Namespace, ref)
		if err != nil {
			return 0, err
		}
		if uid == ref.UID || !seen[uid] {
			total += n
		}
		seen[uid] = true
	}
	return total, nil
}

// scaleOf returns the replicas of the topmost owner behind ref, and its UID. An owner that is gone
// wants none.
func (c *controller) scaleOf(ns string, ref *metav1.OwnerReference) (types.UID, int32, error) {
	switch ref.Kind {
	case "ReplicaSet":
		rs, err := c.replicas.ReplicaSets(ns).Get(ref.Name)
		if err != nil || rs.UID != ref.UID {
			return ref.UID, 0, nil
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
			if d, err := c.deployments.Deployments(ns).Get(up.Name); err == nil && d.UID == up.UID {
				return d.UID, *d.Spec.Replicas, nil
			}
			return up.UID, 0, nil
		}
		return rs.UID, *rs.Spec.Replicas, nil
	case "StatefulSet":
		if s, err := c.stateful.StatefulSets(ns).Get(ref.Name); err == nil && s.UID == ref.UID {
			return s.UID, *s.Spec.Replicas, nil
		}
		return ref.UID, 0, nil
	case "ReplicationController":
		if rc, err := c.controllers.ReplicationControllers(ns).Get(ref.Name); err == nil && rc.UID == ref.UID {
			return rc.UID, *rc.Spec.Replicas, nil
		}
		return ref.UID, 0, nil
	}
	return "", 0, unknownOwner(ref)
}
