package core

import (
	"fmt"
	"path"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func persistentVolumeResource() *api.Resource {
	return &api.Resource{
		Name: "persistentvolumes", Singular: "persistentvolume", Kind: "PersistentVolume",
		ShortNames: []string{"pv"},
		Versions:   []api.Version{api.Versioned[corev1.PersistentVolume, corev1.PersistentVolumeList]("v1", defaultPersistentVolume)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(v *corev1.PersistentVolume) {
				now := metav1.Now()
				v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &now}
			}),
			PrepareForUpdate: api.OnUpdate(func(v, old *corev1.PersistentVolume) { v.Status = old.Status }),
			Validate:         api.Check(validateVolume),
			ValidateUpdate:   api.CheckUpdate(validateVolumeUpdate),
		},
		Subresources: []api.Subresource{api.StatusView(keepForVolumeStatus, nil)},
		Columns:      volumeColumns(),
		Cells:        api.Row(volumeCells),
	}
}

// keepForVolumeStatus notes when the phase changed, unless the client says it.
func keepForVolumeStatus(v, old *corev1.PersistentVolume) {
	v.Spec = old.Spec
	now, was := &v.Status, &old.Status
	switch {
	case now.LastPhaseTransitionTime != nil && api.Changed(now.LastPhaseTransitionTime, was.LastPhaseTransitionTime):
	case now.Phase == was.Phase:
		now.LastPhaseTransitionTime = was.LastPhaseTransitionTime
	default:
		t := metav1.Now()
		now.LastPhaseTransitionTime = &t
	}
}

func validateVolume(v *corev1.PersistentVolume) field.ErrorList {
	l := &check.List{}
	CheckVolumeSpec(l, specPath, &v.Spec)
	return l.Errors
}

