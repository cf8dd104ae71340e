package audit

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/auth"
)

// Level is how much of a request is recorded; each is more than the one before.
type Level string

// Levels.
const (
	LevelNone            Level = "None"
	LevelMetadata        Level = "Metadata"
	LevelRequest         Level = "Request"
	LevelRequestResponse Level = "RequestResponse"
)

var levels = []Level{LevelNone, LevelMetadata, LevelRequest, LevelRequestResponse}

func (l Level) atLeast(other Level) bool {
	return slices.Index(levels, l) >= slices.Index(levels, other)
}

// Stage is when an event is recorded.
type Stage string

// Stages.
const (
	StageRequestReceived  Stage = "RequestReceived"
	StageResponseStarted  Stage = "ResponseStarted" // long-running requests only
	StageResponseComplete Stage = "ResponseComplete"
	StagePanic            Stage = "Panic"
)

var stages = []Stage{StageRequestReceived, StageResponseStarted, StageResponseComplete, StagePanic}

// Policy is audit.k8s.io/v1 Policy: the first rule that matches a request says
// what is recorded; with none, nothing is.
type Policy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Rules             []Rule  `json:"rules"`
	OmitStages        []Stage `json:"omitStages,omitempty"`
	OmitManagedFields bool    `json:"omitManagedFields,omitempty"`
}

// Rule is one of a Policy. What is empty matches everything.
type Rule struct {
	Level             Level            `json:"level"`
	Users             []string         `json:"users,omitempty"`
	UserGroups        []string         `json:"userGroups,omitempty"`
	Verbs             []string         `json:"verbs,omitempty"`
	Resources         []GroupResources `json:"resources,omitempty"`
	Namespaces        []string         `json:"namespaces,omitempty"`
	NonResourceURLs   []string         `json:"nonResourceURLs,omitempty"`
	OmitStages        []Stage          `json:"omitStages,omitempty"`
	OmitManagedFields *bool            `json:"omitManagedFields,omitempty"`
}

// GroupResources are resources ("pods", "pods/log", "pods/*", "*/scale", "*")
// of a group.
type GroupResources struct {
	Group         string   `json:"group,omitempty"`
	Resources     []string `json:"resources,omitempty"`
	ResourceNames []string `json:"resourceNames,omitempty"`
}

// ParsePolicy reads and checks a policy file.
func ParsePolicy(data []byte) (*Policy, error) {
	var p Policy
	if err := yaml.UnmarshalStrict(data, &p); err != nil {
		return nil, fmt.Errorf("audit policy: %w", err)
	}
	if p.APIVersion != "audit.k8s.io/v1" || p.Kind != "Policy" {
		return nil, fmt.Errorf("audit policy: it is a %s %s, not an audit.k8s.io/v1 Policy", p.APIVersion, p.Kind)
	}
	if len(p.Rules) == 0 {
		return nil, fmt.Errorf("audit policy: loaded illegal policy with 0 rules")
	}
	errs := badStages(p.OmitStages, field.NewPath("omitStages"))
	for i := range p.Rules {
		errs = append(errs, p.Rules[i].validate(field.NewPath("rules").Index(i))...)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("audit policy: %w", errs.ToAggregate())
	}
	return &p, nil
}

func badStages(list []Stage, at *field.Path) (errs field.ErrorList) {
	for i, s := range list {
		if !slices.Contains(stages, s) {
			errs = append(errs, field.Invalid(at.Index(i), s, "allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic"))
		}
	}
	return errs
}

