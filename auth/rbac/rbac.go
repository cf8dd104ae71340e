// Package rbac decides by Roles and Bindings: it reads them through a Source
// and answers allow or no opinion. It also holds the rules that keep a user
// from granting more than they have.
package rbac

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/skiff-project/skiff/auth"
)

// Source reads policy objects. What it returns is shared and is not changed.
// Role and ClusterRole answer an API NotFound error for what is missing.
type Source interface {
	Role(namespace, name string) (*rbacv1.Role, error)
	ClusterRole(name string) (*rbacv1.ClusterRole, error)
	RoleBindings(namespace string) ([]*rbacv1.RoleBinding, error)
	ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error)
}

// Authorizer allows what a rule bound to the user allows, and has no opinion
// otherwise.
type Authorizer struct {
	source Source
}

var _ auth.Authorizer = (*Authorizer)(nil)

// New returns an authorizer over source.
func New(source Source) *Authorizer {
	return &Authorizer{source: source}
}

// Authorize implements auth.Authorizer. Roles that could not be read are named
// in the reason; they are not an error, because rules only ever add.
func (a *Authorizer) Authorize(_ context.Context, attrs auth.Attributes) (auth.Decision, string, error) {
	var (
		errs   []error
		reason string
	)
	visit(a.source, attrs.User, attrs.Namespace, func(g grant, err error) bool {
		if err != nil {
			errs = append(errs, err)
			return true
		}
		for i := range g.rules {
			if Allows(&g.rules[i], attrs) {
				reason = "RBAC: allowed by " + g.String()
				return false
			}
		}
		return true
	})
	if reason != "" {
		return auth.Allow, reason, nil
	}
	if len(errs) > 0 {
		reason = fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(errs))
	}
	return auth.NoOpinion, reason, nil
}

// RulesFor returns every rule that applies to user in namespace (empty:
// cluster-wide ones only). With an error the rules are incomplete but valid.
func RulesFor(source Source, user auth.User, namespace string) ([]rbacv1.PolicyRule, error) {
	var (
		rules []rbacv1.PolicyRule
		errs  []error
	)
	visit(source, user, namespace, func(g grant, err error) bool {
		if err != nil {
			errs = append(errs, err)
		} else {
			rules = append(rules, g.rules...)
		}
		return true
	})
	return rules, utilerrors.NewAggregate(errs)
}

