package admissionregistration

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func mutatingAdmissionPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "mutatingadmissionpolicies", Singular: "mutatingadmissionpolicy", Kind: "MutatingAdmissionPolicy",
		Categories: []string{"api-extensions"},
		Versions: []api.Version{api.Versioned[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList]("v1", func(p *admissionv1.MutatingAdmissionPolicy) {
			api.SetIfNil(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		})},
		StoragePrefix: "mutatingadmissionpolicies",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(p *admissionv1.MutatingAdmissionPolicy) {
				p.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(p, old *admissionv1.MutatingAdmissionPolicy) {
				api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
			}),
			Validate: api.Check(validateMutatingAdmissionPolicy),
			ValidateUpdate: api.CheckUpdate(func(p, _ *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
				return validateMutatingAdmissionPolicy(p)
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

func validateMutatingAdmissionPolicy(p *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
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
	if len(s.Mutations) == 0 {
		l.Required(specPath.Child("mutations"), "mutations must contain at least one item")
	}
	for i, m := range s.Mutations {
		at := specPath.Child("mutations").Index(i)
		check.Choice(l, at.Child("patchType"), m.PatchType, admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch)
		if m.PatchType == admissionv1.PatchTypeApplyConfiguration && m.ApplyConfiguration == nil {
			l.Required(at.Child("applyConfiguration"), "must be specified when patchType is ApplyConfiguration")
		}
		if m.PatchType == admissionv1.PatchTypeJSONPatch && m.JSONPatch == nil {
			l.Required(at.Child("jsonPatch"), "must be specified when patchType is JSONPatch")
		}
	}
	return l.Errors
}
