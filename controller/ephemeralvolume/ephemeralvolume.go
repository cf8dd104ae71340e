// Package ephemeralvolume makes the claims of pods' ephemeral volumes. A claim belongs to its pod
// and goes with it.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"

	"github.com/skiff-project/skiff/controller/engine"
)

// New returns the controller. A claim of the right name that is another's is left alone; its pod
// waits for it to go.
func New(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	pods, claims := core.Pods(), core.PersistentVolumeClaims()
	return &engine.Controller{
		Name:    "ephemeral-volume-controller",
		Outputs: []engine.Resource{"persistentvolumeclaims"},
		Sources: []engine.Source{
			engine.On("pods", pods.Informer(), func(q engine.Queue, old, new *corev1.Pod) {
				if old == nil && slices.ContainsFunc(new.Spec.Volumes, func(v corev1.Volume) bool { return v.Ephemeral != nil }) {
					q.Add(new.Namespace + "/" + new.Name)
				}
			}),
			engine.On("persistentvolumeclaims", claims.Informer(), func(q engine.Queue, old, new *corev1.PersistentVolumeClaim) {
				if new == nil { // its pod may need another; a stranger's that is in the way is asked for again
					if owner := metav1.GetControllerOf(old); owner != nil && owner.Kind == "Pod" {
						q.Add(old.Namespace + "/" + owner.Name)
					}
				}
			}),
		},
		Reconcile: func(ctx context.Context, key string) error {
			ns, name := engine.SplitKey(key)
			pod, err := pods.Lister().Pods(ns).Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			if pod.DeletionTimestamp != nil {
				return nil
			}
			var errs []error
			for i := range pod.Spec.Volumes {
				vol := &pod.Spec.Volumes[i]
				if vol.Ephemeral == nil {
					continue
				}
				claim, err := claims.Lister().PersistentVolumeClaims(ns).Get(ephemeral.VolumeClaimName(pod, vol))
				if apierrors.IsNotFound(err) {
					_, err = env.Client.CoreV1().PersistentVolumeClaims(ns).Create(ctx, claimOf(pod, vol), metav1.CreateOptions{})
				} else if err == nil {
					err = ephemeral.VolumeIsForPod(pod, claim)
				}
				if err != nil {
					env.Events.Eventf(pod, corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", vol.Name, err)
					errs = append(errs, fmt.Errorf("pod %s, ephemeral volume %s: %w", key, vol.Name, err))
				}
			}
			return errors.Join(errs...)
		},
	}, nil
}

func claimOf(pod *corev1.Pod, vol *corev1.Volume) *corev1.PersistentVolumeClaim {
	template := vol.Ephemeral.VolumeClaimTemplate
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: ephemeral.VolumeClaimName(pod, vol), Labels: template.Labels, Annotations: template.Annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))},
		},
		Spec: template.Spec,
	}
}
