package resource

import (
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func resourceClaimTemplateResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "resourceclaimtemplates", Singular: "resourceclaimtemplate", Kind: "ResourceClaimTemplate",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList]("v1", func(t *resourcev1.ResourceClaimTemplate) {
			defaultClaimSpec(&t.Spec.Spec)
		})},
		Strategy: api.Strategy{
			Validate: api.Check(func(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
				l := &check.List{}
				l.Annotations(specPath.Child("metadata", "annotations"), t.Spec.Annotations)
				l.Labels(specPath.Child("metadata", "labels"), t.Spec.Labels)
				checkClaimSpec(l, specPath.Child("spec"), &t.Spec.Spec)
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(func(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
				l := &check.List{}
				l.Immutable(specPath, t.Spec, old.Spec)
				return l.Errors
			}),
		},
		Columns: ageOnly(),
		Cells: api.Row(func(t *resourcev1.ResourceClaimTemplate, now metav1.Time) []any {
			return []any{t.Name, api.Age(t.CreationTimestamp, now)}
		}),
	}
}
