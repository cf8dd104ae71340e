package flowcontrol

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
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
		StoragePrefix: "flowschemas",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(f *flowcontrolv1.FlowSchema) { f.Status, f.Generation = flowcontrolv1.FlowSchemaStatus{}, 1 }),
			PrepareForUpdate: api.OnUpdate(func(f, old *flowcontrolv1.FlowSchema) {
				f.Status = old.Status
				api.BumpGeneration(f, old, api.Changed(f.Spec, old.Spec))
			}),
			Validate:       api.Check(validateFlowSchema),
			ValidateUpdate: api.CheckUpdate(func(f, _ *flowcontrolv1.FlowSchema) field.ErrorList { return validateFlowSchema(f) }),
		},
		Subresources: []api.Subresource{api.StatusView(func(f, old *flowcontrolv1.FlowSchema) { f.Spec = old.Spec }, nil)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("PriorityLevel", "string", flowcontrolv1.PriorityLevelConfigurationReference{}.SwaggerDoc()["name"]),
			api.Column("MatchingPrecedence", "string", doc["matchingPrecedence"]),
			api.Column("DistinguisherMethod", "string", doc["distinguisherMethod"]),
			api.AgeColumn(),
			api.Column("MissingPL", "string", "references a broken or non-existent PriorityLevelConfiguration"),
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
	if m := s.DistinguisherMethod; m != nil {
		check.OneOf(l, specPath.Child("distinguisherMethod", "type"), m.Type, flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)
	}
	at = specPath.Child("priorityLevelConfiguration", "name")
	if name := s.PriorityLevelConfiguration.Name; name == "" {
		l.Required(at, "must reference a priority level")
	} else {
		l.Messages(at, name, path.ValidatePathSegmentName(name, false))
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
	for i, s := range r.Subjects {
		at := p.Child("subjects").Index(i)
		switch s.Kind {
		case flowcontrolv1.SubjectKindUser:
			if s.User == nil {
				l.Required(at.Child("user"), "user is required when subject kind is 'User'")
			}
		case flowcontrolv1.SubjectKindGroup:
			if s.Group == nil {
				l.Required(at.Child("group"), "group is required when subject kind is 'Group'")
			}
		case flowcontrolv1.SubjectKindServiceAccount:
			if s.ServiceAccount == nil {
				l.Required(at.Child("serviceAccount"), "serviceAccount is required when subject kind is 'ServiceAccount'")
			}
		default:
			check.OneOf(l, at.Child("kind"), s.Kind, flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser)
		}
	}
	if len(r.ResourceRules)+len(r.NonResourceRules) == 0 {
		l.Required(p, "at least one of resourceRules and nonResourceRules has to be non-empty")
	}
	for i, rule := range r.ResourceRules {
		at := p.Child("resourceRules").Index(i)
		if len(rule.Verbs) == 0 {
			l.Required(at.Child("verbs"), "verbs must contain at least one value")
		}
		if len(rule.APIGroups) == 0 {
			l.Required(at.Child("apiGroups"), "resource rules must supply at least one api group")
		}
		if len(rule.Resources) == 0 {
			l.Required(at.Child("resources"), "resource rules must supply at least one resource")
		}
		if len(rule.Namespaces) == 0 && !rule.ClusterScope {
			l.Required(at.Child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace")
		}
	}
	for i, rule := range r.NonResourceRules {
		at := p.Child("nonResourceRules").Index(i)
		if len(rule.Verbs) == 0 {
			l.Required(at.Child("verbs"), "verbs must contain at least one value")
		}
		if len(rule.NonResourceURLs) == 0 {
			l.Required(at.Child("nonResourceURLs"), "nonResourceURLs must contain at least one value")
		}
	}
}
