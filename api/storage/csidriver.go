package storage

import (
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func csiDriverResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "csidrivers", Singular: "csidriver", Kind: "CSIDriver",
		Versions: []api.Version{api.Versioned[storagev1.CSIDriver, storagev1.CSIDriverList]("v1", defaultCSIDriver)},
		Strategy: api.Strategy{
			PrepareForUpdate: api.OnUpdate(func(d, old *storagev1.CSIDriver) {
				api.BumpGeneration(d, old, api.Changed(old.Spec.TokenRequests, d.Spec.TokenRequests) || api.Changed(old.Spec.RequiresRepublish, d.Spec.RequiresRepublish))
			}),
			Validate: api.Check(validateCSIDriver),
			ValidateUpdate: api.CheckUpdate(func(d, old *storagev1.CSIDriver) field.ErrorList {
				l := &check.List{Errors: validateCSIDriver(d)}
				l.Immutable(specPath.Child("attachedRequired"), d.Spec.AttachRequired, old.Spec.AttachRequired)
				l.Immutable(specPath.Child("volumeLifecycleModes"), d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes)
				return l.Errors
			}),
			Warnings: api.Warn(func(d, old *storagev1.CSIDriver) []string {
				if old != nil && !api.Changed(old.Spec.TokenRequests, d.Spec.TokenRequests) || len(d.Spec.TokenRequests) == 0 || d.Spec.ServiceAccountTokenInSecrets != nil {
					return nil
				}
				return []string{"spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"}
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: csiDriverColumns(),
		Cells:   api.Row(csiDriverCells),
	}
}

func defaultCSIDriver(d *storagev1.CSIDriver) {
	s := &d.Spec
	api.SetIfNil(&s.AttachRequired, true)
	api.SetIfNil(&s.PodInfoOnMount, false)
	api.SetIfNil(&s.StorageCapacity, false)
	api.SetIfNil(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	if len(s.VolumeLifecycleModes) == 0 {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
	api.SetIfNil(&s.RequiresRepublish, false)
	api.SetIfNil(&s.SELinuxMount, false)
	api.SetIfNil(&s.PreventPodSchedulingIfMissing, false)
}

func validateCSIDriver(d *storagev1.CSIDriver) field.ErrorList {
	l, s := &check.List{}, &d.Spec
	need := func(name string, set bool) {
		if !set {
			l.Required(specPath.Child(name), "")
		}
	}
	need("attachedRequired", s.AttachRequired != nil)
	need("podInfoOnMount", s.PodInfoOnMount != nil)
	need("storageCapacity", s.StorageCapacity != nil)
	if s.FSGroupPolicy != nil {
		check.OneOf(l, specPath.Child("fsGroupPolicy"), *s.FSGroupPolicy, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	}
	audiences := sets.Set[string]{}
	for i, t := range s.TokenRequests {
		at := specPath.Child("tokenRequests").Index(i)
		if audiences.Has(t.Audience) {
			l.Duplicate(at.Child("audience"), t.Audience)
			continue
		}
		audiences.Insert(t.Audience)
		switch e := t.ExpirationSeconds; {
		case e == nil:
		case *e < 10*60:
			l.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes")
		case *e > 1<<32:
			l.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds")
		}
	}
	for _, m := range s.VolumeLifecycleModes {
		check.OneOf(l, specPath.Child("volumeLifecycleModes"), m, storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)
	}
	if p := s.NodeAllocatableUpdatePeriodSeconds; p != nil && *p < 10 {
		l.Invalid(specPath.Child("nodeAllocatableUpdatePeriodSeconds"), *p, "must be greater than or equal to 10 seconds")
	}
	need("seLinuxMount", s.SELinuxMount != nil)
	return l.Errors
}

func csiDriverColumns() []metav1.TableColumnDefinition {
	doc := storagev1.CSIDriverSpec{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		api.Column("AttachRequired", "boolean", doc["attachRequired"]),
		api.Column("PodInfoOnMount", "boolean", doc["podInfoOnMount"]),
		api.Column("StorageCapacity", "boolean", doc["storageCapacity"]),
		api.Column("TokenRequests", "string", doc["tokenRequests"]),
		api.Column("RequiresRepublish", "boolean", doc["requiresRepublish"]),
		api.Column("Modes", "string", doc["volumeLifecycleModes"]),
		api.AgeColumn(),
	}
}

func csiDriverCells(d *storagev1.CSIDriver, now metav1.Time) []any {
	s, tokens := &d.Spec, "<unset>"
	if s.TokenRequests != nil {
		var list []string
		for _, t := range s.TokenRequests {
			list = append(list, t.Audience)
		}
		tokens = strings.Join(list, ",")
	}
	var modes []string
	for _, m := range s.VolumeLifecycleModes {
		modes = append(modes, string(m))
	}
	is := func(b *bool, unset bool) bool {
		if b == nil {
			return unset
		}
		return *b
	}
	return []any{
		d.Name, is(s.AttachRequired, true), is(s.PodInfoOnMount, false), is(s.StorageCapacity, false), tokens,
		is(s.RequiresRepublish, false), api.OrNone(modes), api.Age(d.CreationTimestamp, now),
	}
}
