package volumebinding

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-project/skiff/controller/engine"
)

func (b *binder) event(of runtime.Object, kind, reason, message string) {
	b.env.Events.Event(of, kind, reason, message)
}

// cacheLag is when a claim looks again that saw a volume another has by now.
const cacheLag = 50 * time.Millisecond

func (b *binder) allClasses() []*storagev1.StorageClass {
	all, _ := b.classes.List(labels.Everything()) // a cache; it cannot fail
	return all
}

func (b *binder) syncClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	_, bound := claim.Annotations[storagehelpers.AnnBindCompleted]
	switch {
	case claim.DeletionTimestamp != nil && !bound:
		return nil
	case bound:
		return b.syncBound(ctx, claim)
	case claim.Spec.VolumeName != "":
		return b.syncNamed(ctx, claim)
	}
	delayed, err := storagehelpers.IsDelayBindingMode(claim, b.classes)
	if err != nil {
		return err
	}
	volume, err := b.match(claim, delayed)
	if err != nil {
		return fmt.Errorf("find a volume for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if volume != nil {
		return b.take(ctx, volume.Name, claim)
	}
	if claim.Spec.StorageClassName == nil && storagehelpers.GetPersistentVolumeClaimClass(claim) == "" {
		if class := b.defaultClass(); class != "" {
			claim.Spec.StorageClassName = &class
			_, err := b.env.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
			return engine.IgnoreNotFound(err)
		}
	}
	switch {
	case delayed && !storagehelpers.IsDelayBindingProvisioning(claim):
		b.event(claim, corev1.EventTypeNormal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case storagehelpers.GetPersistentVolumeClaimClass(claim) != "":
		return b.provision(ctx, claim)
	default:
		b.event(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	}
	return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
}

// take binds a volume that was found in the cache, which may not show yet what was bound a moment
// ago: a second volume, or another's, would be taken.
func (b *binder) take(ctx context.Context, name string, claim *corev1.PersistentVolumeClaim) error {
	core := b.env.Client.CoreV1()
	claim, err := core.PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	if err != nil || claim.Spec.VolumeName != "" {
		return engine.IgnoreNotFound(err)
	}
	volume, err := core.PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && volume.Spec.ClaimRef != nil && !storagehelpers.IsVolumeBoundToClaim(volume, claim):
		return engine.Later(cacheLag)
	case err != nil:
		return err
	}
	return b.bind(ctx, volume, claim)
}

// provision tells the class's provisioner that the claim is its own.
func (b *binder) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	name, err := b.provisioner(claim)
	if err == nil && strings.HasPrefix(name, "kubernetes.io/") {
		err = fmt.Errorf("no volume plugin matched name: %s", name)
	}
	if err != nil {
		b.event(claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
	}
	if claim.Annotations[storagehelpers.AnnStorageProvisioner] != name {
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storagehelpers.AnnBetaStorageProvisioner, name)
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storagehelpers.AnnStorageProvisioner, name)
		claim, err = b.env.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
		if err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	b.event(claim, corev1.EventTypeNormal, "ExternalProvisioning", fmt.Sprintf("Waiting for a volume to be created either by the "+
		"external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the "+
		"provisioner is running and correctly registered.", name))
	return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
}

// syncNamed is for a claim that names the volume it wants, and for a binding that was interrupted.
func (b *binder) syncNamed(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	volume, err := b.volumes.Get(claim.Spec.VolumeName)
	switch {
	case apierrors.IsNotFound(err):
		return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
	case err != nil:
		return err
	case storagehelpers.IsVolumeBoundToClaim(volume, claim):
		return b.bind(ctx, volume, claim)
	case volume.Spec.ClaimRef != nil:
		b.event(claim, corev1.EventTypeWarning, "FailedBinding", fmt.Sprintf("volume %q already bound to a different claim.", volume.Name))
		return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
	}
	if err := suits(volume, claim); err != nil {
		b.event(claim, corev1.EventTypeWarning, "VolumeMismatch", fmt.Sprintf("Cannot bind to requested volume %q: %s", volume.Name, err))
		return b.setClaim(ctx, claim, corev1.ClaimPending, nil)
	}
	return b.bind(ctx, volume, claim)
}

