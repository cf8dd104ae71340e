package admissionregistration_test

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration"
)

// check validates obj as its resource's create or, with old, update would.
func check(t *testing.T, obj, old api.Object) field.ErrorList {
	t.Helper()
	for _, r := range admissionregistration.Resources() {
		made := r.Versions[0].New()
		if same(made, obj) {
			r.Versions[0].Default(obj)
			if old == nil {
				return r.Strategy.Validate(t.Context(), obj)
			}
			return r.Strategy.ValidateUpdate(t.Context(), obj, old)
		}
	}
	t.Fatalf("no resource for %T", obj)
	return nil
}

func same(a, b api.Object) bool {
	switch a.(type) {
	case *admissionv1.ValidatingAdmissionPolicy:
		_, ok := b.(*admissionv1.ValidatingAdmissionPolicy)
		return ok
	case *admissionv1.MutatingAdmissionPolicy:
		_, ok := b.(*admissionv1.MutatingAdmissionPolicy)
		return ok
	case *admissionv1.ValidatingWebhookConfiguration:
		_, ok := b.(*admissionv1.ValidatingWebhookConfiguration)
		return ok
	}
	return false
}

func rules(ops ...admissionv1.OperationType) *admissionv1.MatchResources {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: ops, Rule: admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
	}}}}
}

func validating(change func(s *admissionv1.ValidatingAdmissionPolicySpec)) *admissionv1.ValidatingAdmissionPolicy {
	p := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p.example.com"}}
	p.Spec.MatchConstraints = rules(admissionv1.Create)
	p.Spec.Validations = []admissionv1.Validation{{Expression: "object.spec.replicas > 1"}}
	change(&p.Spec)
	return p
}

func mutating(change func(s *admissionv1.MutatingAdmissionPolicySpec)) *admissionv1.MutatingAdmissionPolicy {
	p := &admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p.example.com"}}
	p.Spec.MatchConstraints, p.Spec.ReinvocationPolicy = rules(admissionv1.Create), admissionv1.NeverReinvocationPolicy
	change(&p.Spec)
	return p
}

