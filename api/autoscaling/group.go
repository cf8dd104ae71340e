// Package autoscaling describes the resources of the autoscaling group; v1 and v2 share one storage.
package autoscaling

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "autoscaling"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		horizontalPodAutoscalerResource(),
	}
}
