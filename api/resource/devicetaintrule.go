package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/api"
)

func deviceTaintRuleResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "devicetaintrules", Singular: "devicetaintrule", Kind: "DeviceTaintRule",
		Versions:      []api.Version{api.Versioned[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList]("v1", nil)},
		StoragePrefix: "devicetaintrules",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
