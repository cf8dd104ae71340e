package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/skiff-project/skiff/api"
)

func clusterTrustBundleResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "clustertrustbundles", Singular: "clustertrustbundle", Kind: "ClusterTrustBundle",
		Versions:      []api.Version{api.Versioned[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList]("v1", nil)},
		StoragePrefix: "clustertrustbundles",
	}
}
