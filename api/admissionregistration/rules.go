package admissionregistration

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/api/check"
)

var specPath = field.NewPath("spec")

func defaultRule(r *admissionv1.Rule) { api.SetIfNil(&r.Scope, admissionv1.AllScopes) }

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	api.SetIfNil(&m.MatchPolicy, admissionv1.Equivalent)
	api.SetIfNil(&m.NamespaceSelector, metav1.LabelSelector{})
	api.SetIfNil(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			defaultRule(&rules[i].Rule)
		}
	}
}

// hook is what webhooks of both sorts have in common.
type hook struct {
	name        string
	client      *admissionv1.WebhookClientConfig
	rules       []admissionv1.RuleWithOperations
	failure     **admissionv1.FailurePolicyType
	match       **admissionv1.MatchPolicyType
	namespaces  **metav1.LabelSelector
	objects     **metav1.LabelSelector
	sideEffects *admissionv1.SideEffectClass
	timeout     **int32
	versions    []string
	conditions  []admissionv1.MatchCondition
}

func (h *hook) setDefaults() {
	api.SetIfNil(h.failure, admissionv1.Fail)
	api.SetIfNil(h.match, admissionv1.Equivalent)
	api.SetIfNil(h.namespaces, metav1.LabelSelector{})
	api.SetIfNil(h.objects, metav1.LabelSelector{})
	api.SetIfNil(h.timeout, 10)
	if h.client.Service != nil {
		api.SetIfNil(&h.client.Service.Port, 443)
	}
	for i := range h.rules {
		defaultRule(&h.rules[i].Rule)
	}
}

func (h *hook) check(l *check.List, p *field.Path, envs *expression.Environments, stored sets.Set[string]) {
	l.Add(validation.IsFullyQualifiedName(p.Child("name"), h.name))
	for i := range h.rules {
		checkRule(l, p.Child("rules").Index(i), &h.rules[i], true)
	}
	if *h.failure != nil {
		check.OneOf(l, p.Child("failurePolicy"), **h.failure, admissionv1.Fail, admissionv1.Ignore)
	}
	if *h.match != nil {
		check.OneOf(l, p.Child("matchPolicy"), **h.match, admissionv1.Equivalent, admissionv1.Exact)
	}
	if h.sideEffects == nil {
		l.Required(p.Child("sideEffects"), "must specify one of None, NoneOnDryRun")
	} else {
		check.OneOf(l, p.Child("sideEffects"), *h.sideEffects, admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)
	}
	if t := *h.timeout; t != nil && (*t > 30 || *t < 1) {
		l.Invalid(p.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds")
	}
	l.Selector(p.Child("namespaceSelector"), *h.namespaces)
	l.Selector(p.Child("objectSelector"), *h.objects)
	at := p.Child("clientConfig")
	switch c := h.client; {
	case (c.URL == nil) == (c.Service == nil):
		l.Required(at, "exactly one of url or service is required")
	case c.URL != nil:
		l.WebhookURL(at.Child("url"), *c.URL)
	default:
		checkService(l, at.Child("service"), c.Service)
	}
	checkConditions(l, p.Child("matchConditions"), h.conditions, envs, expression.Sees{Authorizer: true}, stored)
	checkVersions(l, p.Child("admissionReviewVersions"), h.versions)
}

func checkVersions(l *check.List, p *field.Path, versions []string) {
	if len(versions) == 0 {
		l.Required(p, "must specify one of v1, v1beta1")
		return
	}
	seen, known := sets.Set[string]{}, false
	for i, v := range versions {
		if seen.Has(v) {
			l.Invalid(p.Index(i), v, "duplicate version")
			continue
		}
		seen.Insert(v)
		l.Messages(p.Index(i), v, validation.IsDNS1035Label(v))
		known = known || v == "v1" || v == "v1beta1"
	}
	if !known {
		l.Invalid(p, versions, "must include at least one of v1, v1beta1")
	}
}

func checkService(l *check.List, p *field.Path, s *admissionv1.ServiceReference) {
	if s.Name == "" {
		l.Required(p.Child("name"), "")
	}
	if s.Namespace == "" {
		l.Required(p.Child("namespace"), "")
	}
	if s.Port != nil {
		l.WebhookPort(p.Child("port"), *s.Port)
	}
	l.WebhookPath(p.Child("path"), s.Path)
}

// checkConditions checks match conditions; stored are the expressions that may use what new ones may not yet.
func checkConditions(l *check.List, p *field.Path, list []admissionv1.MatchCondition, envs *expression.Environments, sees expression.Sees, stored sets.Set[string]) {
	if len(list) > 64 {
		l.TooMany(p, len(list), 64)
	}
	names, compiler := sets.Set[string]{}, envs.Compiler(false)
	for i, c := range list {
		at := p.Index(i)
		if text := strings.TrimSpace(c.Expression); text == "" {
			l.Required(at.Child("expression"), "")
		} else if x := compiler.Condition(text, sees, stored.Has(c.Expression)); x.Err != nil {
			l.Add(field.ErrorList{x.FieldError(at.Child("expression"), text)})
		}
		if c.Name == "" {
			l.Required(at.Child("name"), "")
			continue
		}
		l.QualifiedName(at.Child("name"), c.Name)
		if names.Has(c.Name) {
			l.Duplicate(at.Child("name"), c.Name)
		}
		names.Insert(c.Name)
	}
}

func checkRule(l *check.List, p *field.Path, r *admissionv1.RuleWithOperations, sub bool) {
	if len(r.Operations) == 0 {
		l.Required(p.Child("operations"), "")
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionv1.OperationAll) {
		l.Invalid(p.Child("operations"), r.Operations, "if '*' is present, must not specify other operations")
	}
	for i, o := range r.Operations {
		check.OneOf(l, p.Child("operations").Index(i), o, admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update)
	}
	list := func(name string, values []string, what string, mayBeEmpty bool) {
		if len(values) == 0 {
			l.Required(p.Child(name), "")
		}
		if len(values) > 1 && slices.Contains(values, "*") {
			l.Invalid(p.Child(name), values, "if '*' is present, must not specify other API "+what)
		}
		for i, v := range values {
			if v == "" && !mayBeEmpty {
				l.Required(p.Child(name).Index(i), "")
			}
		}
	}
	list("apiGroups", r.APIGroups, "groups", true)
	list("apiVersions", r.APIVersions, "versions", false)
	checkResources(l, p.Child("resources"), r.Resources)
	if r.Scope != nil {
		check.OneOf(l, p.Child("scope"), *r.Scope, admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)
	}
}

func checkResources(l *check.List, p *field.Path, list []string) {
	if len(list) == 0 {
		l.Required(p, "")
	}
	all, any := sets.Set[string]{}, sets.Set[string]{}
	single, plain := false, false
	for i, r := range list {
		if r == "" {
			l.Required(p.Index(i), "")
			continue
		}
		single = single || r == "*"
		res, sub, ok := strings.Cut(r, "/")
		if !ok {
			plain = r != "*" // the last one decides, as upstream
			continue
		}
		if all.Has(res) {
			l.Invalid(p.Index(i), r, fmt.Sprintf("if '%s/*' is present, must not specify %s", res, r))
		}
		if any.Has(sub) {
			l.Invalid(p.Index(i), r, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, r))
		}
		if sub == "*" {
			all.Insert(res)
		}
		if res == "*" {
			any.Insert(sub)
		}
	}
	if len(list) > 1 && slices.Contains(list, "*/*") {
		l.Invalid(p, list, "if '*/*' is present, must not specify other resources")
	}
	if single && plain {
		l.Invalid(p, list, "if '*' is present, must not specify other resources without subresources")
	}
}

