package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func podTemplateResource() *api.Resource {
	validate := func(t *corev1.PodTemplate) field.ErrorList {
		l := &check.List{}
		podspec.CheckPodTemplate(l, field.NewPath("template"), &t.Template)
		return l.Errors
	}
	return &api.Resource{
		Name: "podtemplates", Singular: "podtemplate", Kind: "PodTemplate",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[corev1.PodTemplate, corev1.PodTemplateList]("v1", func(t *corev1.PodTemplate) {
			podspec.DefaultPodTemplate(&t.Template)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(t *corev1.PodTemplate) {
				t.Generation = 1
				DropTemplateFields(&t.Template, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(t, old *corev1.PodTemplate) {
				DropTemplateFields(&t.Template, &old.Template)
				api.BumpGeneration(t, old, api.Changed(t.Template, old.Template))
			}),
			Validate:       api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(t, _ *corev1.PodTemplate) field.ErrorList { return validate(t) }),
			Warnings: api.Warn(func(t, old *corev1.PodTemplate) []string {
				if old != nil && old.Generation == t.Generation {
					return nil
				}
				return podspec.PodTemplateWarnings(&t.Template.ObjectMeta, &t.Template.Spec, field.NewPath("template"))
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Containers", "string", "Names of each container in the template."),
			api.Column("Images", "string", "Images referenced by each container in the template."),
			api.Column("Pod Labels", "string", "The labels for the pod template."),
		},
		Cells: api.Row(func(t *corev1.PodTemplate, _ metav1.Time) []any {
			names, images := ContainerCells(t.Template.Spec.Containers)
			return []any{t.Name, names, images, labels.FormatLabels(t.Template.Labels)}
		}),
	}
}
