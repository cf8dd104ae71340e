package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/skiff-project/skiff/api"
)

func leaseResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "leases", Singular: "lease", Kind: "Lease",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[coordinationv1.Lease, coordinationv1.LeaseList]("v1", nil)},
		StoragePrefix: "leases",
	}
}
