package autoscaling

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/skiff-project/skiff/api"
)

func horizontalPodAutoscalerResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "horizontalpodautoscalers", Singular: "horizontalpodautoscaler", Kind: "HorizontalPodAutoscaler",
		ShortNames:    []string{"hpa"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList]("v2", nil)},
		StoragePrefix: "horizontalpodautoscalers",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
