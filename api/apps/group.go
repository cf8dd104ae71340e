// Package apps describes the resources of the apps group.
package apps

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "apps"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		controllerRevisionResource(),
		daemonSetResource(),
		deploymentResource(),
		replicaSetResource(),
		statefulSetResource(),
	}
}
