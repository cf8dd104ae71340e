package runtime

import cri "k8s.io/cri-api/pkg/apis"

// The kubelet takes a Runtime in process as both of CRI's services.
var (
	_ cri.RuntimeService      = (*Runtime)(nil)
	_ cri.ImageManagerService = (*Runtime)(nil)
)
