package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
)

func validatingAdmissionPolicyResource(envs *expression.Environments) *api.Resource {
	return &api.Resource{
		Group: Group, Name: "validatingadmissionpolicies", Singular: "validatingadmissionpolicy", Kind: "ValidatingAdmissionPolicy",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList]("v1", func(p *admissionv1.ValidatingAdmissionPolicy) {
			api.SetIfNil(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(p *admissionv1.ValidatingAdmissionPolicy) {
				p.Status = admissionv1.ValidatingAdmissionPolicyStatus{}
				p.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(p, old *admissionv1.ValidatingAdmissionPolicy) {
				p.Status = old.Status
				api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
			}),
			Validate: api.Check(func(p *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
				return validateValidatingAdmissionPolicy(envs, p, nil)
			}),
			ValidateUpdate: api.CheckUpdate(func(p, old *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
				return validateValidatingAdmissionPolicy(envs, p, old)
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(p, old *admissionv1.ValidatingAdmissionPolicy) { p.Spec = old.Spec }, func(p, _ *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
			return validatePolicyStatus(&p.Status)
		})},
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

// validateValidatingAdmissionPolicy checks a policy; old is nil on create.
func validateValidatingAdmissionPolicy(envs *expression.Environments, p, old *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	var stored []string
	if old != nil {
		stored = expressionsOf(old.Spec.MatchConditions, old.Spec.Variables)
		for _, v := range old.Spec.Validations {
			stored = append(stored, v.Expression, v.MessageExpression)
		}
		for _, a := range old.Spec.AuditAnnotations {
			stored = append(stored, a.ValueExpression)
		}
	}
	s := &p.Spec
	l := newPolicyCheck(envs, s.ParamKind, len(s.Variables) > 0, stored)
	l.scope(s.FailurePolicy, s.ParamKind, s.MatchConstraints)
	if old == nil || !sameConditions(s.ParamKind, old.Spec.ParamKind, s.MatchConditions, old.Spec.MatchConditions) {
		l.conditions(envs, s.MatchConditions)
	}
	l.variables(s.Variables)
	if len(s.Validations)+len(s.AuditAnnotations) == 0 {
		l.Required(specPath.Child("validations"), "validations or auditAnnotations must contain at least one item")
		l.Required(specPath.Child("auditAnnotations"), "validations or auditAnnotations must contain at least one item")
	}
	for i := range s.Validations {
		l.validation(specPath.Child("validations").Index(i), &s.Validations[i])
	}
	l.annotations(p.Name, s.AuditAnnotations)
	return l.Errors
}
