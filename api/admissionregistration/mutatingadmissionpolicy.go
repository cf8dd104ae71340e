package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/skiff-project/skiff/api"
)

func mutatingAdmissionPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "mutatingadmissionpolicies", Singular: "mutatingadmissionpolicy", Kind: "MutatingAdmissionPolicy",
		Categories:    []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList]("v1", nil)},
		StoragePrefix: "mutatingadmissionpolicies",
	}
}
