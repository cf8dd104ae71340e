package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func mutatingAdmissionPolicyBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "mutatingadmissionpolicybindings", Singular: "mutatingadmissionpolicybinding", Kind: "MutatingAdmissionPolicyBinding",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList]("v1", nil)},
		StoragePrefix: "mutatingadmissionpolicybindings",
	}
}
