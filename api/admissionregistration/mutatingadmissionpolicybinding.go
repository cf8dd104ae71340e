package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func mutatingAdmissionPolicyBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "mutatingadmissionpolicybindings", Singular: "mutatingadmissionpolicybinding", Kind: "MutatingAdmissionPolicyBinding",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList]("v1", func(b *admissionv1.MutatingAdmissionPolicyBinding) {
			defaultMatch(b.Spec.MatchResources)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(b *admissionv1.MutatingAdmissionPolicyBinding) { b.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(b, old *admissionv1.MutatingAdmissionPolicyBinding) {
				api.BumpGeneration(b, old, api.Changed(b.Spec, old.Spec))
			}),
			Validate: api.Check(validateMutatingAdmissionPolicyBinding),
			ValidateUpdate: api.CheckUpdate(func(b, _ *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
				return validateMutatingAdmissionPolicyBinding(b)
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: bindingColumns(),
		Cells: api.Row(func(b *admissionv1.MutatingAdmissionPolicyBinding, now metav1.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRef(b.Spec.ParamRef), api.Age(b.CreationTimestamp, now)}
		}),
	}
}

func validateMutatingAdmissionPolicyBinding(b *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	l := &check.List{}
	if b.Spec.PolicyName == "" {
		l.Required(specPath.Child("policyName"), "")
	} else {
		l.Subdomain(specPath.Child("policyName"), b.Spec.PolicyName)
	}
	checkParamRef(l, specPath.Child("paramRef"), b.Spec.ParamRef)
	if b.Spec.MatchResources != nil {
		checkMatch(l, specPath.Child("matchResources"), b.Spec.MatchResources)
	}
	noDelete(l, specPath.Child("matchResources"), b.Spec.MatchResources)
	return l.Errors
}
