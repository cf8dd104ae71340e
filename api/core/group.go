// Package core describes the resources of the core group. Defaults and
// validation of pod templates, which other groups share, are in podspec.
package core

import "github.com/skiff-project/skiff/api"

var proxyVerbs = []string{"create", "delete", "get", "patch", "update"}

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		bindingResource(),
		componentStatusResource(),
		configMapResource(),
		endpointsResource(),
		eventResource(),
		limitRangeResource(),
		namespaceResource(),
		nodeResource(),
		persistentVolumeClaimResource(),
		persistentVolumeResource(),
		podResource(),
		podTemplateResource(),
		replicationControllerResource(),
		resourceQuotaResource(),
		secretResource(),
		serviceAccountResource(),
		serviceResource(),
	}
}
