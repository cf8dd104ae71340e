package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/skiff-project/skiff/api"
)

func controllerRevisionResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "controllerrevisions", Singular: "controllerrevision", Kind: "ControllerRevision",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[appsv1.ControllerRevision, appsv1.ControllerRevisionList]("v1", nil)},
		StoragePrefix: "controllerrevisions",
	}
}
