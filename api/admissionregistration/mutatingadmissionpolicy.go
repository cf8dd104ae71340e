package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/api/check"
)

func mutatingAdmissionPolicyResource(envs *expression.Environments) *api.Resource {
	return &api.Resource{
		Group: Group, Name: "mutatingadmissionpolicies", Singular: "mutatingadmissionpolicy", Kind: "MutatingAdmissionPolicy",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList]("v1", func(p *admissionv1.MutatingAdmissionPolicy) {
			api.SetIfNil(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(p *admissionv1.MutatingAdmissionPolicy) {
				p.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(p, old *admissionv1.MutatingAdmissionPolicy) {
				api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
			}),
			Validate: api.Check(func(p *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
				return validateMutatingAdmissionPolicy(envs, p, nil)
			}),
			ValidateUpdate: api.CheckUpdate(func(p, old *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
				return validateMutatingAdmissionPolicy(envs, p, old)
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Mutations", "integer", "Mutation indicates the number of mutations rules defined in this configuration"),
			api.Column("ParamKind", "string", "ParamKind specifies the kind of resources used to parameterize this policy"),
			api.AgeColumn(),
		},
		Cells: api.Row(func(p *admissionv1.MutatingAdmissionPolicy, now metav1.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Mutations)), paramKind(p.Spec.ParamKind), api.Age(p.CreationTimestamp, now)}
		}),
	}
}

// validateMutatingAdmissionPolicy checks a policy; old is nil on create.
func validateMutatingAdmissionPolicy(envs *expression.Environments, p, old *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
	var stored []string
	if old != nil {
		stored = expressionsOf(old.Spec.MatchConditions, old.Spec.Variables)
		for _, m := range old.Spec.Mutations {
			if m.ApplyConfiguration != nil {
				stored = append(stored, m.ApplyConfiguration.Expression)
			}
			if m.JSONPatch != nil {
				stored = append(stored, m.JSONPatch.Expression)
			}
		}
	}
	s := &p.Spec
	l := newPolicyCheck(envs, s.ParamKind, true, stored)
	l.scope(s.FailurePolicy, s.ParamKind, s.MatchConstraints)
	noDelete(&l.List, specPath.Child("matchConstraints"), s.MatchConstraints)
	if old == nil || !sameConditions(s.ParamKind, old.Spec.ParamKind, s.MatchConditions, old.Spec.MatchConditions) {
		l.conditions(envs, s.MatchConditions)
	}
	l.variables(s.Variables)
	if len(s.Mutations) == 0 {
		l.Required(specPath.Child("mutations"), "mutations must contain at least one item")
	}
	for i := range s.Mutations {
		l.mutation(specPath.Child("mutations").Index(i), &s.Mutations[i])
	}
	check.Choice(&l.List, specPath.Child("reinvocationPolicy"), s.ReinvocationPolicy, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
	return l.Errors
}
