// Package volumebinding binds PersistentVolumeClaims to PersistentVolumes and gives volumes back.
//
// A binding is made in four writes, the volume's first: whoever's claimRef is in it has it. Each is
// conditional on what was read, so a claim that another took the volume from looks again, and a
// binding that was interrupted is finished by the next look at either of the two.
package volumebinding

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-project/skiff/controller/engine"
)

// Indexes: claims that look for a volume by class, volumes by class and by the claim they are for.
const (
	waitingByClass = "volumebinding/waiting"
	byClass        = "volumebinding/class"
	byClaim        = "volumebinding/claim"
)

type binder struct {
	env     engine.Env
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
	// The same caches by the indexes above.
	claimIndex, volumeIndex cache.Indexer
}

// New returns the binder. Volumes are made and deleted by external provisioners: it tells them of
// the claims that are theirs.
func New(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	classes := env.Informers.Storage().V1().StorageClasses()
	claims, volumes := core.PersistentVolumeClaims(), core.PersistentVolumes()
	if err := claims.Informer().AddIndexers(cache.Indexers{waitingByClass: waitingClass}); err != nil {
		return nil, err
	}
	if err := volumes.Informer().AddIndexers(cache.Indexers{byClass: classOf, byClaim: claimOf}); err != nil {
		return nil, err
	}
	b := &binder{env: env, claims: claims.Lister(), volumes: volumes.Lister(), classes: classes.Lister(),
		claimIndex: claims.Informer().GetIndexer(), volumeIndex: volumes.Informer().GetIndexer()}
	return &engine.Controller{
		Name: "persistentvolume-binder-controller",
		Outputs: []engine.Resource{"persistentvolumes", "persistentvolumes/status",
			"persistentvolumeclaims", "persistentvolumeclaims/status"},
		Workers: 1, // claims compete for volumes: side by side they would only get in each other's way
		Sources: []engine.Source{
			engine.On("persistentvolumeclaims", claims.Informer(), onClaim),
			engine.On("persistentvolumes", volumes.Informer(), b.onVolume),
			engine.On("storageclasses.storage.k8s.io", classes.Informer(), b.onClass),
		},
		Reconcile: func(ctx context.Context, key string) error {
			if ns, name := engine.SplitKey(key); ns != "" {
				claim, err := b.claims.PersistentVolumeClaims(ns).Get(name)
				if err != nil {
					return engine.IgnoreNotFound(err)
				}
				return b.syncClaim(ctx, claim.DeepCopy())
			}
			volume, err := b.volumes.Get(key)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			return b.syncVolume(ctx, volume.DeepCopy())
		},
	}, nil
}

func waitingClass(obj any) ([]string, error) {
	if c, ok := obj.(*corev1.PersistentVolumeClaim); ok && c.Spec.VolumeName == "" {
		return []string{storagehelpers.GetPersistentVolumeClaimClass(c)}, nil
	}
	return nil, nil
}

func classOf(obj any) ([]string, error) {
	if v, ok := obj.(*corev1.PersistentVolume); ok && v.Spec.ClaimRef == nil {
		return []string{storagehelpers.GetPersistentVolumeClass(v)}, nil
	}
	return nil, nil
}

func claimOf(obj any) ([]string, error) {
	if v, ok := obj.(*corev1.PersistentVolume); ok && v.Spec.ClaimRef != nil {
		return []string{v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name}, nil
	}
	return nil, nil
}

func onClaim(q engine.Queue, old, new *corev1.PersistentVolumeClaim) {
	for _, c := range []*corev1.PersistentVolumeClaim{old, new} {
		if c != nil && c.Spec.VolumeName != "" {
			q.Add(c.Spec.VolumeName)
		}
	}
	if new != nil {
		q.Add(new.Namespace + "/" + new.Name)
	}
}

// onVolume looks at the volume, at its claim, and, when it is free, at the claims it may be for.
func (b *binder) onVolume(q engine.Queue, old, new *corev1.PersistentVolume) {
	for _, v := range []*corev1.PersistentVolume{old, new} {
		if v != nil && v.Spec.ClaimRef != nil {
			q.Add(v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name)
		}
	}
	if new == nil {
		if c := old.Spec.ClaimRef; c != nil {
			b.wake(q, "") // a claim may name a volume that is not there
		}
		return
	}
	q.Add(new.Name)
	if new.Spec.ClaimRef == nil && new.Status.Phase == corev1.VolumeAvailable {
		b.wake(q, storagehelpers.GetPersistentVolumeClass(new))
	}
}

