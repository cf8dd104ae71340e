package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func validatingAdmissionPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "validatingadmissionpolicies", Singular: "validatingadmissionpolicy", Kind: "ValidatingAdmissionPolicy",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList]("v1", nil)},
		StoragePrefix: "validatingadmissionpolicies",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
