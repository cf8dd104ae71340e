package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/skiff-project/skiff/api"
)

func podCertificateRequestResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "podcertificaterequests", Singular: "podcertificaterequest", Kind: "PodCertificateRequest",
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList]("v1", nil)},
		StoragePrefix: "podcertificaterequests",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
