package node

import (
	nodev1 "k8s.io/api/node/v1"

	"github.com/skiff-project/skiff/api"
)

func runtimeClassResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "runtimeclasses", Singular: "runtimeclass", Kind: "RuntimeClass",
		Versions:      []api.Version{api.Versioned[nodev1.RuntimeClass, nodev1.RuntimeClassList]("v1", nil)},
		StoragePrefix: "runtimeclasses",
	}
}
