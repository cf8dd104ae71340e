// Package podgc removes Pods nobody else will: those bound to a node that no longer exists, those
// being deleted that were never scheduled, those being deleted on a node marked out of service, and
// the oldest finished ones beyond a threshold.
//
// Each rule is woken by the change that makes it apply (a node or Pod event), not by a timer; only
// the quarantine of a vanished node is waited out.
package podgc

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

const (
	quarantine = 40 * time.Second // a node may come back under its name
	batch      = 20 * time.Second // how long finished Pods are collected before they are counted

	finishedKey = "finished"
	nodePrefix  = "node:" // then the node's name
	podPrefix   = "pod:"  // then namespace/name
)

type controller struct {
	env       engine.Env
	threshold int
	pods      listers.PodLister
	podCache  cache.SharedIndexInformer
	nodes     listers.NodeLister
}

// New returns the Pod garbage collector; it keeps threshold finished Pods (0 keeps all).
func New(env engine.Env, threshold int) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	c := &controller{env: env, threshold: threshold, pods: core.Pods().Lister(),
		podCache: core.Pods().Informer(), nodes: core.Nodes().Lister()}
	if err := workload.IndexByNode(c.podCache); err != nil {
		return nil, err
	}
	return &engine.Controller{
		Name:    "pod-garbage-collector-controller",
		Outputs: []engine.Resource{"pods", "pods/status"},
		Workers: 2,
		Sources: []engine.Source{
			engine.On("pods", c.podCache, c.podChanged),
			engine.On("nodes", core.Nodes().Informer(), c.nodeChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	if new == nil {
		return
	}
	if new.DeletionTimestamp != nil && (old == nil || old.DeletionTimestamp == nil) {
		q.Add(podPrefix + new.Namespace + "/" + new.Name)
	}
	if workload.IsFinished(new) && (old == nil || !workload.IsFinished(old)) && c.threshold > 0 {
		q.AddAfter(finishedKey, batch)
	}
	if new.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == "") {
		if _, err := c.nodes.Get(new.Spec.NodeName); apierrors.IsNotFound(err) {
			q.AddAfter(nodePrefix+new.Spec.NodeName, quarantine)
		}
	}
}

func (c *controller) nodeChanged(q engine.Queue, old, new *corev1.Node) {
	switch {
	case new == nil:
		q.AddAfter(nodePrefix+old.Name, quarantine)
	case outOfService(new):
		q.Add(nodePrefix + new.Name)
	}
}

func outOfService(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	if node, ok := strings.CutPrefix(key, nodePrefix); ok {
		return c.node(ctx, node)
	}
	if pod, ok := strings.CutPrefix(key, podPrefix); ok {
		ns, name := engine.SplitKey(pod)
		p, err := c.pods.Pods(ns).Get(name)
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		return c.terminating(ctx, p)
	}
	all, err := c.pods.List(labels.Everything())
	if err != nil {
		return err
	}
	victims := surplus(all, c.threshold)
	return workload.AtOnce(len(victims), func(i int) error { return c.remove(ctx, victims[i], nil) })
}

// terminating removes a Pod being deleted that no kubelet will finish.
func (c *controller) terminating(ctx context.Context, p *corev1.Pod) error {
	if p.DeletionTimestamp == nil {
		return nil
	}
	if p.Spec.NodeName == "" {
		return c.remove(ctx, p, nil)
	}
	if n, err := c.nodes.Get(p.Spec.NodeName); err == nil && outOfService(n) {
		return c.remove(ctx, p, nil)
	}
	return nil
}

// node removes the Pods of a node that is gone, and the terminating ones of one out of service.
func (c *controller) node(ctx context.Context, name string) error {
	pods, err := workload.OnNode(c.podCache, name)
	if err != nil || len(pods) == 0 {
		return err
	}
	if n, err := c.nodes.Get(name); err == nil {
		if !outOfService(n) {
			return nil
		}
		return workload.AtOnce(len(pods), func(i int) error { return c.terminating(ctx, pods[i]) })
	}
	// the cache may be wrong, and this loses work: ask
	_, err = c.env.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	return workload.AtOnce(len(pods), func(i int) error {
		why := workload.DisruptionTarget(pods[i], "DeletionByPodGC", "PodGC: node no longer exists")
		return c.remove(ctx, pods[i], &why)
	})
}

// surplus picks the finished Pods beyond threshold: evicted ones first, then the oldest.
func surplus(pods []*corev1.Pod, threshold int) []*corev1.Pod {
	done := workload.Filter(pods, workload.IsFinished)
	n := len(done) - threshold
	if n <= 0 || threshold <= 0 {
		return nil
	}
	slices.SortFunc(done, func(a, b *corev1.Pod) int {
		ea, eb := a.Status.Reason == "Evicted", b.Status.Reason == "Evicted"
		if ea != eb {
			if ea {
				return -1
			}
			return 1
		}
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return done[:n]
}

// remove marks p failed unless it has finished, then deletes it without grace.
func (c *controller) remove(ctx context.Context, p *corev1.Pod, cond *corev1.PodCondition) error {
	api := c.env.Client.CoreV1().Pods(p.Namespace)
	if !workload.IsFinished(p) {
		patch, _ := workload.StatusPatch(p, corev1.PodFailed, cond, c.env.Clock.Now())
		_, err := api.Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	opts := metav1.NewDeleteOptions(0)
	opts.Preconditions = metav1.NewUIDPreconditions(string(p.UID))
	err := api.Delete(ctx, p.Name, *opts)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
