// Package volumeprotection keeps a deleted claim while Pods use it, a deleted volume while a claim
// is bound to it, and a deleted attributes class while either names it: it gives and takes the
// finalizers that hold them.
package volumeprotection

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/engine"
)

// The finalizers, which admission gives to new objects.
const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// NewClaims returns the controller of claims' protection.
func NewClaims(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	claims, pods := core.PersistentVolumeClaims(), core.Pods()
	reconcile := func(ctx context.Context, key string) error {
		ns, name := engine.SplitKey(key)
		claim, err := claims.Lister().PersistentVolumeClaims(ns).Get(name)
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		finalizers, change := plan(claim, claimFinalizer)
		if !change {
			return nil
		}
		if claim.DeletionTimestamp != nil {
			seen, err := pods.Lister().Pods(ns).List(labels.Everything())
			if err != nil || slices.ContainsFunc(seen, func(p *corev1.Pod) bool { return uses(p, name) }) {
				return err
			}
			// The cache may not have a Pod yet: only the API server's word lets data go.
			live, err := env.Client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
			if err != nil || slices.ContainsFunc(live.Items, func(p corev1.Pod) bool { return uses(&p, name) }) {
				return err
			}
		}
		claim = claim.DeepCopy()
		claim.Finalizers = finalizers
		_, err = env.Client.CoreV1().PersistentVolumeClaims(ns).Update(ctx, claim, metav1.UpdateOptions{})
		return engine.IgnoreNotFound(err)
	}
	return &engine.Controller{
		Name:    "persistentvolumeclaim-protection-controller",
		Outputs: []engine.Resource{"persistentvolumeclaims"},
		Sources: []engine.Source{
			engine.On("persistentvolumeclaims", claims.Informer(), func(q engine.Queue, _, new *corev1.PersistentVolumeClaim) {
				if new == nil {
					return
				}
				if _, change := plan(new, claimFinalizer); change {
					q.Add(new.Namespace + "/" + new.Name)
				}
			}),
			engine.On("pods", pods.Informer(), func(q engine.Queue, old, new *corev1.Pod) {
				// A claim may become free when a Pod goes, or another takes its name.
				if old != nil && (new == nil || new.UID != old.UID) {
					for _, name := range claimNames(old) {
						q.Add(old.Namespace + "/" + name)
					}
				}
			}),
		},
		Reconcile: reconcile,
	}, nil
}

// NewVolumes returns the controller of volumes' protection.
func NewVolumes(env engine.Env) (*engine.Controller, error) {
	volumes := env.Informers.Core().V1().PersistentVolumes()
	reconcile := func(ctx context.Context, name string) error {
		volume, err := volumes.Lister().Get(name)
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		finalizers, change := plan(volume, volumeFinalizer)
		if !change || volume.DeletionTimestamp != nil && volume.Status.Phase == corev1.VolumeBound {
			return nil
		}
		volume = volume.DeepCopy()
		volume.Finalizers = finalizers
		_, err = env.Client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{})
		return engine.IgnoreNotFound(err)
	}
	return &engine.Controller{
		Name:    "persistentvolume-protection-controller",
		Outputs: []engine.Resource{"persistentvolumes"},
		Sources: []engine.Source{
			engine.On("persistentvolumes", volumes.Informer(), func(q engine.Queue, _, new *corev1.PersistentVolume) {
				if new == nil {
					return
				}
				if _, change := plan(new, volumeFinalizer); change {
					q.Add(new.Name)
				}
			}),
		},
		Reconcile: reconcile,
	}, nil
}

// plan returns o's finalizers as they would be once it is free: without the one given when it is
// being deleted, with it otherwise. change is false if that is what o has.
func plan(o metav1.Object, finalizer string) (finalizers []string, change bool) {
	has := slices.Contains(o.GetFinalizers(), finalizer)
	switch {
	case o.GetDeletionTimestamp() != nil && has:
		return slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }), true
	case o.GetDeletionTimestamp() == nil && !has:
		return append(slices.Clone(o.GetFinalizers()), finalizer), true
	}
	return nil, false
}

// uses reports whether p keeps a claim. One not scheduled yet does not: the kubelet will not start
// a Pod whose claim is being deleted.
func uses(p *corev1.Pod, claim string) bool {
	return p.Spec.NodeName != "" && slices.Contains(claimNames(p), claim)
}

func claimNames(p *corev1.Pod) []string {
	var names []string
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, p.Name+"-"+v.Name)
		}
	}
	return names
}
