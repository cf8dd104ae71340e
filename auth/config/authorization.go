package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Types of authorizers. ABAC is upstream's and not here.
const (
	AlwaysAllow = "AlwaysAllow"
	AlwaysDeny  = "AlwaysDeny"
	Node        = "Node"
	RBAC        = "RBAC"
	Webhook     = "Webhook"
)

// Types are those of upstream, in alphabetical order.
func Types() []string { return []string{"ABAC", AlwaysAllow, AlwaysDeny, Node, RBAC, Webhook} }

// Authorization is an AuthorizationConfiguration: who is asked, in this order.
type Authorization struct {
	metav1.TypeMeta `json:",inline"`
	Authorizers     []Authorizer `json:"authorizers"`
}

// Authorizer is one of them. Only webhooks may be there more than once.
type Authorizer struct {
	Type    string         `json:"type"`
	Name    string         `json:"name"`
	Webhook *AccessWebhook `json:"webhook,omitempty"`
}

// AccessWebhook is a server that is sent SubjectAccessReviews.
type AccessWebhook struct {
	AuthorizedTTL                            metav1.Duration  `json:"authorizedTTL"`             // default 5m
	CacheAuthorizedRequests                  *bool            `json:"cacheAuthorizedRequests"`   // default true
	UnauthorizedTTL                          metav1.Duration  `json:"unauthorizedTTL"`           // default 30s
	CacheUnauthorizedRequests                *bool            `json:"cacheUnauthorizedRequests"` // default true
	Timeout                                  metav1.Duration  `json:"timeout"`
	SubjectAccessReviewVersion               string           `json:"subjectAccessReviewVersion"`
	MatchConditionSubjectAccessReviewVersion string           `json:"matchConditionSubjectAccessReviewVersion"`
	FailurePolicy                            string           `json:"failurePolicy"`
	ConnectionInfo                           ConnectionInfo   `json:"connectionInfo"`
	MatchConditions                          []MatchCondition `json:"matchConditions"`

	Conditions *Conditions `json:"-"` // MatchConditions, once they are validated
}

// ConnectionInfo is how the server is reached.
type ConnectionInfo struct {
	Type           string  `json:"type"`
	KubeConfigFile *string `json:"kubeConfigFile"`
}

// MatchCondition must be true of requests the server is asked about.
type MatchCondition struct {
	Expression string `json:"expression"`
}

// ParseAuthorization reads a configuration file and validates it. stat looks at
// files it names; required types must be in it. The error tells all that is wrong.
func ParseAuthorization(data []byte, stat func(string) (fs.FileInfo, error), required []string) (*Authorization, error) {
	c := &Authorization{}
	if len(data) > 0 { // upstream: an empty file is an empty configuration
		if err := decode(data, "AuthorizationConfiguration", c); err != nil {
			return nil, fmt.Errorf("failed to load AuthorizationConfiguration from file: %w", err)
		}
	}
	for i := range c.Authorizers {
		c.Authorizers[i].Webhook.setDefaults()
	}
	if err := c.validate(stat).ToAggregate(); err != nil {
		return nil, err
	}
	var errs []error
	missing := slices.Clone(required)
	for _, a := range c.Authorizers {
		missing = slices.DeleteFunc(missing, func(t string) bool { return t == a.Type })
		if want := strings.ToLower(a.Type); a.Type != Webhook && a.Name != want {
			errs = append(errs, fmt.Errorf("expected name %s for authorizer %s instead of %s", want, a.Type, a.Name))
		}
		if a.Type == "ABAC" {
			errs = append(errs, errors.New("authorizer type ABAC is not supported"))
		}
	}
	if len(missing) > 0 {
		errs = append(errs, fmt.Errorf("missing required types: %v", slices.Sorted(slices.Values(missing))))
	}
	return c, utilerrors.NewAggregate(errs)
}

func (w *AccessWebhook) setDefaults() {
	if w == nil {
		return
	}
	yes := true
	if w.AuthorizedTTL.Duration == 0 {
		w.AuthorizedTTL.Duration = 5 * time.Minute
	}
	if w.CacheAuthorizedRequests == nil {
		w.CacheAuthorizedRequests = &yes
	}
	if w.UnauthorizedTTL.Duration == 0 {
		w.UnauthorizedTTL.Duration = 30 * time.Second
	}
	if w.CacheUnauthorizedRequests == nil {
		w.CacheUnauthorizedRequests = &yes
	}
}

