package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func validatingAdmissionPolicyBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "validatingadmissionpolicybindings", Singular: "validatingadmissionpolicybinding", Kind: "ValidatingAdmissionPolicyBinding",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList]("v1", nil)},
		StoragePrefix: "validatingadmissionpolicybindings",
	}
}
