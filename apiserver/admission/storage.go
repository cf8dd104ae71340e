package admission

import (
	"context"
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// newestDefault returns the class marked as default by one of the annotations;
// of several the newest, then the first by name.
func newestDefault[T metav1.Object](classes []T, annotations ...string) (found T, ok bool) {
	marked := slices.DeleteFunc(classes, func(c T) bool {
		return !slices.ContainsFunc(annotations, func(a string) bool { return c.GetAnnotations()[a] == "true" })
	})
	if len(marked) == 0 {
		return found, false
	}
	return slices.MinFunc(marked, func(a, b T) int {
		if order := b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time); order != 0 {
			return order
		}
		return strings.Compare(a.GetName(), b.GetName())
	}), true
}

// defaultStorageClass gives claims without a class the default one.
type defaultStorageClass struct {
	noValidate
	read reader
}

func (defaultStorageClass) Name() string { return "DefaultStorageClass" }

func (p defaultStorageClass) Admit(_ context.Context, r *Request) error {
	pvc, ok := r.Object.(*corev1.PersistentVolumeClaim)
	if !ok || !r.is("", "persistentvolumeclaims") || r.Operation() != Create || hasClass(pvc) {
		return nil
	}
	classes, err := list[*storagev1.StorageClass](p.read, storagev1.GroupName, "storageclasses", "")
	if err != nil {
		return forbidden(r, err)
	}
	if class, ok := newestDefault(classes, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"); ok {
		name := class.Name
		pvc.Spec.StorageClassName = &name
	}
	return nil
}

func hasClass(pvc *corev1.PersistentVolumeClaim) bool {
	_, old := pvc.Annotations[corev1.BetaStorageClassAnnotation]
	return old || pvc.Spec.StorageClassName != nil
}

func className(pvc *corev1.PersistentVolumeClaim) string {
	if class, ok := pvc.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if pvc.Spec.StorageClassName != nil {
		return *pvc.Spec.StorageClassName
	}
	return ""
}

// storageObjectInUseProtection keeps volumes and claims until nothing uses
// them: a controller removes the finalizer then.
type storageObjectInUseProtection struct{ noValidate }

func (storageObjectInUseProtection) Name() string { return "StorageObjectInUseProtection" }

func (storageObjectInUseProtection) Admit(_ context.Context, r *Request) error {
	if r.Operation() != Create || r.Subresource != "" {
		return nil
	}
	finalizer := ""
	switch r.Object.(type) {
	case *corev1.PersistentVolume:
		finalizer = "kubernetes.io/pv-protection"
	case *corev1.PersistentVolumeClaim:
		finalizer = "kubernetes.io/pvc-protection"
	case *storagev1.VolumeAttributesClass:
		finalizer = "kubernetes.io/vac-protection"
	}
	if have := r.Object.GetFinalizers(); finalizer != "" && !slices.Contains(have, finalizer) {
		r.Object.SetFinalizers(append(slices.Clone(have), finalizer))
	}
	return nil
}

// persistentVolumeClaimResize lets a claim grow only where its class allows.
type persistentVolumeClaimResize struct {
	noAdmit
	read reader
}

func (persistentVolumeClaimResize) Name() string { return "PersistentVolumeClaimResize" }

func (p persistentVolumeClaimResize) Validate(_ context.Context, r *Request) error {
	pvc, ok := r.Object.(*corev1.PersistentVolumeClaim)
	old, ok2 := r.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !ok2 || !r.is("", "persistentvolumeclaims") {
		return nil
	}
	size, oldSize := pvc.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(oldSize) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		//lint:ignore ST1005 upstream's text
		return forbidden(r, errors.New("Only bound persistent volume claims can be expanded"))
	}
	class := className(pvc)
	if class != "" && class == className(old) {
		sc, err := get[*storagev1.StorageClass](p.read, storagev1.GroupName, "storageclasses", "", class)
		if err == nil && sc.AllowVolumeExpansion != nil && *sc.AllowVolumeExpansion {
			return nil
		}
	}
	return forbidden(r, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
}

// defaultIngressClass gives ingresses without a class the default one.
type defaultIngressClass struct {
	noValidate
	read reader
}

func (defaultIngressClass) Name() string { return "DefaultIngressClass" }

func (p defaultIngressClass) Admit(_ context.Context, r *Request) error {
	ingress, ok := r.Object.(*networkingv1.Ingress)
	if !ok || !r.is(networkingv1.GroupName, "ingresses") || r.Operation() != Create || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, ok := ingress.Annotations["kubernetes.io/ingress.class"]; ok {
		return nil
	}
	classes, err := list[*networkingv1.IngressClass](p.read, networkingv1.GroupName, "ingressclasses", "")
	if err != nil {
		return forbidden(r, err)
	}
	if class, ok := newestDefault(classes, networkingv1.AnnotationIsDefaultIngressClass); ok {
		name := class.Name
		ingress.Spec.IngressClassName = &name
	}
	return nil
}
