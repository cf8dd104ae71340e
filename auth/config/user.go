package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/lazy"

	"github.com/skiff-project/skiff/auth"
)

// RawClaims are a token's, by name.
type RawClaims map[string]json.RawMessage

// get reads a claim into v.
func (r RawClaims) get(name string, v any) error {
	raw, ok := r[name]
	if !ok {
		return errors.New("claim not present")
	}
	return json.Unmarshal(raw, v)
}

// User makes the user of a token whose signature, issuer and audience are
// good; the error says which rule refuses it.
func (c *Claims) User(ctx context.Context, raw RawClaims) (u auth.User, err error) {
	claims := lazyClaims(raw)
	if u.Name, err = c.name(ctx, raw, claims); err != nil {
		return auth.User{}, err
	}
	if u.Groups, err = c.groupsOf(ctx, raw, claims); err != nil {
		return auth.User{}, err
	}
	if u.UID, err = c.uidOf(ctx, raw, claims); err != nil {
		return auth.User{}, err
	}
	if u.Extra, err = c.extraOf(ctx, raw, claims); err != nil {
		return auth.User{}, err
	}
	if err := c.required(raw); err != nil {
		return auth.User{}, err
	}
	if err := check(ctx, c.rules, claims); err != nil {
		return auth.User{}, fmt.Errorf("oidc: error evaluating claim validation expression: %w", err)
	}
	if len(c.userRules) > 0 {
		if err := check(ctx, c.userRules, lazyUser(u)); err != nil {
			return auth.User{}, fmt.Errorf("oidc: error evaluating user info validation rule: %w", err)
		}
	}
	return u, nil
}

// value evaluates an expression; it is named in the error.
func (x *expression) value(ctx context.Context, in any) (ref.Val, error) {
	v, err := x.eval(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("expression '%s' resulted in error: %w", x.text, err)
	}
	return v, nil
}

func (c *Claims) name(ctx context.Context, raw RawClaims, claims ref.Val) (string, error) {
	if c.username != nil {
		v, err := c.username.value(ctx, claims)
		if err != nil {
			return "", fmt.Errorf("oidc: error evaluating username claim expression: %w", err)
		}
		name, ok := v.Value().(string)
		if !ok || v.Type() != types.StringType {
			return "", errors.New("oidc: error evaluating username claim expression: username claim expression must return a string")
		}
		if name == "" {
			return "", errors.New("oidc: empty username via CEL expression is not allowed")
		}
		return name, nil
	}
	m := c.ClaimMappings.Username
	var name string
	if err := raw.get(m.Claim, &name); err != nil {
		return "", fmt.Errorf("oidc: parse username claims %q: %w", m.Claim, err)
	}
	if _, said := raw["email_verified"]; said && m.Claim == "email" {
		var verified bool
		if err := raw.get("email_verified", &verified); err != nil {
			return "", fmt.Errorf("oidc: parse 'email_verified' claim: %w", err)
		}
		if !verified {
			return "", errors.New("oidc: email not verified")
		}
	}
	return *m.Prefix + name, nil
}

func (c *Claims) groupsOf(ctx context.Context, raw RawClaims, claims ref.Val) ([]string, error) {
	if m := c.ClaimMappings.Groups; m.Claim != "" {
		if _, ok := raw[m.Claim]; !ok {
			return nil, nil
		}
		var groups []string
		if raw.get(m.Claim, &groups) != nil { // a single one is as good
			groups = []string{""}
			if err := raw.get(m.Claim, &groups[0]); err != nil {
				return nil, fmt.Errorf("oidc: parse groups claim %q: %w", m.Claim, err)
			}
		}
		for i := range groups {
			groups[i] = *m.Prefix + groups[i]
		}
		return groups, nil
	}
	if c.groups == nil {
		return nil, nil
	}
	v, err := c.groups.value(ctx, claims)
	var groups []string
	if err == nil {
		groups, err = stringList(v)
	}
	if err != nil {
		return nil, fmt.Errorf("oidc: error evaluating group claim expression: %w", err)
	}
	return groups, nil
}

func (c *Claims) uidOf(ctx context.Context, raw RawClaims, claims ref.Val) (uid string, err error) {
	if name := c.ClaimMappings.UID.Claim; name != "" {
		if err := raw.get(name, &uid); err != nil {
			return "", fmt.Errorf("oidc: parse uid claim %q: %w", name, err)
		}
		return uid, nil
	}
	if c.uid == nil {
		return "", nil
	}
	v, err := c.uid.value(ctx, claims)
	if err != nil {
		return "", fmt.Errorf("oidc: error evaluating uid claim expression: %w", err)
	}
	uid, ok := v.Value().(string)
	if !ok || v.Type() != types.StringType {
		return "", errors.New("oidc: error evaluating uid claim expression: uid claim expression must return a string")
	}
	return uid, nil
}

