package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/skiff-project/skiff/api"
)

func certificateSigningRequestResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "certificatesigningrequests", Singular: "certificatesigningrequest", Kind: "CertificateSigningRequest",
		ShortNames:    []string{"csr"},
		Versions:      []api.Version{api.Versioned[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList]("v1", nil)},
		StoragePrefix: "certificatesigningrequests",
		Subresources: []api.Subresource{
			{Name: "approval", View: &api.View{}},
			{Name: "status", View: &api.View{}},
		},
	}
}
