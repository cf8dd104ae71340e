package resource

import (
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func resourceClaimTemplateResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "resourceclaimtemplates", Singular: "resourceclaimtemplate", Kind: "ResourceClaimTemplate",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList]("v1", func(t *resourcev1.ResourceClaimTemplate) {
			defaultClaimSpec(&t.Spec.Spec)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(t *resourcev1.ResourceClaimTemplate) { dropClaimFields(&t.Spec.Spec) }),
			PrepareForUpdate: api.OnUpdate(func(t, _ *resourcev1.ResourceClaimTemplate) { dropClaimFields(&t.Spec.Spec) }),
			Validate: api.Check(func(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
				l := &check.List{}
				checkTemplate(l, t)
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(func(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
				l := &check.List{}
				checkTemplate(l, t)
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

func checkTemplate(l *check.List, t *resourcev1.ResourceClaimTemplate) {
	podspec.CheckTemplateMeta(l, specPath.Child("metadata"), &t.Spec.ObjectMeta)
	checkClaimSpec(l, specPath.Child("spec"), &t.Spec.Spec)
}
