// Package admissionregistration describes the resources of the admissionregistration.k8s.io group.
package admissionregistration

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "admissionregistration.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		mutatingAdmissionPolicyResource(),
		mutatingAdmissionPolicyBindingResource(),
		mutatingWebhookConfigurationResource(),
		validatingAdmissionPolicyResource(),
		validatingAdmissionPolicyBindingResource(),
		validatingWebhookConfigurationResource(),
	}
}
