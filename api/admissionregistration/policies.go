package admissionregistration

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/jsonpath"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/api/check"
)

// policyCheck checks what policies of both sorts are made of.
type policyCheck struct {
	check.List
	compiler *expression.Compiler
	sees     expression.Sees
	// stored are the expressions the stored object has, which may use what new ones may not yet.
	stored sets.Set[string]
}

func newPolicyCheck(envs *expression.Environments, params *admissionv1.ParamKind, variables bool, stored []string) *policyCheck {
	return &policyCheck{
		compiler: envs.Compiler(variables), stored: sets.New(stored...),
		sees: expression.Sees{Params: params != nil, Authorizer: true},
	}
}

// compiled says what is wrong with an expression; text is how the user wrote it.
func (l *policyCheck) compiled(p *field.Path, text string, x *expression.Expression) {
	if x.Err != nil {
		l.Add(field.ErrorList{x.FieldError(p, text)})
	}
}

// scope checks what policies have in common besides their expressions.
func (l *policyCheck) scope(failure *admissionv1.FailurePolicyType, params *admissionv1.ParamKind, match *admissionv1.MatchResources) {
	if failure == nil {
		l.Required(specPath.Child("failurePolicy"), "")
	} else {
		check.OneOf(&l.List, specPath.Child("failurePolicy"), *failure, admissionv1.Fail, admissionv1.Ignore)
	}
	checkParamKind(&l.List, specPath.Child("paramKind"), params)
	at := specPath.Child("matchConstraints")
	if match == nil {
		l.Required(at, "")
		return
	}
	checkMatch(&l.List, at, match)
	if len(match.ResourceRules) == 0 {
		l.Required(at.Child("resourceRules"), "")
	}
}

func (l *policyCheck) conditions(envs *expression.Environments, list []admissionv1.MatchCondition) {
	checkConditions(&l.List, specPath.Child("matchConditions"), list, envs, l.sees, l.stored)
}

var identifier = regexp.MustCompile("^[_a-zA-Z][_a-zA-Z0-9]*$")

// reserved are the words of CEL that name no variable.
var reserved = sets.New("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function",
	"if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while")

func (l *policyCheck) variables(list []admissionv1.Variable) {
	for i, v := range list {
		at := specPath.Child("variables").Index(i)
		switch {
		case strings.TrimSpace(v.Name) == "":
			l.Required(at.Child("name"), "name is not specified")
		case !identifier.MatchString(v.Name) || reserved.Has(v.Name):
			l.Invalid(at.Child("name"), v.Name, "must be a valid CEL identifier")
		}
		if strings.TrimSpace(v.Expression) == "" {
			l.Required(at.Child("expression"), "expression is not specified")
			continue
		}
		l.compiled(at.Child("expression"), v.Expression, l.compiler.Variable(v.Name, v.Expression, l.sees, l.stored.Has(v.Expression)))
	}
}

var policyReasons = []metav1.StatusReason{metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge}

func (l *policyCheck) validation(p *field.Path, v *admissionv1.Validation) {
	if at := p.Child("expression"); strings.TrimSpace(v.Expression) == "" {
		l.Required(at, "expression is not specified")
	} else {
		l.compiled(at, v.Expression, l.compiler.Condition(v.Expression, l.sees, l.stored.Has(v.Expression)))
	}
	if at := p.Child("messageExpression"); v.MessageExpression != "" && strings.TrimSpace(v.MessageExpression) == "" {
		l.Invalid(at, v.MessageExpression, "must be non-empty if specified")
	} else if v.MessageExpression != "" {
		sees := expression.Sees{Params: l.sees.Params}
		l.compiled(at, v.MessageExpression, l.compiler.Message(v.MessageExpression, sees, l.stored.Has(v.MessageExpression)))
	}
	if message := strings.TrimSpace(v.Message); v.Message != "" && message == "" {
		l.Invalid(p.Child("message"), v.Message, "must be non-empty if specified")
	} else if strings.ContainsAny(message, "\n\r") {
		l.Invalid(p.Child("message"), v.Message, "must not contain line breaks")
	}
	if v.Reason != nil {
		check.OneOf(&l.List, p.Child("reason"), *v.Reason, policyReasons...)
	}
}

// Bounds of audit annotations: their number, and the length of an expression in bytes.
const (
	maxAnnotations          = 20
	maxAnnotationExpression = 5 * 1024
)

func (l *policyCheck) annotations(policy string, list []admissionv1.AuditAnnotation) {
	all := specPath.Child("auditAnnotations")
	if len(list) > maxAnnotations {
		l.Invalid(all, list, fmt.Sprintf("must not have more than %d auditAnnotations", maxAnnotations))
	}
	keys := sets.Set[string]{}
	for i, a := range list {
		at := all.Index(i)
		if policy == "" {
			l.Invalid(at.Child("key"), a.Key, "requires metadata.name be non-empty")
		} else {
			l.QualifiedName(at.Child("key"), policy+"/"+a.Key)
		}
		switch text := strings.TrimSpace(a.ValueExpression); {
		case text == "":
			l.Required(at.Child("valueExpression"), "valueExpression is not specified")
		case len(text) > maxAnnotationExpression:
			l.Required(at.Child("valueExpression"), fmt.Sprintf("must not exceed %d bytes in length", maxAnnotationExpression))
		default:
			l.compiled(at.Child("valueExpression"), a.ValueExpression, l.compiler.Annotation(text, l.sees, l.stored.Has(a.ValueExpression)))
		}
		if keys.Has(a.Key) {
			l.Duplicate(at.Child("key"), a.Key)
		}
		keys.Insert(a.Key)
	}
}

