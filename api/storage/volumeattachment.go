package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func volumeAttachmentResource() *api.Resource {
	spec := storagev1.VolumeAttachmentSpec{}.SwaggerDoc()
	attacher := api.Column("Attacher", "string", spec["attacher"])
	attacher.Format = "name"
	return &api.Resource{
		Group: Group, Name: "volumeattachments", Singular: "volumeattachment", Kind: "VolumeAttachment",
		Versions: []api.Version{api.Versioned[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList]("v1", func(a *storagev1.VolumeAttachment) {
			if s := a.Spec.Source.InlineVolumeSpec; s != nil {
				core.DefaultVolumeSpec(s)
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(a *storagev1.VolumeAttachment) { a.Status = storagev1.VolumeAttachmentStatus{} }),
			PrepareForUpdate: api.OnUpdate(func(a, old *storagev1.VolumeAttachment) { a.Status = old.Status }),
			Validate:         api.Check(validateAttachment),
			ValidateUpdate: api.CheckUpdate(func(a, old *storagev1.VolumeAttachment) field.ErrorList {
				l := &check.List{Errors: validateAttachment(a)}
				l.Immutable(specPath, a.Spec, old.Spec)
				return l.Errors
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusView(func(a, old *storagev1.VolumeAttachment) {
			a.Spec = old.Spec
			api.KeepMetadata(a, old)
		}, nil)},
		Columns: []metav1.TableColumnDefinition{
			attacher,
			api.Column("PV", "string", storagev1.VolumeAttachmentSource{}.SwaggerDoc()["persistentVolumeName"]),
			api.Column("Node", "string", spec["nodeName"]),
			api.Column("Attached", "boolean", storagev1.VolumeAttachmentStatus{}.SwaggerDoc()["attached"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(a *storagev1.VolumeAttachment, now metav1.Time) []any {
			volume := ""
			if n := a.Spec.Source.PersistentVolumeName; n != nil {
				volume = *n
			}
			return []any{a.Name, a.Spec.Attacher, volume, a.Spec.NodeName, a.Status.Attached, api.Age(a.CreationTimestamp, now)}
		}),
	}
}

func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	l, src, at := &check.List{}, &a.Spec.Source, specPath.Child("source")
	podspec.CheckCSIDriverName(l, specPath.Child("attacher"), a.Spec.Attacher)
	const one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
	switch {
	case src.InlineVolumeSpec == nil && src.PersistentVolumeName == nil:
		l.Required(at, one)
	case src.InlineVolumeSpec != nil && src.PersistentVolumeName != nil:
		l.Forbidden(at, one)
	case src.PersistentVolumeName != nil:
		if *src.PersistentVolumeName == "" {
			l.Required(at.Child("persistentVolumeName"), "must specify non empty persistentVolumeName")
		}
		l.Messages(field.NewPath("spec.source.persistentVolumeName"), *src.PersistentVolumeName, apivalidation.NameIsDNSSubdomain(*src.PersistentVolumeName, false))
	case src.InlineVolumeSpec.CSI == nil:
		l.Required(at.Child("inlineVolumeSpec", "csi"), "has to be specified in the context of inline volumes")
	default:
		core.CheckCSIVolume(l, at.Child("inlineVolumeSpec", "csi"), src.InlineVolumeSpec.CSI)
	}
	l.Messages(specPath.Child("nodeName"), a.Spec.NodeName, apivalidation.NameIsDNSSubdomain(a.Spec.NodeName, false))
	return l.Errors
}
