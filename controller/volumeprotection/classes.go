package volumeprotection

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/engine"
)

const classFinalizer = "kubernetes.io/vac-protection"

// NewClasses returns the controller of volume attributes classes' protection: a deleted class
// stays while a volume has it, or a claim has it or asks for it.
func NewClasses(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	classes, claims, volumes := env.Informers.Storage().V1().VolumeAttributesClasses(), core.PersistentVolumeClaims(), core.PersistentVolumes()
	reconcile := func(ctx context.Context, name string) error {
		class, err := classes.Lister().Get(name)
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
		finalizers, change := plan(class, classFinalizer)
		if !change {
			return nil
		}
		if class.DeletionTimestamp != nil {
			pvs, err := volumes.Lister().List(labels.Everything())
			if err != nil || slices.ContainsFunc(pvs, func(v *corev1.PersistentVolume) bool { return slices.Contains(volumeClasses(v), name) }) {
				return err
			}
			pvcs, err := claims.Lister().List(labels.Everything())
			if err != nil || slices.ContainsFunc(pvcs, func(c *corev1.PersistentVolumeClaim) bool { return slices.Contains(claimClasses(c), name) }) {
				return err
			}
		}
		class = class.DeepCopy()
		class.Finalizers = finalizers
		_, err = env.Client.StorageV1().VolumeAttributesClasses().Update(ctx, class, metav1.UpdateOptions{})
		return engine.IgnoreNotFound(err)
	}
	return &engine.Controller{
		Name:    "volumeattributesclass-protection-controller",
		Outputs: []engine.Resource{"volumeattributesclasses.storage.k8s.io"},
		Sources: []engine.Source{
			engine.On("volumeattributesclasses.storage.k8s.io", classes.Informer(), func(q engine.Queue, _, new *storagev1.VolumeAttributesClass) {
				if new == nil {
					return
				}
				if _, change := plan(new, classFinalizer); change {
					q.Add(new.Name)
				}
			}),
			engine.On("persistentvolumeclaims", claims.Informer(), func(q engine.Queue, old, new *corev1.PersistentVolumeClaim) {
				addFreed(q, claimClasses(old), claimClasses(new))
			}),
			engine.On("persistentvolumes", volumes.Informer(), func(q engine.Queue, old, new *corev1.PersistentVolume) {
				addFreed(q, volumeClasses(old), volumeClasses(new))
			}),
		},
		Reconcile: reconcile,
	}, nil
}

// addFreed asks for the classes an object named before and names no more.
func addFreed(q engine.Queue, before, now []string) {
	for _, name := range before {
		if !slices.Contains(now, name) {
			q.Add(name)
		}
	}
}

// claimClasses are the classes that c, which may be nil, has or asks for.
func claimClasses(c *corev1.PersistentVolumeClaim) []string {
	if c == nil {
		return nil
	}
	var names []string
	for _, name := range []*string{c.Spec.VolumeAttributesClassName, c.Status.CurrentVolumeAttributesClassName} {
		if name != nil && *name != "" {
			names = append(names, *name)
		}
	}
	if m := c.Status.ModifyVolumeStatus; m != nil && m.TargetVolumeAttributesClassName != "" {
		names = append(names, m.TargetVolumeAttributesClassName)
	}
	return names
}

func volumeClasses(v *corev1.PersistentVolume) []string {
	if v == nil || v.Spec.VolumeAttributesClassName == nil || *v.Spec.VolumeAttributesClassName == "" {
		return nil
	}
	return []string{*v.Spec.VolumeAttributesClassName}
}