func checkMatch(l *check.List, p *field.Path, m *admissionv1.MatchResources) {
	if m.MatchPolicy == nil {
		l.Required(p.Child("matchPolicy"), "")
	} else {
		check.OneOf(l, p.Child("matchPolicy"), *m.MatchPolicy, admissionv1.Equivalent, admissionv1.Exact)
	}
	selector := func(p *field.Path, s *metav1.LabelSelector) {
		if s == nil {
			l.Required(p, "")
		}
		l.Selector(p, s)
	}
	selector(p.Child("namespaceSelector"), m.NamespaceSelector)
	selector(p.Child("objectSelector"), m.ObjectSelector)
	named := func(p *field.Path, rules []admissionv1.NamedRuleWithOperations) {
		for i := range rules {
			names, at := sets.Set[string]{}, p.Index(i)
			for j, n := range rules[i].ResourceNames {
				l.Messages(at.Child("resourceNames").Index(j), n, path.IsValidPathSegmentName(n))
				if names.Has(n) {
					l.Duplicate(at.Child("resourceNames").Index(j), n)
				}
				names.Insert(n)
			}
			checkRule(l, at, &rules[i].RuleWithOperations, true)
		}
	}
	named(p.Child("resourceRules"), m.ResourceRules)
	named(p.Child("excludeResourceRules"), m.ExcludeResourceRules)
}

func paramKind(k *admissionv1.ParamKind) string {
	if k == nil {
		return "<unset>"
	}
	return k.APIVersion + "/" + k.Kind
}

func paramRef(r *admissionv1.ParamRef) string {
	switch {
	case r == nil:
		return "<unset>"
	case r.Name != "" && r.Namespace != "":
		return r.Namespace + "/" + r.Name
	case r.Name != "":
		return "*/" + r.Name
	case r.Selector != nil:
		return r.Selector.String()
	}
	return "<unset>"
}

func checkParamRef(l *check.List, p *field.Path, r *admissionv1.ParamRef) {
	if r == nil {
		return
	}
	const both = "name and selector are mutually exclusive"
	if r.Name != "" {
		l.Messages(p.Child("name"), r.Name, path.IsValidPathSegmentName(r.Name))
		l.ForbidIf(p.Child("name"), r.Selector != nil, both)
	}
	l.Selector(p.Child("selector"), r.Selector)
	l.ForbidIf(p.Child("selector"), r.Selector != nil && r.Name != "", both)
	if r.Name == "" && r.Selector == nil {
		l.Required(p, "one of name or selector must be specified")
	}
	if a := r.ParameterNotFoundAction; a == nil || *a == "" {
		l.Required(p.Child("parameterNotFoundAction"), "")
	} else {
		check.OneOf(l, p.Child("parameterNotFoundAction"), *a, admissionv1.DenyAction, admissionv1.AllowAction)
	}
}

func bindingColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		api.Column("PolicyName", "string", "PolicyName indicates the policy definition which the policy binding binded to"),
		api.Column("ParamRef", "string", "ParamRef indicates the param resource which sets the configuration param"),
		api.AgeColumn(),
	}
}

func webhookColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		api.Column("Webhooks", "integer", "Webhooks indicates the number of webhooks registered in this configuration"),
		api.AgeColumn(),
	}
}
