package storagemigration

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"

	"github.com/skiff-project/skiff/api"
)

func storageVersionMigrationResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "storageversionmigrations", Singular: "storageversionmigration", Kind: "StorageVersionMigration",
		Versions:      []api.Version{api.Versioned[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList]("v1", nil)},
		StoragePrefix: "storageversionmigrations",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
