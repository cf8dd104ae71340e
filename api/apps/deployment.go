package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func deploymentResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "deployments", Singular: "deployment", Kind: "Deployment",
		ShortNames: []string{"deploy"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[appsv1.Deployment, appsv1.DeploymentList]("v1", defaultDeployment)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(d *appsv1.Deployment) {
				d.Status, d.Generation = appsv1.DeploymentStatus{}, 1
				core.DropTemplateFields(&d.Spec.Template, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(d, old *appsv1.Deployment) {
				d.Status = old.Status
				core.DropTemplateFields(&d.Spec.Template, &old.Spec.Template)
				api.BumpGeneration(d, old, api.Changed(d.Spec, old.Spec) || api.Changed(d.Annotations, old.Annotations))
			}),
			Validate: api.Check(validateDeployment),
			ValidateUpdate: api.CheckUpdate(func(d, old *appsv1.Deployment) field.ErrorList {
				l := &check.List{Errors: validateDeployment(d)}
				l.Immutable(specPath.Child("selector"), d.Spec.Selector, old.Spec.Selector)
				return l.Errors
			}),
			Warnings: api.Warn(func(d, old *appsv1.Deployment) []string {
				if old != nil && old.Generation == d.Generation {
					return nil
				}
				return templateWarnings(&d.Spec.Template)
			}),
		},
		Subresources: []api.Subresource{
			scale(func(d *appsv1.Deployment) (**int32, *metav1.LabelSelector) { return &d.Spec.Replicas, d.Spec.Selector },
				func(d *appsv1.Deployment) int32 { return d.Status.Replicas }),
			deploymentStatus(),
		},
		Columns: deploymentColumns(),
		Cells: api.Row(func(d *appsv1.Deployment, now metav1.Time) []any {
			names, images := core.ContainerCells(d.Spec.Template.Spec.Containers)
			return []any{
				d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, core.Replicas(d.Spec.Replicas)), int64(d.Status.UpdatedReplicas),
				int64(d.Status.AvailableReplicas), api.Age(d.CreationTimestamp, now), names, images, selectorText(d.Spec.Selector),
			}
		}),
	}
}

func deploymentColumns() []metav1.TableColumnDefinition {
	status := appsv1.DeploymentStatus{}.SwaggerDoc()
	return append([]metav1.TableColumnDefinition{
		api.Column("Ready", "string", "Number of the pod with ready state"),
		api.Column("Up-to-date", "string", status["updatedReplicas"]),
		api.Column("Available", "string", status["availableReplicas"]),
		api.AgeColumn(),
	}, core.ContainerColumns(appsv1.DeploymentSpec{}.SwaggerDoc()["selector"])...)
}

func defaultDeployment(d *appsv1.Deployment) {
	api.SetIfNil(&d.Spec.Replicas, 1)
	s := &d.Spec.Strategy
	if s.Type == "" {
		s.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Type == appsv1.RollingUpdateDeploymentStrategyType {
		api.SetIfNil(&s.RollingUpdate, appsv1.RollingUpdateDeployment{})
		api.SetIfNil(&s.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		api.SetIfNil(&s.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	api.SetIfNil(&d.Spec.RevisionHistoryLimit, 10)
	api.SetIfNil(&d.Spec.ProgressDeadlineSeconds, 600)
	podspec.DefaultPodTemplate(&d.Spec.Template)
}

func validateDeployment(d *appsv1.Deployment) field.ErrorList {
	l, s := &check.List{}, &d.Spec
	l.Nonnegative(specPath.Child("replicas"), int64(core.Replicas(s.Replicas)))
	checkSelector(l, s.Selector, &s.Template, "deployment", "invalid label selector")
	podspec.CheckPodTemplate(l, specPath.Child("template"), &s.Template)
	core.CheckRunsAlways(l, specPath.Child("template"), &s.Template, "activeDeadlineSeconds in ReplicaSet is not Supported")
	checkDeploymentStrategy(l, specPath.Child("strategy"), &s.Strategy)
	l.Nonnegative(specPath.Child("minReadySeconds"), int64(s.MinReadySeconds))
	checkOptional(l, specPath.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)
	checkOptional(l, specPath.Child("progressDeadlineSeconds"), s.ProgressDeadlineSeconds)
	if p := s.ProgressDeadlineSeconds; p != nil && *p <= s.MinReadySeconds {
		l.Invalid(specPath.Child("progressDeadlineSeconds"), p, "must be greater than minReadySeconds")
	}
	return l.Errors
}

func checkDeploymentStrategy(l *check.List, p *field.Path, s *appsv1.DeploymentStrategy) {
	at := p.Child("rollingUpdate")
	switch {
	case s.Type == appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			l.Forbidden(at, "may not be specified when strategy `type` is 'Recreate'")
		}
	case s.Type != appsv1.RollingUpdateDeploymentStrategyType:
		l.Errors = append(l.Errors, field.NotSupported(p, s, []string{"Recreate", "RollingUpdate"}))
	case s.RollingUpdate == nil:
		l.Required(at, "this should be defaulted and never be nil")
	default:
		capped := &check.List{} // upstream tells of the cap last
		unavailable := l.IntOrPercent(at.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, false)
		surge := l.IntOrPercent(at.Child("maxSurge"), s.RollingUpdate.MaxSurge, false)
		if unavailable == 0 && surge == 0 {
			l.Invalid(at.Child("maxUnavailable"), *s.RollingUpdate.MaxUnavailable, "may not be 0 when `maxSurge` is 0")
		}
		capped.IntOrPercent(at.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, true)
		for _, e := range capped.Errors {
			if e.Detail == "must not be greater than 100%" {
				l.Errors = append(l.Errors, e)
			}
		}
	}
}

func validateDeploymentStatus(d, old *appsv1.Deployment) field.ErrorList {
	l, s := &check.List{}, &d.Status
	l.Nonnegative(statusPath.Child("observedGeneration"), s.ObservedGeneration)
	l.Nonnegative(statusPath.Child("replicas"), int64(s.Replicas))
	l.Nonnegative(statusPath.Child("updatedReplicas"), int64(s.UpdatedReplicas))
	l.Nonnegative(statusPath.Child("readyReplicas"), int64(s.ReadyReplicas))
	l.Nonnegative(statusPath.Child("availableReplicas"), int64(s.AvailableReplicas))
	l.Nonnegative(statusPath.Child("unavailableReplicas"), int64(s.UnavailableReplicas))
	checkOptional(l, statusPath.Child("terminatingReplicas"), s.TerminatingReplicas)
	checkCollisions(l, s.CollisionCount, old.Status.CollisionCount)
	notMore(l, "updatedReplicas", s.UpdatedReplicas, s.Replicas, "status.replicas")
	notMore(l, "readyReplicas", s.ReadyReplicas, s.Replicas, "status.replicas")
	notMore(l, "availableReplicas", s.AvailableReplicas, s.Replicas, "status.replicas")
	notMore(l, "availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "readyReplicas")
	return l.Errors
}

func deploymentStatus() api.Subresource {
	s := api.StatusView(func(d, old *appsv1.Deployment) { d.Spec, d.Labels = old.Spec, old.Labels }, validateDeploymentStatus)
	s.View.Reset = []string{"metadata.labels"}
	return s
}
