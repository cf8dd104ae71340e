// Package admissionregistration describes the resources of the admissionregistration.k8s.io group.
package admissionregistration

import (
	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
)

// Group is the name of the API group.
const Group = "admissionregistration.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	envs := &expression.Environments{}
	return []*api.Resource{
		mutatingAdmissionPolicyResource(envs),
		mutatingAdmissionPolicyBindingResource(),
		mutatingWebhookConfigurationResource(envs),
		validatingAdmissionPolicyResource(envs),
		validatingAdmissionPolicyBindingResource(),
		validatingWebhookConfigurationResource(envs),
	}
}
