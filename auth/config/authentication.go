package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/cert"
)

// Authentication is an AuthenticationConfiguration.
type Authentication struct {
	metav1.TypeMeta `json:",inline"`
	JWT             []JWT      `json:"jwt"`
	Anonymous       *Anonymous `json:"anonymous,omitempty"`
}

// Anonymous says which requests without a credential are system:anonymous's:
// none, all, or with conditions those that meet one.
type Anonymous struct {
	Enabled    bool                 `json:"enabled"`
	Conditions []AnonymousCondition `json:"conditions,omitempty"`
}

// AnonymousCondition is met by a request for exactly that path.
type AnonymousCondition struct {
	Path string `json:"path"`
}

// JWT authenticates the tokens of one issuer.
type JWT struct {
	Issuer               Issuer                `json:"issuer"`
	ClaimValidationRules []ClaimValidationRule `json:"claimValidationRules,omitempty"`
	ClaimMappings        ClaimMappings         `json:"claimMappings"`
	UserValidationRules  []UserValidationRule  `json:"userValidationRules,omitempty"`
}

// Issuer is who signs tokens, and for whom they must be.
type Issuer struct {
	URL                  string   `json:"url"`
	DiscoveryURL         string   `json:"discoveryURL,omitempty"`         // default: URL's well-known path
	CertificateAuthority string   `json:"certificateAuthority,omitempty"` // PEM; default: the system's
	Audiences            []string `json:"audiences"`
	AudienceMatchPolicy  string   `json:"audienceMatchPolicy,omitempty"`
	EgressSelectorType   string   `json:"egressSelectorType,omitempty"`
}

// ClaimValidationRule refuses tokens: a claim must be there with a value, or an expression be true.
type ClaimValidationRule struct {
	Claim         string `json:"claim,omitempty"`
	RequiredValue string `json:"requiredValue,omitempty"`
	Expression    string `json:"expression,omitempty"`
	Message       string `json:"message,omitempty"`
}

// ClaimMappings make a user of claims.
type ClaimMappings struct {
	Username PrefixedClaimOrExpression `json:"username"`
	Groups   PrefixedClaimOrExpression `json:"groups,omitempty"`
	UID      ClaimOrExpression         `json:"uid"`
	Extra    []ExtraMapping            `json:"extra,omitempty"`
}

// PrefixedClaimOrExpression is a claim behind a prefix, or what an expression makes of the claims.
type PrefixedClaimOrExpression struct {
	Claim      string  `json:"claim,omitempty"`
	Prefix     *string `json:"prefix,omitempty"`
	Expression string  `json:"expression,omitempty"`
}

// ClaimOrExpression is a claim, or what an expression makes of the claims.
type ClaimOrExpression struct {
	Claim      string `json:"claim,omitempty"`
	Expression string `json:"expression,omitempty"`
}

// ExtraMapping makes one key of a user's extra.
type ExtraMapping struct {
	Key             string `json:"key"`
	ValueExpression string `json:"valueExpression"`
}

// UserValidationRule refuses users.
type UserValidationRule struct {
	Expression string `json:"expression"`
	Message    string `json:"message,omitempty"`
}

// maxIssuers is upstream's bound.
const maxIssuers = 64

// ParseAuthentication reads a configuration file. The result is not validated yet.
func ParseAuthentication(data []byte) (*Authentication, error) {
	c := &Authentication{}
	if err := decode(data, "AuthenticationConfiguration", c); err != nil {
		return nil, err
	}
	return c, nil
}

