// Package unprivileged refuses privileged containers by validation, in every namespace: upstream's API server without
// --allow-privileged. Pod Security admission says the same for some namespaces, with levels between.
package unprivileged

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
)

// Restrict returns the list with copies of what holds pods, whose strategies refuse them.
func Restrict(list []*api.Resource) []*api.Resource {
	out := make([]*api.Resource, len(list))
	for i, r := range list {
		if out[i] = r; !holdsPods(r) {
			continue
		}
		one := *r
		if create := r.Strategy.Validate; create != nil {
			one.Strategy.Validate = func(ctx context.Context, obj api.Object) field.ErrorList {
				return append(create(ctx, obj), problems(obj)...)
			}
		}
		if update := r.Strategy.ValidateUpdate; update != nil && r.Name != "pods" { // a pod's containers stay as they are
			one.Strategy.ValidateUpdate = func(ctx context.Context, obj, old api.Object) field.ErrorList {
				return append(update(ctx, obj, old), problems(obj)...)
			}
		}
		one.Subresources = append([]api.Subresource(nil), r.Subresources...)
		for i := range one.Subresources {
			sub := &one.Subresources[i]
			if sub.Name != "ephemeralcontainers" || sub.View == nil || sub.View.ValidateUpdate == nil {
				continue
			}
			view, update := *sub.View, sub.View.ValidateUpdate
			view.ValidateUpdate = func(ctx context.Context, obj, old api.Object) field.ErrorList {
				list := update(ctx, obj, old)
				at := field.NewPath("spec", "ephemeralContainers")
				for i, c := range obj.(*corev1.Pod).Spec.EphemeralContainers {
					list = append(list, container(at.Index(i), c.SecurityContext)...)
				}
				return list
			}
			sub.View = &view
		}
		out[i] = &one
	}
	return out
}

func holdsPods(r *api.Resource) bool {
	switch r.Group + "/" + r.Name {
	case "/pods", "/podtemplates", "/replicationcontrollers", "apps/deployments", "apps/replicasets", "apps/daemonsets", "apps/statefulsets", "batch/jobs", "batch/cronjobs":
		return true
	}
	return false
}

// problems names the privileged containers of an object.
func problems(obj api.Object) field.ErrorList {
	spec, at := podSpec(obj)
	if spec == nil {
		return nil
	}
	var list field.ErrorList
	for i, c := range spec.InitContainers {
		list = append(list, container(at.Child("initContainers").Index(i), c.SecurityContext)...)
	}
	for i, c := range spec.Containers {
		list = append(list, container(at.Child("containers").Index(i), c.SecurityContext)...)
	}
	return list
}

func podSpec(obj api.Object) (*corev1.PodSpec, *field.Path) {
	template := field.NewPath("spec", "template", "spec")
	switch o := obj.(type) {
	case *corev1.Pod:
		return &o.Spec, field.NewPath("spec")
	case *corev1.PodTemplate:
		return &o.Template.Spec, field.NewPath("template", "spec")
	case *corev1.ReplicationController:
		if o.Spec.Template != nil {
			return &o.Spec.Template.Spec, template
		}
	case *appsv1.Deployment:
		return &o.Spec.Template.Spec, template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template.Spec, template
	case *appsv1.DaemonSet:
		return &o.Spec.Template.Spec, template
	case *appsv1.StatefulSet:
		return &o.Spec.Template.Spec, template
	case *batchv1.Job:
		return &o.Spec.Template.Spec, template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template.Spec, field.NewPath("spec", "jobTemplate", "spec", "template", "spec")
	}
	return nil, nil
}

func container(at *field.Path, sc *corev1.SecurityContext) field.ErrorList {
	if sc == nil || sc.Privileged == nil || !*sc.Privileged {
		return nil
	}
	return field.ErrorList{field.Forbidden(at.Child("securityContext", "privileged"), "disallowed by cluster policy")}
}