// CheckVolumeSpec checks the spec of a persistent volume.
func CheckVolumeSpec(l *check.List, p *field.Path, s *corev1.PersistentVolumeSpec) {
	if len(s.AccessModes) == 0 {
		l.Required(p.Child("accessModes"), "")
	}
	podspec.CheckAccessModes(l, p.Child("accessModes"), s.AccessModes)
	at := p.Child("capacity")
	if len(s.Capacity) == 0 {
		l.Required(at, "")
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		l.Errors = append(l.Errors, field.NotSupported(at, s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for name, q := range check.Sorted(s.Capacity) {
		checkBasic(l, at.Key(string(name)), q)
		l.PositiveQuantity(at.Key(string(name)), q)
	}
	if s.PersistentVolumeReclaimPolicy != "" {
		check.OneOf(l, p.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
	}
	affine := checkVolumeAffinity(l, p.Child("nodeAffinity"), s.NodeAffinity)
	checkPersistentSource(l, p, s, affine)
	l.ForbidIf(p.Child("persistentVolumeReclaimPolicy"), s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle, "may not be 'recycle' for a hostPath mount of '/'")
	if s.StorageClassName != "" {
		l.Messages(p.Child("storageClassName"), s.StorageClassName, apivalidation.NameIsDNSSubdomain(s.StorageClassName, false))
	}
	if s.VolumeMode != nil {
		check.OneOf(l, p.Child("volumeMode"), *s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
	if c := s.VolumeAttributesClassName; c != nil {
		if *c == "" {
			l.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed")
		} else {
			l.Messages(p.Child("volumeAttributesClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))
		}
		if s.CSI == nil {
			l.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
}

// checkVolumeAffinity tells whether nodes are required.
func checkVolumeAffinity(l *check.List, p *field.Path, a *corev1.VolumeNodeAffinity) bool {
	switch {
	case a == nil:
		return false
	case a.Required == nil:
		l.Required(p.Child("required"), "must specify required node constraints")
	default:
		podspec.CheckNodeSelector(l, p.Child("required"), a.Required)
	}
	return true
}

func checkPersistentSource(l *check.List, p *field.Path, s *corev1.PersistentVolumeSpec, affine bool) {
	n, src := 0, reflect.ValueOf(s.PersistentVolumeSource)
	for i := range src.NumField() {
		if src.Field(i).IsNil() {
			continue
		}
		name, _, _ := strings.Cut(src.Type().Field(i).Tag.Get("json"), ",")
		at := p.Child(name)
		if n++; n > 1 {
			l.Forbidden(at, "may not specify more than 1 volume type")
			continue
		}
		switch v := src.Field(i).Interface().(type) {
		case *corev1.HostPathVolumeSource:
			podspec.CheckHostPath(l, at, v)
		case *corev1.NFSVolumeSource:
			podspec.CheckNFS(l, at, v)
		case *corev1.FCVolumeSource:
			podspec.CheckFC(l, at, v)
		case *corev1.LocalVolumeSource:
			if v.Path == "" {
				l.Required(at.Child("path"), "")
			} else {
				l.NoBacksteps(at.Child("path"), v.Path)
			}
			if !affine {
				l.Required(p.Child("nodeAffinity"), "Local volume requires node affinity")
			}
		case *corev1.CSIPersistentVolumeSource:
			CheckCSIVolume(l, at, v)
		case *corev1.ISCSIPersistentVolumeSource:
			l.Text(at.Child("targetPortal"), v.TargetPortal)
			podspec.CheckIQN(l, at.Child("iqn"), v.IQN)
			l.Range(at.Child("lun"), int64(v.Lun), 0, 255)
		}
	}
	if n == 0 {
		l.Required(p, "must specify a volume type")
	}
}

// CheckCSIVolume checks a volume that a CSI driver serves.
func CheckCSIVolume(l *check.List, p *field.Path, v *corev1.CSIPersistentVolumeSource) {
	podspec.CheckCSIDriverName(l, p.Child("driver"), v.Driver)
	l.Text(p.Child("volumeHandle"), v.VolumeHandle)
	for _, ref := range []struct {
		name string
		ref  *corev1.SecretReference
	}{
		{"controllerPublishSecretRef", v.ControllerPublishSecretRef}, {"controllerExpandSecretRef", v.ControllerExpandSecretRef},
		{"nodePublishSecretRef", v.NodePublishSecretRef}, {"nodeExpandSecretRef", v.NodeExpandSecretRef},
	} {
		if ref.ref != nil {
			l.Text(p.Child(ref.name, "name"), ref.ref.Name)
			if ref.ref.Name != "" {
				l.Subdomain(p.Child(ref.name, "name"), ref.ref.Name)
			}
			l.Text(p.Child(ref.name, "namespace"), ref.ref.Namespace)
			if ref.ref.Namespace != "" {
				l.Label(p.Child(ref.name, "namespace"), ref.ref.Namespace)
			}
		}
	}
}

func validateVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	l := &check.List{}
	l.Add(validateVolume(v))
	now, was := v.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource
	if was.CSI != nil && was.CSI.ControllerExpandSecretRef == nil && now.CSI != nil && now.CSI.ControllerExpandSecretRef != nil {
		now = *now.DeepCopy() // an expansion secret may be added later
		now.CSI.ControllerExpandSecretRef = nil
	}
	if api.Changed(now, was) {
		l.Forbidden(specPath.Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(was, now)))
	}
	l.Immutable(field.NewPath("volumeMode"), v.Spec.VolumeMode, old.Spec.VolumeMode)
	if old.Spec.NodeAffinity != nil && api.Changed(v.Spec.NodeAffinity, old.Spec.NodeAffinity) {
		l.Invalid(field.NewPath("nodeAffinity"), v.Spec.NodeAffinity, apivalidation.FieldImmutableErrorMsg+", except for updating from beta label to GA")
	}
	l.ForbidIf(specPath.Child("volumeAttributesClassName"), old.Spec.VolumeAttributesClassName != nil && v.Spec.VolumeAttributesClassName == nil, "update from non-nil value to nil is forbidden")
	return l.Errors
}

func volumeColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		api.Column("Capacity", "string", spec["capacity"]),
		api.Column("Access Modes", "string", spec["accessModes"]),
		api.Column("Reclaim Policy", "string", spec["persistentVolumeReclaimPolicy"]),
		api.Column("Status", "string", status["phase"]),
		api.Column("Claim", "string", spec["claimRef"]),
		api.Column("StorageClass", "string", "StorageClass of the pv"),
		api.Column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
		api.Column("Reason", "string", status["reason"]),
		api.AgeColumn(),
		api.Wide("VolumeMode", spec["volumeMode"]),
	}
}

func volumeCells(v *corev1.PersistentVolume, now metav1.Time) []any {
	phase, claim := string(v.Status.Phase), ""
	if v.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]
	if !ok {
		class = v.Spec.StorageClassName
	}
	q := v.Spec.Capacity[corev1.ResourceStorage]
	return []any{
		v.Name, q.String(), shortModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim, class,
		orUnset(v.Spec.VolumeAttributesClassName), v.Status.Reason, api.Age(v.CreationTimestamp, now), orUnset(v.Spec.VolumeMode),
	}
}