func (b *binder) onClass(q engine.Queue, _, new *storagev1.StorageClass) {
	if new == nil {
		return
	}
	b.wake(q, new.Name)
	if isDefault(new) {
		b.wake(q, "")
	}
}

// wake looks at the claims of a class that have no volume.
func (b *binder) wake(q engine.Queue, class string) {
	waiting, _ := b.claimIndex.ByIndex(waitingByClass, class) // the index is there
	for _, obj := range waiting {
		c := obj.(*corev1.PersistentVolumeClaim)
		q.Add(c.Namespace + "/" + c.Name)
	}
}

// match finds the volume for a claim that names none: one that is meant for it, or the smallest
// large enough among those with the fewest access modes. nil: there is none.
func (b *binder) match(claim *corev1.PersistentVolumeClaim, delayed bool) (*corev1.PersistentVolume, error) {
	candidates, err := b.volumeIndex.ByIndex(byClaim, claim.Namespace+"/"+claim.Name)
	if err != nil {
		return nil, err
	}
	free, err := b.volumeIndex.ByIndex(byClass, storagehelpers.GetPersistentVolumeClaimClass(claim))
	if err != nil {
		return nil, err
	}
	byModes := map[string][]*corev1.PersistentVolume{}
	var order []string
	for _, obj := range append(slices.Clip(candidates), free...) {
		v := obj.(*corev1.PersistentVolume)
		if !storagehelpers.CheckAccessModes(claim, v) {
			continue
		}
		modes := slices.Sorted(slices.Values(v.Spec.AccessModes))
		key := fmt.Sprintf("%02d %v", len(modes), modes)
		if byModes[key] == nil {
			order = append(order, key)
		}
		byModes[key] = append(byModes[key], v)
	}
	slices.Sort(order)
	for _, key := range order {
		v, err := storagehelpers.FindMatchingVolume(claim, byModes[key], nil, nil, delayed, true)
		if v != nil || err != nil {
			return v, err
		}
	}
	return nil, nil
}

// suits says why a volume that a claim names cannot be its own, nil if it can.
func suits(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) error {
	wanted, has := c.Spec.Resources.Requests[corev1.ResourceStorage], v.Spec.Capacity[corev1.ResourceStorage]
	vac := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	switch {
	case has.Cmp(wanted) < 0:
		return fmt.Errorf("requested PV is too small")
	case storagehelpers.GetPersistentVolumeClass(v) != storagehelpers.GetPersistentVolumeClaimClass(c):
		return fmt.Errorf("storageClassName does not match")
	case vac(v.Spec.VolumeAttributesClassName) != vac(c.Spec.VolumeAttributesClassName):
		return fmt.Errorf("volumeAttributesClassName does not match")
	case storagehelpers.CheckVolumeModeMismatches(&c.Spec, &v.Spec):
		return fmt.Errorf("incompatible volumeMode")
	case !storagehelpers.CheckAccessModes(c, v):
		return fmt.Errorf("incompatible accessMode")
	}
	return nil
}

// provisioner is who makes volumes for the claim's class.
func (b *binder) provisioner(claim *corev1.PersistentVolumeClaim) (string, error) {
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	class, err := b.classes.Get(name)
	if apierrors.IsNotFound(err) {
		return "", apierrors.NewNotFound(storagev1.Resource("storageclass"), name)
	}
	if err != nil {
		return "", err
	}
	return class.Provisioner, nil
}

func isDefault(c *storagev1.StorageClass) bool {
	return c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" ||
		c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true"
}

// defaultClass is the newest of those marked so, by name among those of one age; "": there is none.
func (b *binder) defaultClass() string {
	var best *storagev1.StorageClass
	for _, obj := range b.allClasses() {
		if !isDefault(obj) {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&obj.CreationTimestamp) ||
			best.CreationTimestamp.Equal(&obj.CreationTimestamp) && obj.Name < best.Name {
			best = obj
		}
	}
	if best == nil {
		return ""
	}
	return best.Name
}