func (l *policyCheck) mutation(p *field.Path, m *admissionv1.Mutation) {
	expr := func(at *field.Path, text string, compile func(string, expression.Sees, bool) *expression.Expression) {
		trimmed := strings.TrimSpace(text)
		if trimmed == "" {
			l.Required(at.Child("expression"), "")
			return
		}
		l.compiled(at.Child("expression"), trimmed, compile(trimmed, l.sees, l.stored.Has(text)))
	}
	apply, patch := p.Child("applyConfiguration"), p.Child("jsonPatch")
	switch m.PatchType {
	case admissionv1.PatchTypeApplyConfiguration:
		if m.ApplyConfiguration == nil {
			l.Required(apply, "must be specified when patchType is ApplyConfiguration")
		} else {
			expr(apply, m.ApplyConfiguration.Expression, l.compiler.Apply)
		}
		if m.JSONPatch != nil {
			l.Invalid(patch, "{jsonPatch}", "must not be specified when patchType is ApplyConfiguration")
		}
	case admissionv1.PatchTypeJSONPatch:
		if m.JSONPatch == nil {
			l.Required(patch, "must be specified when patchType is JSONPatch")
		} else {
			expr(patch, m.JSONPatch.Expression, l.compiler.Patch)
		}
		if m.ApplyConfiguration != nil {
			l.Invalid(apply, "{applyConfiguration}", "must not be specified when patchType is JSONPatch")
		}
	default:
		check.Choice(&l.List, p.Child("patchType"), m.PatchType, admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch)
	}
}

// noDelete refuses rules a mutating policy cannot act on: there is nothing to mutate in a deletion.
func noDelete(l *check.List, p *field.Path, m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	for _, r := range m.ResourceRules {
		for _, o := range r.Operations {
			check.OneOf(l, p.Child("resourceRules", "operations"), o, admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Update)
		}
	}
}

// sameConditions tells that an update cannot have made stored match conditions bad.
func sameConditions(params, oldParams *admissionv1.ParamKind, now, old []admissionv1.MatchCondition) bool {
	return !api.Changed(params, oldParams) && slices.Equal(now, old)
}

// expressionsOf are the texts of expressions common to both sorts of policies.
func expressionsOf(conditions []admissionv1.MatchCondition, variables []admissionv1.Variable) (out []string) {
	for _, c := range conditions {
		out = append(out, c.Expression)
	}
	for _, v := range variables {
		out = append(out, v.Expression)
	}
	return out
}

func validatePolicyStatus(s *admissionv1.ValidatingAdmissionPolicyStatus) field.ErrorList {
	l, at := &check.List{}, field.NewPath("status")
	if s.TypeChecking != nil {
		for i, w := range s.TypeChecking.ExpressionWarnings {
			p := at.Child("typeChecking", "expressionWarnings").Index(i)
			if w.Warning == "" {
				l.Required(p.Child("warning"), "")
			}
			ref := strings.TrimSpace(w.FieldRef)
			if ref == "" {
				l.Required(p.Child("fieldRef"), "")
			} else if err := jsonpath.New("spec").Parse("{" + ref + "}"); err != nil {
				l.Invalid(p.Child("fieldRef"), ref, fmt.Sprintf("invalid JSONPath: %v", err))
			}
		}
	}
	l.Add(metavalidation.ValidateConditions(s.Conditions, at.Child("conditions")))
	return l.Errors
}

func checkParamKind(l *check.List, p *field.Path, k *admissionv1.ParamKind) {
	if k == nil {
		return
	}
	at := p.Child("apiVersion")
	group, version, ok := strings.Cut(k.APIVersion, "/")
	if !ok {
		group, version = "", k.APIVersion
	}
	switch {
	case k.APIVersion == "":
		l.Required(at, "")
	case strings.Contains(version, "/"):
		l.Invalid(at, k.APIVersion, "unexpected GroupVersion string: "+k.APIVersion)
	default:
		joined := func(value string, messages []string) {
			if len(messages) > 0 {
				l.Invalid(at, value, strings.Join(messages, ","))
			}
		}
		if group != "" {
			joined(group, validation.IsDNS1123Subdomain(group))
		}
		if version == "" {
			l.Invalid(at, k.APIVersion, "version must be specified")
		} else {
			joined(version, validation.IsDNS1035Label(version))
		}
	}
	if k.Kind == "" {
		l.Required(p.Child("kind"), "")
	} else if messages := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(messages) > 0 {
		l.Invalid(p.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(messages, ","))
	}
}
