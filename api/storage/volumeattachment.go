package storage

import (
	"math"

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
			Validate: api.Check(func(a *storagev1.VolumeAttachment) field.ErrorList {
				return validateAttachment(a, (*check.List).DriverName)
			}),
			ValidateUpdate: api.CheckUpdate(func(a, old *storagev1.VolumeAttachment) field.ErrorList {
				l := &check.List{Errors: validateAttachment(a, podspec.CheckCSIDriverName)}
				l.Immutable(specPath, a.Spec, old.Spec)
				return l.Errors
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(a, old *storagev1.VolumeAttachment) { a.Spec = old.Spec }, func(a, _ *storagev1.VolumeAttachment) field.ErrorList {
			return validateAttachment(a, podspec.CheckCSIDriverName)
		})},
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

// validateAttachment checks an attachment; name is the rule for its attacher, whose words differ from create to update.
func validateAttachment(a *storagev1.VolumeAttachment, name func(*check.List, *field.Path, string)) field.ErrorList {
	l, src, at := &check.List{}, &a.Spec.Source, specPath.Child("source")
	name(l, specPath.Child("attacher"), a.Spec.Attacher)
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
	checkAttachmentStatus(l, field.NewPath("status"), &a.Status)
	return l.Errors
}

// Limits of an attachment's status, in bytes.
const (
	maxAttachmentMetadata = 256 * 1024
	maxErrorMessage       = 1024
)

func checkAttachmentStatus(l *check.List, p *field.Path, s *storagev1.VolumeAttachmentStatus) {
	size := 0
	for k, v := range s.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxAttachmentMetadata {
		l.TooLong(p.Child("attachmentMetadata"), maxAttachmentMetadata)
	}
	for at, e := range map[string]*storagev1.VolumeError{"attachError": s.AttachError, "detachError": s.DetachError} {
		if e != nil && len(e.Message) > maxErrorMessage {
			l.TooLong(p.Child(at, "message"), maxErrorMessage)
		}
		if e != nil && e.ErrorCode != nil {
			l.Range(p.Child(at, "errorCode"), int64(*e.ErrorCode), 0, math.MaxInt32)
		}
	}
}