func TestPolicyValidation(t *testing.T) {
	v := func(change func(s *admissionv1.ValidatingAdmissionPolicySpec)) api.Object { return validating(change) }
	m := func(change func(s *admissionv1.MutatingAdmissionPolicySpec)) api.Object { return mutating(change) }
	condition := []admissionv1.MatchCondition{{Name: "c", Expression: "object.x == params.y"}}
	for name, c := range map[string]struct {
		obj  api.Object
		want string // parts of the error, separated by "|"; empty: valid
	}{
		"valid": {v(func(*admissionv1.ValidatingAdmissionPolicySpec) {}), ""},
		"bad syntax": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.Validations[0].Expression = "object.x in [1, 2 " }),
			"spec.validations[0].expression: Invalid value: \"object.x in [1, 2 \": compilation failed: ERROR: <input>:1:19: Syntax error: mismatched input '<EOF>' expecting {']', ','}"},
		"not a bool": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.Validations[0].Expression = "1 + 1" }),
			`spec.validations[0].expression: Invalid value: "1 + 1": must evaluate to bool but got int`},
		"no params": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.Validations[0].Expression = "params.x == 1" }),
			"undeclared reference to 'params'"},
		"params": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Validations[0].Expression, s.ParamKind = "params.x == 1", &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
			s.MatchConditions = condition
		}), ""},
		"param kind": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.ParamKind = &admissionv1.ParamKind{APIVersion: "example.com/", Kind: "With Space"}
		}), `spec.paramKind.apiVersion: Invalid value: "example.com/": version must be specified|spec.paramKind.kind: Invalid value: "With Space": may have mixed case, but should otherwise match: `},
		"conditions see no params": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.MatchConditions = condition }),
			"spec.matchConditions[0].expression|undeclared reference to 'params'"},
		"conditions see no variables": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Variables = []admissionv1.Variable{{Name: "a", Expression: "1"}}
			s.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: "variables.a == 1"}}
		}), "undeclared reference to 'variables'"},
		"variables": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Variables = []admissionv1.Variable{{Name: "a", Expression: "object.x"}, {Name: "b", Expression: "[variables.a].size() > 1"}}
			s.Validations[0].Expression = "variables.b && !(variables.a == 3)"
		}), ""},
		"variables in order": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Variables = []admissionv1.Variable{{Name: "if", Expression: "variables.b"}, {Name: "b", Expression: "'text'"}}
			s.Validations[0].Expression = "variables.b"
		}), `spec.variables[0].name: Invalid value: "if": must be a valid CEL identifier|undefined field 'b'|must evaluate to bool but got string`},
		"message": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Validations[0].Message, s.Validations[0].MessageExpression, s.Validations[0].Reason = "a\nb", "authorizer.path('/').check('get').allowed()", ptr.To(metav1.StatusReasonConflict)
		}), `spec.validations[0].message: Invalid value: "a\nb": must not contain line breaks|undeclared reference to 'authorizer'|spec.validations[0].reason: Unsupported value: "Conflict"`},
		"annotations": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Validations, s.AuditAnnotations = nil, []admissionv1.AuditAnnotation{{Key: "k", ValueExpression: "object.x ? 'a' : null"}, {Key: "k", ValueExpression: "1"}}
		}), `spec.auditAnnotations[1].valueExpression: Invalid value: "1": must evaluate to one of [string null_type] but got int|spec.auditAnnotations[1].key: Duplicate value: "k"`},
		"nothing to do": {v(func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.Validations = nil }),
			"spec.validations: Required value: validations or auditAnnotations must contain at least one item|spec.auditAnnotations: Required"},
		"apply": {m(func(s *admissionv1.MutatingAdmissionPolicySpec) {
			s.Variables = []admissionv1.Variable{{Name: "n", Expression: "object.spec.replicas + 1"}}
			s.Mutations = []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: "Object{spec: Object.spec{replicas: variables.n}}"}}}
		}), ""},
		"patch": {m(func(s *admissionv1.MutatingAdmissionPolicySpec) {
			s.Mutations = []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: `[JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("a/b"), value: "c"}]`}}}
		}), ""},
		"wrong results": {m(func(s *admissionv1.MutatingAdmissionPolicySpec) {
			s.MatchConstraints = rules(admissionv1.Delete)
			s.Mutations = []admissionv1.Mutation{
				{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: "Object{}"}},
				{PatchType: admissionv1.PatchTypeApplyConfiguration, JSONPatch: &admissionv1.JSONPatch{}, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: "Object.spec{}"}},
			}
		}), `spec.matchConstraints.resourceRules.operations: Unsupported value: "DELETE"|spec.mutations[0].jsonPatch.expression: Invalid value: "Object{}": must evaluate to list(JSONPatch) but got Object|must evaluate to Object but got Object.spec|spec.mutations[1].jsonPatch: Invalid value: "{jsonPatch}": must not be specified when patchType is ApplyConfiguration`},
	} {
		t.Run(name, func(t *testing.T) {
			got := check(t, c.obj, nil).ToAggregate()
			if c.want == "" {
				if got != nil {
					t.Error(got)
				}
				return
			}
			for part := range strings.SplitSeq(c.want, "|") {
				if got == nil || !strings.Contains(got.Error(), part) {
					t.Errorf("want %q in\n%v", part, got)
				}
			}
		})
	}
}

// An update keeps match conditions that are stored already, even bad ones.
func TestUpdateKeepsConditions(t *testing.T) {
	bad := func(s *admissionv1.ValidatingAdmissionPolicySpec) {
		s.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: "unknown"}}
	}
	if errs := check(t, validating(bad), validating(bad)); len(errs) > 0 {
		t.Errorf("unchanged: %v", errs)
	}
	if errs := check(t, validating(bad), validating(func(*admissionv1.ValidatingAdmissionPolicySpec) {})); len(errs) != 1 {
		t.Errorf("new: %v", errs)
	}
}

func TestWebhookConditionsCompile(t *testing.T) {
	c := &admissionv1.ValidatingWebhookConfiguration{Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "a.example.com", SideEffects: ptr.To(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		ClientConfig:    admissionv1.WebhookClientConfig{URL: ptr.To("https://a.example.com")},
		MatchConditions: []admissionv1.MatchCondition{{Name: "c", Expression: "object.x > "}, {Name: "d", Expression: "request.userInfo.username != 'x'"}},
	}}}
	errs := check(t, c, nil)
	if len(errs) != 1 || errs[0].Field != "webhooks[0].matchConditions[0].expression" || !strings.Contains(errs[0].Detail, "compilation failed: ERROR: <input>:1:11: Syntax error") {
		t.Error(errs)
	}
}