func (r *Rule) validate(at *field.Path) field.ErrorList {
	errs := badStages(r.OmitStages, at.Child("omitStages"))
	switch {
	case r.Level == "":
		errs = append(errs, field.Required(at.Child("level"), ""))
	case !slices.Contains(levels, r.Level):
		errs = append(errs, field.NotSupported(at.Child("level"), r.Level, levels))
	}
	for i, url := range r.NonResourceURLs {
		one := at.Child("nonResourceURLs").Index(i)
		switch {
		case url == "*":
		case !strings.HasPrefix(url, "/"):
			errs = append(errs, field.Invalid(one, url, "non-resource URL rules must begin with a '/' character"))
		case strings.Contains(url[:len(url)-1], "*"):
			errs = append(errs, field.Invalid(one, url, "non-resource URL wildcards '*' must be the final character of the rule"))
		}
	}
	if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
		errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
	}
	for _, g := range r.Resources {
		if g.Group != "" && g.Group != "*" {
			if msgs := validation.NameIsDNSSubdomain(g.Group, false); len(msgs) > 0 {
				errs = append(errs, field.Invalid(at.Child("resources", "group"), g.Group, strings.Join(msgs, ",")))
			}
		}
		if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
			errs = append(errs, field.Invalid(at.Child("resources", "resourceNames"), g.ResourceNames, "using resourceNames requires at least one resource"))
		}
	}
	return errs
}

// verdict is what a policy says of one request.
type verdict struct {
	level             Level
	omit              []Stage // either list
	omitToo           []Stage
	omitManagedFields bool
}

func (v *verdict) omits(s Stage) bool {
	return slices.Contains(v.omit, s) || slices.Contains(v.omitToo, s)
}

func (p *Policy) decide(a auth.Attributes) verdict {
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.matches(a) {
			continue
		}
		v := verdict{r.Level, p.OmitStages, r.OmitStages, p.OmitManagedFields}
		if carriesCredentials(a) && v.level.atLeast(LevelMetadata) {
			v.level = LevelMetadata
		}
		if r.OmitManagedFields != nil {
			v.omitManagedFields = *r.OmitManagedFields
		}
		return v
	}
	return verdict{level: LevelNone}
}

// carriesCredentials reports whether the bodies of a request, or of its answer, are secrets as such:
// Secrets, new tokens, and tokens to be reviewed. No policy puts them into a log.
func carriesCredentials(a auth.Attributes) bool {
	switch {
	case !a.ResourceRequest:
		return false
	case a.APIGroup == "authentication.k8s.io":
		return a.Resource == "tokenreviews"
	case a.APIGroup == "":
		return a.Resource == "secrets" || a.Resource == "serviceaccounts" && a.Subresource == "token"
	}
	return false
}

func among(list []string, one string) bool { return len(list) == 0 || slices.Contains(list, one) }

func (r *Rule) matches(a auth.Attributes) bool {
	if !among(r.Users, a.User.Name) || !among(r.Verbs, a.Verb) {
		return false
	}
	if len(r.UserGroups) > 0 && !slices.ContainsFunc(a.User.Groups, func(g string) bool { return slices.Contains(r.UserGroups, g) }) {
		return false
	}
	switch {
	case len(r.Namespaces) > 0 || len(r.Resources) > 0:
		return a.ResourceRequest && among(r.Namespaces, a.Namespace) &&
			(len(r.Resources) == 0 || slices.ContainsFunc(r.Resources, func(g GroupResources) bool { return g.matches(a) }))
	case len(r.NonResourceURLs) > 0:
		return !a.ResourceRequest && slices.ContainsFunc(r.NonResourceURLs, func(spec string) bool {
			prefix, open := strings.CutSuffix(spec, "*")
			return a.Path == spec || open && strings.HasPrefix(a.Path, prefix)
		})
	}
	return true
}

func (g *GroupResources) matches(a auth.Attributes) bool {
	if g.Group != "*" && g.Group != a.APIGroup {
		return false
	}
	if len(g.Resources) == 0 {
		return true
	}
	if !among(g.ResourceNames, a.Name) {
		return false
	}
	whole := a.Resource
	if a.Subresource != "" {
		whole += "/" + a.Subresource
	}
	return slices.ContainsFunc(g.Resources, func(res string) bool {
		name, sub, _ := strings.Cut(res, "/")
		return res == whole || res == "*" || name == "*" && a.Subresource != "" && sub == a.Subresource || sub == "*" && name == a.Resource
	})
}
