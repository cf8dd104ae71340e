package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func validatingAdmissionPolicyBindingResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "validatingadmissionpolicybindings", Singular: "validatingadmissionpolicybinding", Kind: "ValidatingAdmissionPolicyBinding",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList]("v1", func(b *admissionv1.ValidatingAdmissionPolicyBinding) {
			defaultMatch(b.Spec.MatchResources)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(b *admissionv1.ValidatingAdmissionPolicyBinding) { b.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(b, old *admissionv1.ValidatingAdmissionPolicyBinding) {
				api.BumpGeneration(b, old, api.Changed(b.Spec, old.Spec))
			}),
			Validate: api.Check(validateValidatingAdmissionPolicyBinding),
			ValidateUpdate: api.CheckUpdate(func(b, _ *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
				return validateValidatingAdmissionPolicyBinding(b)
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: bindingColumns(),
		Cells: api.Row(func(b *admissionv1.ValidatingAdmissionPolicyBinding, now metav1.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRef(b.Spec.ParamRef), api.Age(b.CreationTimestamp, now)}
		}),
	}
}

func validateValidatingAdmissionPolicyBinding(b *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
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
	if len(b.Spec.ValidationActions) == 0 {
		l.Required(specPath.Child("validationActions"), "")
	}
	seen := map[admissionv1.ValidationAction]bool{}
	for i, a := range b.Spec.ValidationActions {
		at := specPath.Child("validationActions").Index(i)
		check.OneOf(l, at, a, admissionv1.Audit, admissionv1.Deny, admissionv1.Warn)
		if seen[a] {
			l.Duplicate(at, a)
		}
		seen[a] = true
	}
	if seen[admissionv1.Deny] && seen[admissionv1.Warn] {
		l.Invalid(specPath.Child("validationActions"), b.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)")
	}
	return l.Errors
}
