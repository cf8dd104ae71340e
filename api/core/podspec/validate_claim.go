package podspec

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// CheckClaimSpec checks the spec of a volume claim wherever one stands.
func CheckClaimSpec(l *check.List, p *field.Path, s *corev1.PersistentVolumeClaimSpec) {
	if len(s.AccessModes) == 0 {
		l.Required(p.Child("accessModes"), "at least 1 access mode is required")
	}
	l.Selector(p.Child("selector"), s.Selector)
	CheckAccessModes(l, p.Child("accessModes"), s.AccessModes)
	at := p.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		l.Required(at, "")
	} else {
		l.PositiveQuantity(at, q)
	}
	if c := s.StorageClassName; c != nil && *c != "" {
		l.Messages(p.Child("storageClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))
	}
	if s.VolumeMode != nil {
		check.OneOf(l, p.Child("volumeMode"), *s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
	if d := s.DataSource; d != nil {
		checkDataSource(l, p.Child("dataSource"), d.Name, d.Kind, d.APIGroup)
	}
	ref := s.DataSourceRef
	if ref != nil {
		checkDataSource(l, p.Child("dataSourceRef"), ref.Name, ref.Kind, ref.APIGroup)
		if ref.Namespace != nil && *ref.Namespace != "" {
			l.Messages(p.Child("dataSourceRef", "namespace"), *ref.Namespace, apivalidation.ValidateNamespaceName(*ref.Namespace, false))
		}
	}
	if ref != nil && s.DataSource != nil {
		switch {
		case ref.Namespace != nil && *ref.Namespace != "":
			l.Invalid(p, p.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified")
		case ref.Name != s.DataSource.Name || ref.Kind != s.DataSource.Kind || api.Changed(ref.APIGroup, s.DataSource.APIGroup):
			l.Invalid(p, p.Child("dataSource"), "must match dataSourceRef")
		}
	}
	if c := s.VolumeAttributesClassName; c != nil && *c != "" {
		l.Messages(p.Child("volumeAttributesClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))
	}
}

// CheckAccessModes checks the access modes of a volume or claim.
func CheckAccessModes(l *check.List, p *field.Path, modes []corev1.PersistentVolumeAccessMode) {
	others := false
	for _, m := range modes {
		ok := check.OneOf(l, p, m, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
		others = others || ok && m != corev1.ReadWriteOncePod
	}
	l.ForbidIf(p, others && slices.Contains(modes, corev1.ReadWriteOncePod), "may not use ReadWriteOncePod with other access modes")
}

func checkDataSource(l *check.List, p *field.Path, name, kind string, group *string) {
	l.Text(p.Child("name"), name)
	l.Text(p.Child("kind"), kind)
	if group == nil || *group == "" {
		if kind != "PersistentVolumeClaim" {
			l.Invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
		}
		return
	}
	l.Messages(p.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group))
}
