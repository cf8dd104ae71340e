package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func csiStorageCapacityResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "csistoragecapacities", Singular: "csistoragecapacity", Kind: "CSIStorageCapacity",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList]("v1", nil)},
		Strategy: api.Strategy{
			Validate: api.Check(validateCapacity),
			ValidateUpdate: api.CheckUpdate(func(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
				l := &check.List{Errors: validateCapacity(c)}
				l.Immutable(field.NewPath("nodeTopology"), c.NodeTopology, old.NodeTopology)
				l.Immutable(field.NewPath("storageClassName"), c.StorageClassName, old.StorageClassName)
				return l.Errors
			}),
			DenyUnconditionalUpdate: true,
		},
	}
}

func validateCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	l := &check.List{}
	l.Selector(field.NewPath("nodeTopology"), c.NodeTopology)
	l.Messages(field.NewPath("storageClassName"), c.StorageClassName, apivalidation.NameIsDNSSubdomain(c.StorageClassName, false))
	if c.Capacity != nil {
		l.NonnegativeQuantity(field.NewPath("capacity"), *c.Capacity)
	}
	return l.Errors
}
