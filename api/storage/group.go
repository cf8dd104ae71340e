// Package storage describes the resources of the storage.k8s.io group.
package storage

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "storage.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		csiDriverResource(),
		csiNodeResource(),
		csiStorageCapacityResource(),
		storageClassResource(),
		volumeAttachmentResource(),
		volumeAttributesClassResource(),
	}
}
