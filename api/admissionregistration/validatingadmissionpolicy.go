package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func validatingAdmissionPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "validatingadmissionpolicies", Singular: "validatingadmissionpolicy", Kind: "ValidatingAdmissionPolicy",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList]("v1", func(p *admissionv1.ValidatingAdmissionPolicy) {
			api.SetIfNil(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		})},
		StoragePrefix: "validatingadmissionpolicies",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(p *admissionv1.ValidatingAdmissionPolicy) {
				p.Status = admissionv1.ValidatingAdmissionPolicyStatus{}
				p.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(p, old *admissionv1.ValidatingAdmissionPolicy) {
				p.Status = old.Status
				api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
			}),
			Validate: api.Check(validateValidatingAdmissionPolicy),
			ValidateUpdate: api.CheckUpdate(func(p, _ *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
				return validateValidatingAdmissionPolicy(p)
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusView(func(p, old *admissionv1.ValidatingAdmissionPolicy) { p.Spec = old.Spec }, nil)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Validations", "integer", "Validations indicates the number of validation rules defined in this configuration"),
			api.Column("ParamKind", "string", "ParamKind specifies the kind of resources used to parameterize this policy"),
			api.AgeColumn(),
		},
		Cells: api.Row(func(p *admissionv1.ValidatingAdmissionPolicy, now metav1.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Validations)), paramKind(p.Spec.ParamKind), api.Age(p.CreationTimestamp, now)}
		}),
	}
}

func validateValidatingAdmissionPolicy(p *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	l, s := &check.List{}, &p.Spec
	if s.FailurePolicy == nil {
		l.Required(specPath.Child("failurePolicy"), "")
	} else {
		check.OneOf(l, specPath.Child("failurePolicy"), *s.FailurePolicy, admissionv1.Fail, admissionv1.Ignore)
	}
	checkParamKind(l, specPath.Child("paramKind"), s.ParamKind)
	if s.MatchConstraints == nil {
		l.Required(specPath.Child("matchConstraints"), "")
	} else {
		checkMatch(l, specPath.Child("matchConstraints"), s.MatchConstraints)
		if len(s.MatchConstraints.ResourceRules) == 0 {
			l.Required(specPath.Child("matchConstraints", "resourceRules"), "")
		}
	}
	checkConditions(l, specPath.Child("matchConditions"), s.MatchConditions)
	if len(s.Validations)+len(s.AuditAnnotations) == 0 {
		l.Required(specPath.Child("validations"), "validations or auditAnnotations must contain at least one item")
	}
	for i, v := range s.Validations {
		if v.Expression == "" {
			l.Required(specPath.Child("validations").Index(i).Child("expression"), "expression is not specified")
		}
	}
	return l.Errors
}
