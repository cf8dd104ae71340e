// Package storagemigration describes the resources of the storagemigration.k8s.io group.
package storagemigration

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "storagemigration.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		storageVersionMigrationResource(),
	}
}
