package unprivileged_test

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/api/unprivileged"
)

const denied = ".securityContext.privileged: Forbidden: disallowed by cluster policy"

func TestPrivilegedContainers(t *testing.T) {
	yes, no := true, false
	spec := corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "i", SecurityContext: &corev1.SecurityContext{Privileged: &no}}},
		Containers:     []corev1.Container{{Name: "a"}, {Name: "b", SecurityContext: &corev1.SecurityContext{Privileged: &yes}}},
	}
	template := corev1.PodTemplateSpec{Spec: spec}
	list := unprivileged.Restrict(all.Resources())
	find := func(list []*api.Resource, name string) *api.Resource {
		i := slices.IndexFunc(list, func(r *api.Resource) bool { return r.Name == name })
		return list[i]
	}
	for name, c := range map[string]struct {
		obj api.Object
		at  string
	}{
		"pods":                   {&corev1.Pod{Spec: spec}, "spec"},
		"podtemplates":           {&corev1.PodTemplate{Template: template}, "template.spec"},
		"replicationcontrollers": {&corev1.ReplicationController{Spec: corev1.ReplicationControllerSpec{Template: &template}}, "spec.template.spec"},
		"deployments":            {&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: template}}, "spec.template.spec"},
		"replicasets":            {&appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Template: template}}, "spec.template.spec"},
		"daemonsets":             {&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: template}}, "spec.template.spec"},
		"statefulsets":           {&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Template: template}}, "spec.template.spec"},
		"jobs":                   {&batchv1.Job{Spec: batchv1.JobSpec{Template: template}}, "spec.template.spec"},
		"cronjobs":               {&batchv1.CronJob{Spec: batchv1.CronJobSpec{JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}}, "spec.jobTemplate.spec.template.spec"},
	} {
		said := func(list []*api.Resource) bool {
			for _, err := range find(list, name).Strategy.Validate(t.Context(), c.obj) {
				if err.Error() == c.at+".containers[1]"+denied {
					return true
				}
			}
			return false
		}
		if !said(list) || said(all.Resources()) {
			t.Errorf("%s: refused %v, by others %v", name, said(list), said(all.Resources()))
		}
	}
	pods := find(list, "pods")
	i := slices.IndexFunc(pods.Subresources, func(s api.Subresource) bool { return s.Name == "ephemeralcontainers" })
	debugged := &corev1.Pod{Spec: corev1.PodSpec{EphemeralContainers: []corev1.EphemeralContainer{
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", SecurityContext: &corev1.SecurityContext{Privileged: &yes}}},
	}}}
	errs := pods.Subresources[i].View.ValidateUpdate(t.Context(), debugged, &corev1.Pod{})
	if len(errs) == 0 || errs[len(errs)-1].Error() != "spec.ephemeralContainers[0]"+denied {
		t.Errorf("ephemeral containers: %v", errs)
	}
}
