// Package certificates describes the resources of the certificates.k8s.io group.
package certificates

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "certificates.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		certificateSigningRequestResource(),
		clusterTrustBundleResource(),
		podCertificateRequestResource(),
	}
}
