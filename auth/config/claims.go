package config

import (
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservercel "k8s.io/apiserver/pkg/cel"
)

// Claims are the compiled rules of one issuer.
type Claims struct {
	*JWT
	username, groups, uid *expression // nil: the claim of the mapping
	extra                 []mapped
	rules, userRules      []rule
}

type mapped struct {
	key string
	*expression
}

type rule struct {
	message string
	*expression
}

// What expressions see.
func claimsScope() scope {
	return scope{"claims", func() *apiservercel.DeclType {
		return apiservercel.NewMapType(apiservercel.StringType, apiservercel.AnyType, -1)
	}}
}

func userScope() scope {
	return scope{"user", func() *apiservercel.DeclType {
		str, strs := apiservercel.StringType, apiservercel.NewListType(apiservercel.StringType, -1)
		return object("UserInfo", fields{"username": str, "uid": str, "groups": strs, "extra": apiservercel.NewMapType(str, strs, -1)})
	}}
}

func mustBeBool(t *cel.Type) string {
	if t != cel.BoolType {
		return "must evaluate to bool"
	}
	return ""
}

// compile validates what a configuration says of one issuer on the way.
func (c *Claims) compile(k compiler, own []string, p *field.Path) field.ErrorList {
	errs := c.Issuer.validate(own, p.Child("issuer"))
	errs = append(errs, c.compileRules(k, p.Child("claimValidationRules"))...)
	errs = append(errs, c.compileMappings(k, p.Child("claimMappings"))...)
	return append(errs, c.compileUserRules(k, p.Child("userValidationRules"))...)
}

func (c *Claims) compileRules(k compiler, root *field.Path) (errs field.ErrorList) {
	claims, texts := map[string]bool{}, map[string]bool{}
	for i, r := range c.ClaimValidationRules {
		p := root.Index(i)
		switch {
		case r.Claim != "" && r.Expression != "":
			errs = append(errs, field.Invalid(p, r.Claim, "claim and expression can't both be set"))
		case r.Claim == "" && r.Expression == "":
			errs = append(errs, field.Required(p, "claim or expression is required"))
		case r.Claim != "":
			if r.Message != "" {
				errs = append(errs, field.Invalid(p.Child("message"), r.Message, "may not be specified when claim is set"))
			}
			if claims[r.Claim] {
				errs = append(errs, field.Duplicate(p.Child("claim"), r.Claim))
			}
			claims[r.Claim] = true
		default:
			if r.RequiredValue != "" {
				errs = append(errs, field.Invalid(p.Child("requiredValue"), r.RequiredValue, "may not be specified when expression is set"))
			}
			if texts[r.Expression] {
				errs = append(errs, field.Duplicate(p.Child("expression"), r.Expression))
				continue
			}
			texts[r.Expression] = true
			x, err := k.compile(r.Expression, claimsScope(), p.Child("expression"), mustBeBool)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			c.rules = append(c.rules, rule{r.Message, x})
		}
	}
	return errs
}

func (c *Claims) compileMappings(k compiler, p *field.Path) (errs field.ErrorList) {
	m := c.ClaimMappings
	var more field.ErrorList
	c.username, errs = m.Username.compile(k, p.Child("username"), true)
	c.groups, more = m.Groups.compile(k, p.Child("groups"), false)
	errs = append(errs, more...)
	switch uid := p.Child("uid"); {
	case m.UID.Claim != "" && m.UID.Expression != "":
		errs = append(errs, field.Invalid(uid, "", "claim and expression can't both be set"))
	case m.UID.Expression != "":
		x, err := k.compile(m.UID.Expression, claimsScope(), uid.Child("expression"), nil)
		if err != nil {
			errs = append(errs, err)
		}
		c.uid = x
	}
	errs = append(errs, c.compileExtra(k, p.Child("extra"))...)
	if c.username != nil && c.username.selects("claims", "email") && !c.verifiesEmail() {
		errs = append(errs, field.Invalid(p.Child("username", "expression"), m.Username.Expression, "claims.email_verified must be used in "+
			"claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression "+
			"when claims.email is used in claimMappings.username.expression"))
	}
	return errs
}

func (m *PrefixedClaimOrExpression) compile(k compiler, p *field.Path, required bool) (x *expression, errs field.ErrorList) {
	switch {
	case m.Expression != "" && m.Claim != "":
		errs = append(errs, field.Invalid(p, "", "claim and expression can't both be set"))
	case m.Expression != "":
		if m.Prefix != nil {
			errs = append(errs, field.Invalid(p.Child("prefix"), *m.Prefix, "may not be specified when expression is set"))
		}
		var err *field.Error
		if x, err = k.compile(m.Expression, claimsScope(), p.Child("expression"), nil); err != nil {
			errs = append(errs, err)
		}
	case m.Claim != "" && m.Prefix == nil:
		errs = append(errs, field.Required(p.Child("prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"))
	case m.Claim == "" && required:
		errs = append(errs, field.Required(p, "claim or expression is required"))
	}
	return x, errs
}

func (c *Claims) compileExtra(k compiler, root *field.Path) (errs field.ErrorList) {
	keys := map[string]bool{}
	for i, m := range c.ClaimMappings.Extra {
		p := root.Index(i)
		at := p.Child("key")
		errs = append(errs, utilvalidation.IsDomainPrefixedPath(at, m.Key)...)
		if m.Key != strings.ToLower(m.Key) {
			errs = append(errs, field.Invalid(at, m.Key, "must be lowercase"))
		}
		if domain, _, ok := strings.Cut(m.Key, "/"); ok && (within(domain, "kubernetes.io") || within(domain, "k8s.io")) {
			errs = append(errs, field.Invalid(at, m.Key, "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"))
		}
		if keys[m.Key] {
			errs = append(errs, field.Duplicate(at, m.Key))
			continue
		}
		keys[m.Key] = true
		if m.ValueExpression == "" {
			errs = append(errs, field.Required(p.Child("valueExpression"), ""))
			continue
		}
		x, err := k.compile(m.ValueExpression, claimsScope(), p.Child("valueExpression"), nil)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.extra = append(c.extra, mapped{m.Key, x})
	}
	return errs
}

func within(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// verifiesEmail says whether an expression looks at email_verified.
func (c *Claims) verifiesEmail() bool {
	looks := func(x *expression) bool { return x.selects("claims", "email_verified") }
	return looks(c.username) ||
		slices.ContainsFunc(c.extra, func(m mapped) bool { return looks(m.expression) }) ||
		slices.ContainsFunc(c.rules, func(r rule) bool { return looks(r.expression) })
}

func (c *Claims) compileUserRules(k compiler, root *field.Path) (errs field.ErrorList) {
	texts := map[string]bool{}
	for i, r := range c.UserValidationRules {
		p := root.Index(i).Child("expression")
		switch {
		case r.Expression == "":
			errs = append(errs, field.Required(p, ""))
			continue
		case texts[r.Expression]:
			errs = append(errs, field.Duplicate(p, r.Expression))
			continue
		}
		texts[r.Expression] = true
		x, err := k.compile(r.Expression, userScope(), p, mustBeBool)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.userRules = append(c.userRules, rule{r.Message, x})
	}
	return errs
}
