package flowcontrol

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

var specPath = field.NewPath("spec")

const (
	defaultPrecedence = 1000
	maxPrecedence     = 10000
)

func flowSchemaResource() *api.Resource {
	doc := flowcontrolv1.FlowSchemaSpec{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "flowschemas", Singular: "flowschema", Kind: "FlowSchema",
		Versions: []api.Version{api.Versioned[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList]("v1", func(f *flowcontrolv1.FlowSchema) {
			if f.Spec.MatchingPrecedence == 0 {
				f.Spec.MatchingPrecedence = defaultPrecedence
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(f *flowcontrolv1.FlowSchema) { f.Status, f.Generation = flowcontrolv1.FlowSchemaStatus{}, 1 }),
			PrepareForUpdate: api.OnUpdate(func(f, old *flowcontrolv1.FlowSchema) {
				f.Status = old.Status
				api.BumpGeneration(f, old, api.Changed(f.Spec, old.Spec))
			}),
			Validate:       api.Check(validateFlowSchema),
			ValidateUpdate: api.CheckUpdate(func(f, _ *flowcontrolv1.FlowSchema) field.ErrorList { return validateFlowSchema(f) }),
		},
		Subresources: []api.Subresource{api.StatusOnly(func(f, old *flowcontrolv1.FlowSchema) { f.Spec = old.Spec }, func(f, _ *flowcontrolv1.FlowSchema) field.ErrorList {
			var types []flowcontrolv1.FlowSchemaConditionType
			for _, c := range f.Status.Conditions {
				types = append(types, c.Type)
			}
			return checkConditions(types...)
		})},
		Columns: []metav1.TableColumnDefinition{
			api.Column("PriorityLevel", "string", flowcontrolv1.PriorityLevelConfigurationReference{}.SwaggerDoc()["name"]),
			api.Column("MatchingPrecedence", "string", doc["matchingPrecedence"]),
			api.Column("DistinguisherMethod", "string", doc["distinguisherMethod"]),
			api.AgeColumn(),
			api.Column("MissingPL", "string", "references a broken or non-existent PriorityLevelConfiguration"),
		},
		RowOrder: func(a, b api.Object) int {
			x, y := a.(*flowcontrolv1.FlowSchema), b.(*flowcontrolv1.FlowSchema)
			return cmp.Or(cmp.Compare(x.Spec.MatchingPrecedence, y.Spec.MatchingPrecedence), cmp.Compare(x.Name, y.Name))
		},
		Cells: api.Row(func(f *flowcontrolv1.FlowSchema, now metav1.Time) []any {
			by, dangling := "<none>", "?"
			if m := f.Spec.DistinguisherMethod; m != nil {
				by = string(m.Type)
			}
			for _, c := range f.Status.Conditions {
				if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
					dangling = string(c.Status)
					break
				}
			}
			return []any{f.Name, f.Spec.PriorityLevelConfiguration.Name, int64(f.Spec.MatchingPrecedence), by, api.Age(f.CreationTimestamp, now), dangling}
		}),
	}
}

func validateFlowSchema(f *flowcontrolv1.FlowSchema) field.ErrorList {
	l, s := &check.List{}, &f.Spec
	at := specPath.Child("matchingPrecedence")
	if s.MatchingPrecedence <= 0 {
		l.Invalid(at, s.MatchingPrecedence, "must be a positive value")
	}
	if s.MatchingPrecedence > maxPrecedence {
		l.Invalid(at, s.MatchingPrecedence, "must not be greater than 10000")
	}
	if s.MatchingPrecedence == 1 && f.Name != flowcontrolv1.FlowSchemaNameExempt {
		l.Invalid(at, s.MatchingPrecedence, "only the schema named 'exempt' may have matchingPrecedence 1")
	}
	methods := []flowcontrolv1.FlowDistinguisherMethodType{flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType}
	if m := s.DistinguisherMethod; m != nil && !slices.Contains(methods, m.Type) {
		l.Errors = append(l.Errors, field.NotSupported(specPath.Child("distinguisherMethod", "type"), m, methods))
	}
	at = specPath.Child("priorityLevelConfiguration", "name")
	if name := s.PriorityLevelConfiguration.Name; name == "" {
		l.Required(at, "must reference a priority level")
	} else {
		l.Messages(at, name, apivalidation.NameIsDNSSubdomain(name, false))
	}
	for i := range s.Rules {
		checkRule(l, specPath.Child("rules").Index(i), &s.Rules[i])
	}
	return l.Errors
}

func checkRule(l *check.List, p *field.Path, r *flowcontrolv1.PolicyRulesWithSubjects) {
	if len(r.Subjects) == 0 {
		l.Required(p.Child("subjects"), "subjects must contain at least one value")
	}
	for i := range r.Subjects {
		checkSubject(l, p.Child("subjects").Index(i), &r.Subjects[i])
	}
	if len(r.ResourceRules)+len(r.NonResourceRules) == 0 {
		l.Required(p, "at least one of resourceRules and nonResourceRules has to be non-empty")
	}
	for i, rule := range r.ResourceRules {
		at := p.Child("resourceRules").Index(i)
		checkVerbs(l, at.Child("verbs"), rule.Verbs)
		checkAlone(l, at.Child("apiGroups"), rule.APIGroups, "resource rules must supply at least one api group", "api groups")
		checkAlone(l, at.Child("resources"), rule.Resources, "resource rules must supply at least one resource", "resources")
		if len(rule.Namespaces) > 0 || !rule.ClusterScope {
			checkAlone(l, at.Child("namespaces"), rule.Namespaces, "resource rules that are not cluster scoped must supply at least one namespace", "namespaces")
		}
		for j, ns := range rule.Namespaces {
			for _, msg := range apivalidation.ValidateNamespaceName(ns, false) {
				if !slices.Contains(rule.Namespaces, "*") {
					l.Invalid(at.Child("namespaces").Index(j), ns, "each member of this list must be '*' or a DNS-1123 label; "+msg)
				}
			}
		}
	}
	for i, rule := range r.NonResourceRules {
		at := p.Child("nonResourceRules").Index(i)
		checkVerbs(l, at.Child("verbs"), rule.Verbs)
		checkAlone(l, at.Child("nonResourceURLs"), rule.NonResourceURLs, "nonResourceURLs must contain at least one value", "non-resource URLs")
		for j, url := range rule.NonResourceURLs {
			if msg := badURL(url); msg != "" && !slices.Contains(rule.NonResourceURLs, "*") {
				l.Invalid(at.Child("nonResourceURLs").Index(j), url, msg)
			}
		}
	}
}

// checkAlone wants values, and "*" only alone.
func checkAlone(l *check.List, p *field.Path, values []string, none, what string) {
	if len(values) == 0 {
		l.Required(p, none)
	} else if len(values) > 1 && slices.Contains(values, "*") {
		l.Invalid(p, values, "if '*' is present, must not specify other "+what)
	}
}

func checkVerbs(l *check.List, p *field.Path, verbs []string) {
	checkAlone(l, p, verbs, "verbs must contain at least one value", "verbs")
	known := []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}
	if !slices.Contains(verbs, "*") && slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(known, v) }) {
		l.Add(field.ErrorList{field.NotSupported(p, verbs, known)})
	}
}