// syncBound finds out whether a bound claim still has its volume.
func (b *binder) syncBound(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	lost := func(message string) error {
		if claim.Status.Phase != corev1.ClaimLost {
			b.event(claim, corev1.EventTypeWarning, "ClaimLost", message)
		}
		return b.setClaim(ctx, claim, corev1.ClaimLost, nil)
	}
	if claim.Spec.VolumeName == "" {
		return lost("Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	volume, err := b.volumes.Get(claim.Spec.VolumeName)
	if apierrors.IsNotFound(err) {
		// Before so much is said, the API server is asked: the cache of volumes may be behind.
		volume, err = b.env.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	}
	switch {
	case apierrors.IsNotFound(err):
		return lost("Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case err != nil:
		return err
	case volume.Spec.ClaimRef == nil, volume.Spec.ClaimRef.UID == claim.UID:
		return b.bind(ctx, volume, claim)
	}
	if claim.Status.Phase != corev1.ClaimLost {
		b.event(claim, corev1.EventTypeWarning, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
	}
	return b.setClaim(ctx, claim, corev1.ClaimLost, nil)
}

// bind makes, or finishes, the binding; what is done already costs nothing.
func (b *binder) bind(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	core := b.env.Client.CoreV1()
	changed, dirty, err := storagehelpers.GetBindVolumeToClaim(volume, claim)
	if err != nil {
		return err
	}
	if dirty {
		if changed, err = core.PersistentVolumes().Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	if err := b.setVolume(ctx, changed, corev1.VolumeBound, ""); err != nil {
		return err
	}
	mine := claim.DeepCopy()
	if mine.Spec.VolumeName == "" {
		mine.Spec.VolumeName = volume.Name
		metav1.SetMetaDataAnnotation(&mine.ObjectMeta, storagehelpers.AnnBoundByController, "yes")
	}
	metav1.SetMetaDataAnnotation(&mine.ObjectMeta, storagehelpers.AnnBindCompleted, "yes")
	if !reflect.DeepEqual(mine, claim) {
		if mine, err = core.PersistentVolumeClaims(claim.Namespace).Update(ctx, mine, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	return b.setClaim(ctx, mine, corev1.ClaimBound, volume)
}

func (b *binder) syncVolume(ctx context.Context, volume *corev1.PersistentVolume) error {
	ref := volume.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return b.setVolume(ctx, volume, corev1.VolumeAvailable, "") // ref without UID: kept for a claim that comes
	}
	claim, err := b.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
	if apierrors.IsNotFound(err) || err == nil && claim.UID != ref.UID {
		// What follows may destroy data: only the API server's word counts.
		claim, err = b.env.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	}
	switch {
	case apierrors.IsNotFound(err), err == nil && claim.UID != ref.UID:
		return b.release(ctx, volume)
	case err != nil:
		return err
	case claim.Spec.VolumeName == volume.Name:
		return b.setVolume(ctx, volume, corev1.VolumeBound, "")
	case claim.Spec.VolumeName == "":
		if storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &volume.Spec) {
			b.event(volume, corev1.EventTypeWarning, "VolumeMismatch", fmt.Sprintf("Cannot bind PersistentVolume to requested "+
				"PersistentVolumeClaim %q due to incompatible volumeMode.", claim.Name))
		}
		return nil // the claim's turn
	}
	// The claim has another volume.
	_, ours := volume.Annotations[storagehelpers.AnnBoundByController]
	_, provisioned := volume.Annotations[storagehelpers.AnnDynamicallyProvisioned]
	if provisioned && volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return b.release(ctx, volume)
	}
	if ours {
		volume.Spec.ClaimRef = nil
		delete(volume.Annotations, storagehelpers.AnnBoundByController)
	} else {
		volume.Spec.ClaimRef.UID = "" // a person chose the claim's name
	}
	volume, err = b.env.Client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{})
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	return b.setVolume(ctx, volume, corev1.VolumeAvailable, "")
}

// release is for a volume whose claim is gone: what becomes of it is its policy. Deleting is for
// who made it; no kind of volume is deleted or scrubbed here.
func (b *binder) release(ctx context.Context, volume *corev1.PersistentVolume) error {
	if volume.Status.Phase != corev1.VolumeReleased && volume.Status.Phase != corev1.VolumeFailed {
		return b.setVolume(ctx, volume, corev1.VolumeReleased, "")
	}
	fail := func(reason, message string) error {
		if volume.Status.Phase == corev1.VolumeFailed {
			return nil
		}
		b.event(volume, corev1.EventTypeWarning, reason, message)
		return b.setVolume(ctx, volume, corev1.VolumeFailed, message)
	}
	_, provisioned := volume.Annotations[storagehelpers.AnnDynamicallyProvisioned]
	_, migrated := volume.Annotations[storagehelpers.AnnMigratedTo]
	switch policy := volume.Spec.PersistentVolumeReclaimPolicy; {
	case policy == corev1.PersistentVolumeReclaimRetain, provisioned, migrated:
		return nil
	case policy == corev1.PersistentVolumeReclaimRecycle:
		return fail("VolumeFailedRecycle", "No recycler plugin found for the volume!")
	default:
		return fail("VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", volume.Name))
	}
}

func (b *binder) setVolume(ctx context.Context, volume *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	if volume.Status.Phase == phase && volume.Status.Message == message {
		return nil
	}
	volume = volume.DeepCopy()
	volume.Status.Phase, volume.Status.Message = phase, message
	_, err := b.env.Client.CoreV1().PersistentVolumes().UpdateStatus(ctx, volume, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

// setClaim writes the phase, and of the volume (nil: none) what the claim has got.
func (b *binder) setClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, volume *corev1.PersistentVolume) error {
	was := claim.Status
	status := was.DeepCopy()
	status.Phase = phase
	if volume == nil {
		status.AccessModes, status.Capacity = nil, nil
	} else {
		status.AccessModes = volume.Spec.AccessModes
		if was.Phase != phase { // later it is the resizer's
			status.Capacity = corev1.ResourceList{corev1.ResourceStorage: volume.Spec.Capacity[corev1.ResourceStorage]}
			status.CurrentVolumeAttributesClassName = volume.Spec.VolumeAttributesClassName
		}
	}
	if reflect.DeepEqual(*status, was) {
		return nil
	}
	claim = claim.DeepCopy()
	claim.Status = *status
	_, err := b.env.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}
