// Package tainteviction deletes Pods from nodes with NoExecute taints they do not tolerate, or
// tolerate only for a time that has passed. The time counts from when this controller first saw the
// Pod on the tainted node.
package tainteviction

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

type controller struct {
	env      engine.Env
	pods     listers.PodLister
	podCache cache.SharedIndexInformer
	nodes    listers.NodeLister

	mu    sync.Mutex
	since map[string]start // Pods with their days numbered, by key
}

type start struct {
	uid types.UID
	at  time.Time
}

// New returns the taint eviction controller.
func New(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	c := &controller{env: env, pods: core.Pods().Lister(), podCache: core.Pods().Informer(),
		nodes: core.Nodes().Lister(), since: map[string]start{}}
	if err := workload.IndexByNode(c.podCache); err != nil {
		return nil, fmt.Errorf("taint eviction controller: index pods: %w", err)
	}
	return &engine.Controller{
		Name:    "taint-eviction-controller",
		Outputs: []engine.Resource{"pods", "pods/status"},
		Workers: 8,
		Sources: []engine.Source{
			engine.On("pods", c.podCache, c.podChanged),
			engine.On("nodes", core.Nodes().Informer(), c.nodeChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	switch {
	case new == nil:
		c.mu.Lock()
		delete(c.since, old.Namespace+"/"+old.Name)
		c.mu.Unlock()
	case new.Spec.NodeName == "", old != nil && old.UID == new.UID && old.Spec.NodeName == new.Spec.NodeName &&
		len(old.Spec.Tolerations) == len(new.Spec.Tolerations): // tolerations can only be added
	default:
		if n, err := c.nodes.Get(new.Spec.NodeName); err != nil || len(evicting(n)) > 0 {
			q.Add(new.Namespace + "/" + new.Name)
		}
	}
}

// nodeChanged wakes the node's Pods when its NoExecute taints have changed.
func (c *controller) nodeChanged(q engine.Queue, old, new *corev1.Node) {
	if new == nil || same(evicting(old), evicting(new)) {
		return
	}
	pods, err := workload.OnNode(c.podCache, new.Name)
	if err != nil {
		return
	}
	for _, p := range pods {
		q.Add(p.Namespace + "/" + p.Name)
	}
}

func same(a, b []corev1.Taint) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.Taint) bool { return x.MatchTaint(&y) && x.Value == y.Value })
}

// evicting returns the node's NoExecute taints.
func evicting(n *corev1.Node) []corev1.Taint {
	if n == nil {
		return nil
	}
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// forever is the time of a Pod that may stay.
const forever = time.Duration(-1)

// tolerated returns how long a Pod with these tolerations may stay with these taints: 0 if one is
// not tolerated, else the shortest tolerationSeconds used, or forever.
func tolerated(taints []corev1.Taint, tolerations []corev1.Toleration) time.Duration {
	if len(taints) == 0 {
		return forever
	}
	var shortest *int64
	for i := range taints {
		found := false
		for j := range tolerations {
			t := &tolerations[j]
			if !tolerates(t, &taints[i]) {
				continue
			}
			found = true
			if t.TolerationSeconds != nil && (shortest == nil || *t.TolerationSeconds < *shortest) {
				shortest = t.TolerationSeconds
			}
			break // the first match counts
		}
		if !found {
			return 0
		}
	}
	if shortest == nil {
		return forever
	}
	return time.Duration(max(0, *shortest)) * time.Second
}

func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", corev1.TolerationOpEqual:
		return t.Value == taint.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	p, err := c.pods.Pods(ns).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || p.DeletionTimestamp != nil || p.Spec.NodeName == "" {
		return err
	}
	n, err := c.nodes.Get(p.Spec.NodeName)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	stay := tolerated(evicting(n), p.Spec.Tolerations)
	if stay == forever {
		c.pardon(p, key)
		return nil
	}
	if left := stay - c.elapsed(p, key); left > 0 {
		return engine.Later(left)
	}
	return c.evict(ctx, p)
}

// elapsed returns for how long the Pod has been seen on its tainted node.
func (c *controller) elapsed(p *corev1.Pod, key string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.env.Clock.Now()
	s, ok := c.since[key]
	if !ok || s.uid != p.UID {
		s = start{uid: p.UID, at: now}
		c.since[key] = s
	}
	return now.Sub(s.at)
}

func (c *controller) pardon(p *corev1.Pod, key string) {
	c.mu.Lock()
	s, ok := c.since[key]
	delete(c.since, key)
	c.mu.Unlock()
	if ok && s.uid == p.UID {
		c.event(p, "Cancelling deletion of Pod %s/%s")
	}
}

func (c *controller) event(p *corev1.Pod, format string) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, Namespace: p.Namespace, UID: p.UID}
	c.env.Events.Eventf(ref, corev1.EventTypeNormal, "TaintManagerEviction", format, p.Namespace, p.Name)
}

func (c *controller) evict(ctx context.Context, p *corev1.Pod) error {
	c.event(p, "Marking for deletion Pod %s/%s")
	api := c.env.Client.CoreV1().Pods(p.Namespace)
	why := workload.DisruptionTarget(p, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
	if patch, changed := workload.StatusPatch(p, "", &why, c.env.Clock.Now()); changed {
		_, err := api.Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	err := api.Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