// badURL says what is wrong with a path, "" if nothing is.
func badURL(url string) string {
	stars := strings.Count(url, "*")
	switch {
	case url == "":
		return "must not be empty"
	case url == "/":
	case url[0] != '/':
		return "must start with slash"
	case strings.Contains(url, " "):
		return "must not contain white-space"
	case strings.Contains(url, "//"):
		return "must not contain double slash"
	case stars > 1 || stars == 1 && !strings.HasSuffix(url, "/*"):
		return "wildcard can only do suffix matching"
	}
	return ""
}

// checkSubject wants what belongs to the subject's kind, and nothing else.
func checkSubject(l *check.List, p *field.Path, s *flowcontrolv1.Subject) {
	parts := []struct {
		kind  flowcontrolv1.SubjectKind
		field string
		set   bool
	}{
		{flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil},
		{flowcontrolv1.SubjectKindUser, "user", s.User != nil}, {flowcontrolv1.SubjectKindGroup, "group", s.Group != nil},
	}
	if !check.OneOf(l, p.Child("kind"), s.Kind, flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser) {
		return
	}
	for _, part := range parts {
		if part.kind == s.Kind && !part.set {
			l.Required(p.Child(part.field), fmt.Sprintf("%s is required when subject kind is '%s'", part.field, part.kind))
		}
	}
	switch at := p.Child("serviceAccount"); {
	case s.Kind == flowcontrolv1.SubjectKindUser && s.User != nil:
		l.Text(p.Child("user", "name"), s.User.Name)
	case s.Kind == flowcontrolv1.SubjectKindGroup && s.Group != nil:
		l.Text(p.Child("group", "name"), s.Group.Name)
	case s.Kind == flowcontrolv1.SubjectKindServiceAccount && s.ServiceAccount != nil:
		a := s.ServiceAccount
		l.Text(at.Child("name"), a.Name)
		if a.Name != "" && a.Name != flowcontrolv1.NameAll {
			l.Messages(at.Child("name"), a.Name, apivalidation.ValidateServiceAccountName(a.Name, false))
		}
		if a.Namespace == "" {
			l.Required(at.Child("namespace"), "must specify namespace for service account")
		} else {
			l.Messages(at.Child("namespace"), a.Namespace, apivalidation.ValidateNamespaceName(a.Namespace, false))
		}
	}
	for _, part := range parts {
		l.ForbidIf(p.Child(part.field), part.kind != s.Kind && part.set, fmt.Sprintf("%s is forbidden when subject kind is not '%s'", part.field, part.kind))
	}
}