// ReviewRules is RulesFor in the form a SelfSubjectRulesReview answers with.
func (a *Authorizer) ReviewRules(user auth.User, namespace string) authorizationv1.SubjectRulesReviewStatus {
	rules, err := RulesFor(a.source, user, namespace)
	status := authorizationv1.SubjectRulesReviewStatus{
		ResourceRules:    []authorizationv1.ResourceRule{},
		NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	for _, r := range rules {
		if len(r.Resources) > 0 {
			status.ResourceRules = append(status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			status.NonResourceRules = append(status.NonResourceRules, authorizationv1.NonResourceRule{
				Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs,
			})
		}
	}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

// grant is the rules one binding gives, and through which subject.
type grant struct {
	rules     []rbacv1.PolicyRule
	kind      string // ClusterRoleBinding or RoleBinding
	binding   string // its name, with "/namespace" for a RoleBinding
	ref       *rbacv1.RoleRef
	subject   *rbacv1.Subject
	namespace string // the binding's, empty for a ClusterRoleBinding
}

func (g grant) String() string {
	subject := g.subject.Name
	if g.subject.Kind == rbacv1.ServiceAccountKind {
		ns := g.subject.Namespace
		if ns == "" {
			ns = g.namespace
		}
		subject += "/" + ns
	}
	return fmt.Sprintf("%s %q of %s %q to %s %q", g.kind, g.binding, g.ref.Kind, g.ref.Name, g.subject.Kind, subject)
}

// visit calls yield with each grant user has in namespace, cluster-wide ones
// first, and each error met, until yield returns false.
func visit(source Source, user auth.User, namespace string, yield func(grant, error) bool) {
	clusterBindings, err := source.ClusterRoleBindings()
	if err != nil && !yield(grant{}, err) {
		return
	}
	for _, b := range clusterBindings {
		subject := matching(user, b.Subjects, "")
		if subject == nil {
			continue
		}
		rules, err := refRules(source, b.RoleRef, "")
		if !yield(grant{rules: rules, kind: "ClusterRoleBinding", binding: b.Name, ref: &b.RoleRef, subject: subject}, err) {
			return
		}
	}
	if namespace == "" {
		return
	}
	bindings, err := source.RoleBindings(namespace)
	if err != nil && !yield(grant{}, err) {
		return
	}
	for _, b := range bindings {
		subject := matching(user, b.Subjects, namespace)
		if subject == nil {
			continue
		}
		rules, err := refRules(source, b.RoleRef, namespace)
		g := grant{rules: rules, kind: "RoleBinding", binding: b.Name + "/" + b.Namespace, ref: &b.RoleRef, subject: subject, namespace: namespace}
		if !yield(g, err) {
			return
		}
	}
}

// refRules returns the rules of the role a binding in namespace refers to.
func refRules(source Source, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	switch ref.Kind {
	case "Role":
		role, err := source.Role(namespace, ref.Name)
		if err != nil {
			return nil, err
		}
		return role.Rules, nil
	case "ClusterRole":
		role, err := source.ClusterRole(ref.Name)
		if err != nil {
			return nil, err
		}
		return role.Rules, nil
	default:
		return nil, fmt.Errorf("unsupported role reference kind: %q", ref.Kind)
	}
}

// matching returns the first subject that is user, or nil.
func matching(user auth.User, subjects []rbacv1.Subject, namespace string) *rbacv1.Subject {
	for i := range subjects {
		s := &subjects[i]
		switch s.Kind {
		case rbacv1.UserKind:
			if user.Name == s.Name {
				return s
			}
		case rbacv1.GroupKind:
			if slices.Contains(user.Groups, s.Name) {
				return s
			}
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			if ns != "" && auth.IsServiceAccount(user.Name, ns, s.Name) {
				return s
			}
		}
	}
	return nil
}

// Allows reports whether one rule allows a request.
func Allows(rule *rbacv1.PolicyRule, a auth.Attributes) bool {
	if !hasOrStar(rule.Verbs, a.Verb) {
		return false
	}
	if !a.ResourceRequest {
		return slices.ContainsFunc(rule.NonResourceURLs, func(url string) bool { return urlCovers(url, a.Path) })
	}
	return hasOrStar(rule.APIGroups, a.APIGroup) &&
		resourceCovers(rule.Resources, a.Resource, a.Subresource) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.Name))
}

// RulesAllow reports whether any of the rules allows a request.
func RulesAllow(rules []rbacv1.PolicyRule, a auth.Attributes) bool {
	for i := range rules {
		if Allows(&rules[i], a) {
			return true
		}
	}
	return false
}

func hasOrStar(set []string, s string) bool {
	for _, have := range set {
		if have == "*" || have == s {
			return true
		}
	}
	return false
}

// resourceCovers understands "*", "pods", "pods/log" and "*/scale".
func resourceCovers(set []string, resource, subresource string) bool {
	for _, have := range set {
		if have == "*" {
			return true
		}
		res, sub, _ := strings.Cut(have, "/")
		if sub == subresource && (res == resource || (subresource != "" && res == "*")) {
			return true
		}
	}
	return false
}

// urlCovers: "*" covers all, a trailing star covers by prefix.
func urlCovers(rule, path string) bool {
	return rule == "*" || rule == path ||
		(strings.HasSuffix(rule, "*") && strings.HasPrefix(path, strings.TrimRight(rule, "*")))
}