func (c *Authorization) validate(stat func(string) (fs.FileInfo, error)) (errs field.ErrorList) {
	root := field.NewPath("authorizers")
	if len(c.Authorizers) == 0 {
		errs = append(errs, field.Required(root, "at least one authorization mode must be defined"))
	}
	compiling := compiler{}
	types, names := map[string]bool{}, map[string]bool{}
	for i, a := range c.Authorizers {
		p := root.Index(i)
		switch {
		case a.Type == "":
			errs = append(errs, field.Required(p.Child("type"), ""))
			continue
		case !slices.Contains(Types(), a.Type):
			errs = append(errs, field.NotSupported(p.Child("type"), a.Type, Types()))
			continue
		case types[a.Type] && a.Type != Webhook:
			errs = append(errs, field.Duplicate(p.Child("type"), a.Type))
			continue
		}
		types[a.Type] = true
		if a.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else if names[a.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), a.Name))
		} else if wrong := utilvalidation.IsDNS1123Subdomain(a.Name); len(wrong) > 0 {
			errs = append(errs, field.Invalid(p.Child("name"), a.Name, "authorizer name is invalid: "+strings.Join(wrong, ", ")))
		}
		names[a.Name] = true
		switch {
		case a.Type != Webhook && a.Webhook != nil:
			errs = append(errs, field.Invalid(p.Child("webhook"), "non-null", "may only be specified when type=Webhook"))
		case a.Type == Webhook && a.Webhook == nil:
			errs = append(errs, field.Required(p.Child("webhook"), "required when type=Webhook"))
		case a.Type == Webhook:
			errs = append(errs, a.Webhook.validate(compiling, p, stat)...)
		}
	}
	return errs
}

func (w *AccessWebhook) validate(k compiler, p *field.Path, stat func(string) (fs.FileInfo, error)) (errs field.ErrorList) {
	if t := w.Timeout.Duration; t == 0 {
		errs = append(errs, field.Required(p.Child("timeout"), ""))
	} else if t > 30*time.Second || t < 0 {
		errs = append(errs, field.Invalid(p.Child("timeout"), t.String(), "must be > 0s and <= 30s"))
	}
	if t := w.AuthorizedTTL.Duration; t < 0 {
		errs = append(errs, field.Invalid(p.Child("authorizedTTL"), t.String(), "must be > 0s"))
	}
	if t := w.UnauthorizedTTL.Duration; t < 0 {
		errs = append(errs, field.Invalid(p.Child("unauthorizedTTL"), t.String(), "must be > 0s"))
	}
	oneOf := func(value, name string, allowed ...string) {
		if value == "" {
			errs = append(errs, field.Required(p.Child(name), ""))
		} else if !slices.Contains(allowed, value) {
			errs = append(errs, field.NotSupported(p.Child(name), value, allowed))
		}
	}
	oneOf(w.SubjectAccessReviewVersion, "subjectAccessReviewVersion", "v1", "v1beta1")
	if v := w.MatchConditionSubjectAccessReviewVersion; v != "" {
		oneOf(v, "matchConditionSubjectAccessReviewVersion", "v1")
	} else if len(w.MatchConditions) > 0 {
		errs = append(errs, field.Required(p.Child("matchConditionSubjectAccessReviewVersion"), "required if match conditions are specified"))
	}
	oneOf(w.FailurePolicy, "failurePolicy", "NoOpinion", "Deny")
	errs = append(errs, w.ConnectionInfo.validate(p.Child("connectionInfo"), stat)...)
	var more field.ErrorList
	w.Conditions, more = compileConditions(k, w.MatchConditions, p.Child("matchConditions"))
	return append(errs, more...)
}

func (c *ConnectionInfo) validate(p *field.Path, stat func(string) (fs.FileInfo, error)) field.ErrorList {
	const inCluster, file = "InClusterConfig", "KubeConfigFile"
	at := p.Child("kubeConfigFile")
	switch c.Type {
	case "":
		return field.ErrorList{field.Required(p.Child("type"), "")}
	case inCluster: // it would ask this very server
		if c.KubeConfigFile != nil {
			return field.ErrorList{field.Invalid(at, *c.KubeConfigFile, "can only be set when type=KubeConfigFile")}
		}
		return field.ErrorList{field.NotSupported(p.Child("type"), c.Type, []string{file})}
	case file:
	default:
		return field.ErrorList{field.NotSupported(p.Child("type"), c.Type, []string{inCluster, file})}
	}
	if c.KubeConfigFile == nil || *c.KubeConfigFile == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	name := *c.KubeConfigFile
	if !filepath.IsAbs(name) {
		return field.ErrorList{field.Invalid(at, name, "must be an absolute path")}
	}
	info, err := stat(name)
	if err != nil {
		return field.ErrorList{field.Invalid(at, name, fmt.Sprintf("error loading file: %v", err))}
	}
	if !info.Mode().IsRegular() {
		return field.ErrorList{field.Invalid(at, name, "must be a regular file")}
	}
	return nil
}
