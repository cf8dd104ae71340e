package flowcontrol

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/api"
)

func priorityLevelConfigurationResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "prioritylevelconfigurations", Singular: "prioritylevelconfiguration", Kind: "PriorityLevelConfiguration",
		Versions:      []api.Version{api.Versioned[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList]("v1", nil)},
		StoragePrefix: "prioritylevelconfigurations",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
