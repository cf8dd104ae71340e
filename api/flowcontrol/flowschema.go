package flowcontrol

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/api"
)

func flowSchemaResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "flowschemas", Singular: "flowschema", Kind: "FlowSchema",
		Versions:      []api.Version{api.Versioned[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList]("v1", nil)},
		StoragePrefix: "flowschemas",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