func (c *Claims) extraOf(ctx context.Context, raw RawClaims, claims ref.Val) (map[string][]string, error) {
	extra := map[string][]string{}
	var jti string
	if raw.get("jti", &jti) == nil && jti != "" {
		extra[auth.CredentialIDKey] = []string{"JTI=" + jti}
	}
	for _, m := range c.extra {
		v, err := m.value(ctx, claims)
		if err != nil {
			return nil, err
		}
		values, err := stringList(v)
		if err != nil {
			return nil, fmt.Errorf("oidc: error evaluating extra claim expression: %s: %w", m.text, err)
		}
		if len(values) > 0 {
			extra[m.key] = values
		}
	}
	if len(extra) == 0 {
		return nil, nil
	}
	return extra, nil
}

// required checks the rules that are about a claim's value.
func (c *Claims) required(raw RawClaims) error {
	for _, r := range c.ClaimValidationRules {
		if r.Claim == "" {
			continue
		}
		if _, ok := raw[r.Claim]; !ok {
			return fmt.Errorf("oidc: required claim %s not present in ID token", r.Claim)
		}
		var value string
		if err := raw.get(r.Claim, &value); err != nil {
			return fmt.Errorf("oidc: parse claim %s: %w", r.Claim, err)
		}
		if value != r.RequiredValue {
			return fmt.Errorf("oidc: required claim %s value does not match. Got = %s, want = %s", r.Claim, value, r.RequiredValue)
		}
	}
	return nil
}

// check evaluates all rules; the first that is not true refuses.
func check(ctx context.Context, rules []rule, in ref.Val) error {
	values := make([]ref.Val, len(rules))
	for i, r := range rules {
		v, err := r.value(ctx, in)
		if err != nil {
			return err
		}
		values[i] = v
	}
	for i, v := range values {
		if v.Type() != types.BoolType {
			return errors.New("validation expression must return a boolean")
		}
		if v != types.True {
			return fmt.Errorf("validation expression '%s' failed: %s", rules[i].text, rules[i].message)
		}
	}
	return nil
}

// stringList reads a string or a list of them; empty ones are not there.
func stringList(v ref.Val) (list []string, err error) {
	add := func(v ref.Val) error {
		s, ok := v.Value().(string)
		if !ok || v.Type() != types.StringType {
			return errors.New("expression must return a string or a list of strings")
		}
		if s != "" {
			list = append(list, s)
		}
		return nil
	}
	l, ok := v.(traits.Lister)
	switch {
	case v.Type() == types.NullType:
		return nil, nil
	case !ok:
		return list, add(v)
	}
	for it := l.Iterator(); it.HasNext() == types.True; {
		if err := add(it.Next()); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// lazyClaims are the claims as expressions see them, decoded when one asks.
func lazyClaims(raw RawClaims) *lazy.MapValue {
	m := lazy.NewMapValue(types.NewObjectType("kubernetes.claims"))
	for name, text := range raw {
		m.Append(name, func(*lazy.MapValue) ref.Val {
			var value any
			if err := json.Unmarshal(text, &value); err != nil {
				return types.NewErr("claim %q failed to unmarshal: %v", name, err)
			}
			return unescaping(types.DefaultTypeAdapter.NativeToValue(value))
		})
	}
	return m
}

func lazyUser(u auth.User) *lazy.MapValue {
	m := lazy.NewMapValue(types.NewObjectType("kubernetes.UserInfo"))
	for name, value := range map[string]any{"username": u.Name, "uid": u.UID, "groups": u.Groups, "extra": u.Extra} {
		m.Append(name, func(*lazy.MapValue) ref.Val { return unescaping(types.DefaultTypeAdapter.NativeToValue(value)) })
	}
	return m
}

// unescaping makes a value whose fields, however deep, are found by names in
// CEL's escaped form too: a claim "a.b" is selected as a__dot__b.
func unescaping(v ref.Val) ref.Val {
	switch v := v.(type) {
	case traits.Mapper:
		return unescapingMap{v}
	case traits.Lister:
		return unescapingList{v}
	}
	return v
}

type unescapingMap struct{ traits.Mapper }

// Find implements traits.Mapper.
func (m unescapingMap) Find(key ref.Val) (ref.Val, bool) {
	if s, ok := key.(types.String); ok {
		if name, ok := apiservercel.Unescape(string(s)); ok {
			key = types.String(name)
		}
	}
	v, ok := m.Mapper.Find(key)
	return unescaping(v), ok
}

type unescapingList struct{ traits.Lister }

// Get implements traits.Indexer.
func (l unescapingList) Get(index ref.Val) ref.Val { return unescaping(l.Lister.Get(index)) }
