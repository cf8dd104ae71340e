package apps

import (
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func replicaSetResource() *api.Resource {
	spec, status := appsv1.ReplicaSetSpec{}.SwaggerDoc(), appsv1.ReplicaSetStatus{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "replicasets", Singular: "replicaset", Kind: "ReplicaSet",
		ShortNames: []string{"rs"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions: []api.Version{api.Versioned[appsv1.ReplicaSet, appsv1.ReplicaSetList]("v1", func(r *appsv1.ReplicaSet) {
			api.SetIfNil(&r.Spec.Replicas, 1)
			podspec.DefaultPodTemplate(&r.Spec.Template)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(r *appsv1.ReplicaSet) {
				r.Status, r.Generation = appsv1.ReplicaSetStatus{}, 1
				core.DropTemplateFields(&r.Spec.Template, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(r, old *appsv1.ReplicaSet) {
				r.Status = old.Status
				core.DropTemplateFields(&r.Spec.Template, &old.Spec.Template)
				api.BumpGeneration(r, old, api.Changed(r.Spec, old.Spec))
			}),
			Validate: api.Check(validateReplicaSet),
			ValidateUpdate: api.CheckUpdate(func(r, old *appsv1.ReplicaSet) field.ErrorList {
				l := &check.List{Errors: validateReplicaSet(r)}
				l.Immutable(specPath.Child("selector"), r.Spec.Selector, old.Spec.Selector)
				return l.Errors
			}),
			Warnings: api.Warn(func(r, old *appsv1.ReplicaSet) []string {
				if old != nil && old.Generation == r.Generation {
					return nil
				}
				return templateWarnings(&r.Spec.Template)
			}),
		},
		Subresources: []api.Subresource{
			scale(func(r *appsv1.ReplicaSet) (**int32, *metav1.LabelSelector) { return &r.Spec.Replicas, r.Spec.Selector },
				func(r *appsv1.ReplicaSet) int32 { return r.Status.Replicas }),
			api.StatusView(func(r, old *appsv1.ReplicaSet) { r.Spec = old.Spec }, func(r, _ *appsv1.ReplicaSet) field.ErrorList {
				l, s := &check.List{}, &r.Status
				core.CheckReplicaCounts(l, statusPath, core.ReplicaCounts{
					All: s.Replicas, FullyLabeled: s.FullyLabeledReplicas, Ready: s.ReadyReplicas,
					Available: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration,
				})
				checkOptional(l, statusPath.Child("terminatingReplicas"), s.TerminatingReplicas)
				return l.Errors
			}),
		},
		Columns: append([]metav1.TableColumnDefinition{
			api.Column("Desired", "integer", spec["replicas"]),
			api.Column("Current", "integer", status["replicas"]),
			api.Column("Ready", "integer", status["readyReplicas"]),
			api.AgeColumn(),
		}, core.ContainerColumns(spec["selector"])...),
		Cells: api.Row(func(r *appsv1.ReplicaSet, now metav1.Time) []any {
			names, images := core.ContainerCells(r.Spec.Template.Spec.Containers)
			return []any{
				r.Name, int64(core.Replicas(r.Spec.Replicas)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
				api.Age(r.CreationTimestamp, now), names, images, metav1.FormatLabelSelector(r.Spec.Selector),
			}
		}),
	}
}

func validateReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	l, s := &check.List{}, &r.Spec
	l.Nonnegative(specPath.Child("replicas"), int64(core.Replicas(s.Replicas)))
	l.Nonnegative(specPath.Child("minReadySeconds"), int64(s.MinReadySeconds))
	checkSelector(l, s.Selector, &s.Template, "deployment", "invalid label selector")
	podspec.CheckPodTemplate(l, specPath.Child("template"), &s.Template)
	core.CheckRunsAlways(l, specPath.Child("template"), &s.Template, "activeDeadlineSeconds in ReplicaSet is not Supported")
	return l.Errors
}
