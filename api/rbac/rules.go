package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"strings"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// nameValid allows every name that fits into a URL path.
func nameValid(name string, prefix bool) []string { return path.ValidatePathSegmentName(name, prefix) }

func checkRules(l *check.List, rules []rbacv1.PolicyRule, namespaced bool) {
	for i, r := range rules {
		at := field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			l.Required(at.Child("verbs"), "")
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				l.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				l.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			l.Required(at.Child("apiGroups"), "resource rules must supply at least one api group")
		}
		if len(r.Resources) == 0 {
			l.Required(at.Child("resources"), "resource rules must supply at least one resource")
		}
	}
}

// binding is what role bindings of both scopes have in common.
type binding struct {
	ref      *rbacv1.RoleRef
	subjects []rbacv1.Subject
	kinds    []string // the kinds of role that may be bound
}

func (b binding) setDefaults() {
	if b.ref.APIGroup == "" {
		b.ref.APIGroup = Group
	}
	for i := range b.subjects {
		s := &b.subjects[i]
		if s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = Group
		}
	}
}

func (b binding) validate(namespaced bool) field.ErrorList {
	l, at := &check.List{}, field.NewPath("roleRef")
	check.OneOf(l, at.Child("apiGroup"), b.ref.APIGroup, Group)
	check.OneOf(l, at.Child("kind"), b.ref.Kind, b.kinds...)
	if b.ref.Name == "" {
		l.Required(at.Child("name"), "")
	} else {
		l.Messages(at.Child("name"), b.ref.Name, nameValid(b.ref.Name, false))
	}
	for i := range b.subjects {
		checkSubject(l, field.NewPath("subjects").Index(i), &b.subjects[i], namespaced)
	}
	return l.Errors
}

func checkSubject(l *check.List, p *field.Path, s *rbacv1.Subject, namespaced bool) {
	if s.Name == "" {
		l.Required(p.Child("name"), "")
	}
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		if s.Name != "" {
			l.Messages(p.Child("name"), s.Name, apivalidation.ValidateServiceAccountName(s.Name, false))
		}
		check.OneOf(l, p.Child("apiGroup"), s.APIGroup, "")
		if !namespaced && s.Namespace == "" {
			l.Required(p.Child("namespace"), "")
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
		check.OneOf(l, p.Child("apiGroup"), s.APIGroup, Group)
	default:
		check.OneOf(l, p.Child("kind"), s.Kind, rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind)
	}
}

func (b binding) columns(role, what string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		api.Column("Role", "string", strings.TrimSuffix(role, " This field is immutable.")),
		api.AgeColumn(),
		api.Wide("Users", "Users in the "+what),
		api.Wide("Groups", "Groups in the "+what),
		api.Wide("ServiceAccounts", "ServiceAccounts in the "+what),
	}
}

func (b binding) cells(meta *metav1.ObjectMeta, now metav1.Time) []any {
	var users, groups, accounts []string
	for _, s := range b.subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			name := s.Name
			if s.Namespace != "" {
				name = s.Namespace + "/" + name
			}
			accounts = append(accounts, name)
		}
	}
	return []any{
		meta.Name, b.ref.Kind + "/" + b.ref.Name, api.Age(meta.CreationTimestamp, now),
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", "),
	}
}
