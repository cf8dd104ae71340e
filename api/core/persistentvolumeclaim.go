package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

// claimVersion shows claims with a phase: upstream's server stores new ones without.
func claimVersion() api.Version {
	v := api.Versioned[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList]("v1", DefaultPersistentVolumeClaim)
	v.FromStorage = func(o api.Object) (api.Object, error) {
		api.SetIfEmpty(&o.(*corev1.PersistentVolumeClaim).Status.Phase, corev1.ClaimPending)
		return o, nil
	}
	return v
}

func persistentVolumeClaimResource() *api.Resource {
	return &api.Resource{
		Name: "persistentvolumeclaims", Singular: "persistentvolumeclaim", Kind: "PersistentVolumeClaim",
		ShortNames: []string{"pvc"},
		Namespaced: true,
		Versions:   []api.Version{claimVersion()},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *corev1.PersistentVolumeClaim) {
				c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
				dropForeignSource(&c.Spec)
				dropUnknownSource(&c.Spec)
				syncDataSources(&c.Spec)
			}),
			PrepareForUpdate: api.OnUpdate(func(c, old *corev1.PersistentVolumeClaim) {
				c.Status = old.Status
				if old.Spec.DataSourceRef == nil {
					dropForeignSource(&c.Spec)
				}
				if old.Spec.DataSource == nil && old.Spec.DataSourceRef == nil {
					dropUnknownSource(&c.Spec)
				}
				syncDataSources(&c.Spec)
			}),
			Validate: api.Check(func(c *corev1.PersistentVolumeClaim) field.ErrorList {
				l := &check.List{}
				podspec.CheckClaimSpec(l, specPath, &c.Spec)
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(validateClaimUpdate),
		},
		Subresources: []api.Subresource{
			api.StatusView(func(c, old *corev1.PersistentVolumeClaim) {
				c.Spec = old.Spec
				if old.Status.HealthStatus == nil {
					c.Status.HealthStatus = nil // its gate is off
				}
			}, validateClaimStatus),
		},
		Columns: claimColumns(),
		Cells:   api.Row(claimCells),
	}
}

// syncDataSources keeps dataSource and dataSourceRef alike for clients that know one.
func syncDataSources(s *corev1.PersistentVolumeClaimSpec) {
	switch src, ref := s.DataSource, s.DataSourceRef; {
	case src != nil && ref == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{Kind: src.Kind, Name: src.Name, APIGroup: src.APIGroup}
	case ref != nil && src == nil && (ref.Namespace == nil || *ref.Namespace == ""):
		s.DataSource = &corev1.TypedLocalObjectReference{Kind: ref.Kind, Name: ref.Name, APIGroup: ref.APIGroup}
	}
}

// dropForeignSource clears a dataSourceRef into another namespace, whose gate is off.
func dropForeignSource(s *corev1.PersistentVolumeClaimSpec) {
	if r := s.DataSourceRef; r != nil && r.Namespace != nil && *r.Namespace != "" {
		s.DataSourceRef = nil
	}
}

// dropUnknownSource clears a dataSource of a kind that always was ignored;
// dataSourceRef may name any kind.
func dropUnknownSource(s *corev1.PersistentVolumeClaimSpec) {
	d := s.DataSource
	if d == nil || s.DataSourceRef != nil {
		return
	}
	group := ""
	if d.APIGroup != nil {
		group = *d.APIGroup
	}
	claim := d.Kind == "PersistentVolumeClaim" && group == ""
	snapshot := d.Kind == "VolumeSnapshot" && group == "snapshot.storage.k8s.io"
	if !claim && !snapshot {
		s.DataSource = nil
	}
}

func validateClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	l := &check.List{}
	podspec.CheckClaimSpec(l, specPath, &c.Spec)
	now, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = now.VolumeName // set once, by the binder
	}
	const classKey = corev1.BetaStorageClassAnnotation
	if a, b := c.Annotations[classKey], old.Annotations[classKey]; a != b {
		l.Invalid(field.NewPath("metadata", "annotations", classKey), a, apivalidation.FieldImmutableErrorMsg)
	}
	if was.StorageClassName == nil && old.Annotations[classKey] == "" {
		now.StorageClassName = nil // a default class may come later
	}
	if c.Status.Phase == corev1.ClaimBound {
		if now.Resources.Requests != nil {
			now.Resources.Requests[corev1.ResourceStorage] = was.Resources.Requests[corev1.ResourceStorage]
		}
		now.VolumeAttributesClassName = was.VolumeAttributesClassName
	}
	if api.Changed(*now, *was) {
		l.Forbidden(specPath, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(*was, *now)))
	}
	size, before, got := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(before) < 0 && size.Cmp(got) <= 0 {
		l.Forbidden(specPath.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	l.Immutable(field.NewPath("volumeMode"), c.Spec.VolumeMode, old.Spec.VolumeMode)
	if old.Status.CurrentVolumeAttributesClassName != nil && api.Changed(old.Spec.VolumeAttributesClassName, c.Spec.VolumeAttributesClassName) {
		at, v := specPath.Child("volumeAttributesClassName"), c.Spec.VolumeAttributesClassName
		l.ForbidIf(at, v == nil, "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil")
		l.ForbidIf(at, v != nil && *v == "", "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil")
	}
	return l.Errors
}

func validateClaimStatus(c, _ *corev1.PersistentVolumeClaim) field.ErrorList {
	l := &check.List{}
	for name, q := range check.Sorted(c.Status.Capacity) {
		checkBasic(l, statusPath.Child("capacity").Key(string(name)), q)
	}
	at := statusPath.Child("allocatedResourceStatuses")
	for name, s := range check.Sorted(c.Status.AllocatedResourceStatuses) {
		checkClaimResource(l, at, name)
		states := []corev1.ClaimResourceStatus{
			corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
			corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizePending,
		}
		if !slices.Contains(states, s) {
			l.Errors = append(l.Errors, field.NotSupported(at, corev1.ClaimResourceStatus(name), states))
		}
	}
	at = statusPath.Child("allocatedResources")
	for name, q := range check.Sorted(c.Status.AllocatedResources) {
		if checkClaimResource(l, at, name) {
			checkBasic(l, at.Key(string(name)), q)
		}
	}
	return l.Errors
}

// checkBasic checks that a quantity is not negative, in the words of volumes.
func checkBasic(l *check.List, p *field.Path, q resource.Quantity) {
	if q.Value() < 0 {
		l.Invalid(p, q.Value(), "must be a valid resource quantity")
	}
}

// checkClaimResource checks the name of what a claim has resized: of Kubernetes' own there is just storage.
func checkClaimResource(l *check.List, p *field.Path, name corev1.ResourceName) bool {
	msgs := validation.IsQualifiedName(string(name))
	l.Messages(p, string(name), msgs)
	if len(msgs) == 0 && podspec.IsNative(name) && name != corev1.ResourceStorage {
		l.Errors = append(l.Errors, field.NotSupported(p, string(name), []corev1.ResourceName{corev1.ResourceStorage}))
		return false
	}
	return len(msgs) == 0
}

func claimColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.PersistentVolumeClaimSpec{}.SwaggerDoc(), corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		api.Column("Status", "string", status["phase"]),
		api.Column("Volume", "string", spec["volumeName"]),
		api.Column("Capacity", "string", status["capacity"]),
		api.Column("Access Modes", "string", status["accessModes"]),
		api.Column("StorageClass", "string", "StorageClass of the pvc"),
		api.Column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
		api.AgeColumn(),
		api.Wide("VolumeMode", spec["volumeMode"]),
	}
}

func claimCells(c *corev1.PersistentVolumeClaim, now metav1.Time) []any {
	phase, capacity, modes := string(c.Status.Phase), "", ""
	if c.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	if c.Spec.VolumeName != "" {
		q := c.Status.Capacity[corev1.ResourceStorage]
		capacity, modes = q.String(), shortModes(c.Status.AccessModes)
	}
	class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]
	if !ok && c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	return []any{
		c.Name, phase, c.Spec.VolumeName, capacity, modes, class,
		orUnset(c.Spec.VolumeAttributesClassName), api.Age(c.CreationTimestamp, now), orUnset(c.Spec.VolumeMode),
	}
}

func orUnset[T ~string](s *T) string {
	if s == nil {
		return "<unset>"
	}
	return string(*s)
}

// shortModes lists access modes by their short names, in the usual order.
func shortModes(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		for _, has := range modes {
			if has == m.mode {
				out = append(out, m.short)
				break
			}
		}
	}
	return strings.Join(out, ",")
}
