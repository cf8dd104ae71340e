package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/skiff-project/skiff/api"
)

func deploymentResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "deployments", Singular: "deployment", Kind: "Deployment",
		ShortNames:    []string{"deploy"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[appsv1.Deployment, appsv1.DeploymentList]("v1", nil)},
		StoragePrefix: "deployments",
		Subresources: []api.Subresource{
			{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
