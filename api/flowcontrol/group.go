// Package flowcontrol describes the resources of the flowcontrol.apiserver.k8s.io group.
package flowcontrol

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "flowcontrol.apiserver.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		flowSchemaResource(),
		priorityLevelConfigurationResource(),
	}
}