// Compile validates the configuration and compiles the rules of its issuers,
// in their order. The error tells all that is wrong. The server's own issuers
// may not be among them.
func (c *Authentication) Compile(own []string) ([]*Claims, error) {
	root := field.NewPath("jwt")
	if len(c.JWT) > maxIssuers {
		return nil, field.ErrorList{field.TooMany(root, len(c.JWT), maxIssuers)}.ToAggregate()
	}
	var errs field.ErrorList
	var all []*Claims
	compiling := compiler{}
	urls, discovery := map[string]bool{}, map[string]bool{}
	for i := range c.JWT {
		p := root.Index(i)
		claims := &Claims{JWT: &c.JWT[i]}
		errs = append(errs, claims.compile(compiling, own, p)...)
		all = append(all, claims)
		if u := claims.Issuer.URL; urls[u] {
			errs = append(errs, field.Duplicate(p.Child("issuer", "url"), u))
		}
		urls[claims.Issuer.URL] = true
		if u := claims.Issuer.DiscoveryURL; u != "" {
			if discovery[u] {
				errs = append(errs, field.Duplicate(p.Child("issuer", "discoveryURL"), u))
			}
			discovery[u] = true
		}
	}
	if a := c.Anonymous; a != nil && !a.Enabled && len(a.Conditions) > 0 {
		errs = append(errs, field.Invalid(field.NewPath("anonymous", "conditions"), a.Conditions, "enabled should be set to true when conditions are defined"))
	}
	return all, errs.ToAggregate()
}

func (i *Issuer) validate(own []string, p *field.Path) (errs field.ErrorList) {
	if i.URL == "" {
		errs = append(errs, field.Required(p.Child("url"), ""))
	} else {
		errs = append(errs, validateURL(i.URL, own, p.Child("url"))...)
	}
	if i.DiscoveryURL != "" {
		at := p.Child("discoveryURL")
		if i.URL != "" && strings.TrimRight(i.URL, "/") == strings.TrimRight(i.DiscoveryURL, "/") {
			errs = append(errs, field.Invalid(at, i.DiscoveryURL, "discoveryURL must be different from URL"))
		}
		errs = append(errs, validateURL(i.DiscoveryURL, nil, at)...)
	}
	errs = append(errs, i.validateAudiences(p.Child("audiences"), p.Child("audienceMatchPolicy"))...)
	if i.CertificateAuthority != "" {
		if _, err := cert.NewPoolFromBytes([]byte(i.CertificateAuthority)); err != nil {
			errs = append(errs, field.Invalid(p.Child("certificateAuthority"), "<omitted>", err.Error()))
		}
	}
	switch i.EgressSelectorType {
	case "":
	case "controlplane", "cluster":
		errs = append(errs, field.Invalid(p.Child("egressSelectorType"), i.EgressSelectorType, "egress selectors are not supported: leave it out"))
	default:
		errs = append(errs, field.Invalid(p.Child("egressSelectorType"), i.EgressSelectorType, "egress selector must be either controlplane or cluster"))
	}
	return errs
}

func validateURL(text string, own []string, p *field.Path) (errs field.ErrorList) {
	invalid := func(why string) { errs = append(errs, field.Invalid(p, text, why)) }
	if slices.Contains(own, text) {
		invalid(fmt.Sprintf("URL must not overlap with disallowed issuers: %s", slices.Sorted(slices.Values(own))))
	}
	u, err := url.Parse(text)
	if err != nil {
		invalid(err.Error())
		return errs
	}
	if u.Scheme != "https" {
		invalid("URL scheme must be https")
	}
	if u.User != nil {
		invalid("URL must not contain a username or password")
	}
	if u.RawQuery != "" {
		invalid("URL must not contain a query")
	}
	if u.Fragment != "" {
		invalid("URL must not contain a fragment")
	}
	return errs
}

func (i *Issuer) validateAudiences(p, policy *field.Path) (errs field.ErrorList) {
	if len(i.Audiences) == 0 {
		return field.ErrorList{field.Required(p, fmt.Sprintf("at least one %s is required", p))}
	}
	for n, a := range i.Audiences {
		if a == "" {
			errs = append(errs, field.Required(p.Index(n), ""))
		}
		if slices.Contains(i.Audiences[:n], a) {
			errs = append(errs, field.Duplicate(p.Index(n), a))
		}
	}
	switch match := i.AudienceMatchPolicy == "MatchAny"; {
	case len(i.Audiences) > 1 && !match:
		errs = append(errs, field.Invalid(policy, i.AudienceMatchPolicy, "audienceMatchPolicy must be MatchAny for multiple audiences"))
	case len(i.Audiences) == 1 && i.AudienceMatchPolicy != "" && !match:
		errs = append(errs, field.Invalid(policy, i.AudienceMatchPolicy, "audienceMatchPolicy must be empty or MatchAny for single audience"))
	}
	return errs
}
