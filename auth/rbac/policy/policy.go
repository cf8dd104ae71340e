// Package policy is the RBAC policy a cluster starts with: upstream's default
// roles and bindings, as data, and the rules for bringing an existing
// cluster's copies up to date.
package policy

import (
	_ "embed" // bootstrap.txt
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

//go:embed bootstrap.txt
var bootstrap string

// Policy is a set of RBAC objects.
type Policy struct {
	ClusterRoles        []*rbacv1.ClusterRole
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	Roles               []*rbacv1.Role
	RoleBindings        []*rbacv1.RoleBinding
}

const controllerPrefix = "system:controller:"

// Bootstrap returns a fresh copy of the default policy. Aggregated roles
// (admin, edit, view) have their aggregation rule but no rules yet; see
// Aggregate.
func Bootstrap() *Policy {
	p, err := parse(bootstrap)
	if err != nil {
		panic("bootstrap policy: " + err.Error()) // the text is compiled in
	}
	return p
}

// NodeRules are the rules of system:node, which the Node authorizer applies.
func NodeRules() []rbacv1.PolicyRule {
	for _, r := range Bootstrap().ClusterRoles {
		if r.Name == "system:node" {
			return r.Rules
		}
	}
	return nil
}

func parse(text string) (*Policy, error) {
	p := &Policy{}
	var rules *[]rbacv1.PolicyRule // of the role last begun
	for n, line := range strings.Split(text, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		var err error
		if line[0] == ' ' {
			var rule rbacv1.PolicyRule
			if rules == nil {
				err = fmt.Errorf("a rule outside a role")
			} else if rule, err = parseRule(words); err == nil {
				*rules = append(*rules, rule)
			}
		} else {
			rules, err = p.begin(words)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return p, nil
}

// begin adds the object a line describes and returns where its rules go, nil
// for a binding.
func (p *Policy) begin(words []string) (*[]rbacv1.PolicyRule, error) {
	if len(words) < 2 {
		return nil, fmt.Errorf("no name in %q", words)
	}
	meta := metav1.ObjectMeta{
		Name:        words[1],
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
	switch words[0] {
	case "clusterrole":
		r := &rbacv1.ClusterRole{TypeMeta: typeMeta("ClusterRole"), ObjectMeta: meta}
		for _, w := range words[2:] {
			attr, pair, _ := strings.Cut(w, ":")
			key, value, _ := strings.Cut(pair, "=")
			if attr == "label" {
				r.Labels[key] = value
			} else {
				r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{key: value}}}}
			}
		}
		p.ClusterRoles = append(p.ClusterRoles, r)
		if sa, ok := strings.CutPrefix(r.Name, controllerPrefix); ok {
			_, err := p.begin([]string{"clusterrolebinding", r.Name, "ClusterRole:" + r.Name, "sa:kube-system/" + sa})
			return &r.Rules, err
		}
		return &r.Rules, nil
	case "role":
		meta.Namespace, meta.Name, _ = strings.Cut(words[1], "/")
		r := &rbacv1.Role{TypeMeta: typeMeta("Role"), ObjectMeta: meta}
		p.Roles = append(p.Roles, r)
		return &r.Rules, nil
	case "clusterrolebinding":
		ref, subjects, err := parseBinding(words[2:])
		p.ClusterRoleBindings = append(p.ClusterRoleBindings,
			&rbacv1.ClusterRoleBinding{TypeMeta: typeMeta("ClusterRoleBinding"), ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
		return nil, err
	case "rolebinding":
		ref, subjects, err := parseBinding(words[2:])
		meta.Namespace, meta.Name, _ = strings.Cut(words[1], "/")
		p.RoleBindings = append(p.RoleBindings,
			&rbacv1.RoleBinding{TypeMeta: typeMeta("RoleBinding"), ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
		return nil, err
	}
	return nil, fmt.Errorf("unknown object %q", words[0])
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: kind}
}

func parseBinding(words []string) (rbacv1.RoleRef, []rbacv1.Subject, error) {
	if len(words) == 0 {
		return rbacv1.RoleRef{}, nil, fmt.Errorf("a binding to nothing")
	}
	kind, name, _ := strings.Cut(words[0], ":")
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	var subjects []rbacv1.Subject
	for _, w := range words[1:] {
		kind, name, _ := strings.Cut(w, ":")
		s := rbacv1.Subject{APIGroup: rbacv1.GroupName, Name: name}
		switch kind {
		case "user":
			s.Kind = rbacv1.UserKind
		case "group":
			s.Kind = rbacv1.GroupKind
		case "sa":
			s.APIGroup, s.Kind = "", rbacv1.ServiceAccountKind
			s.Namespace, s.Name, _ = strings.Cut(name, "/")
		default:
			return ref, nil, fmt.Errorf("unknown subject %q", w)
		}
		subjects = append(subjects, s)
	}
	return ref, subjects, nil
}

func parseRule(words []string) (rbacv1.PolicyRule, error) {
	if len(words) < 2 {
		return rbacv1.PolicyRule{}, fmt.Errorf("not a rule: %q", words)
	}
	rule := rbacv1.PolicyRule{Verbs: strings.Split(words[0], ",")}
	switch words[0] {
	case "read":
		rule.Verbs = []string{"get", "list", "watch"}
	case "write":
		rule.Verbs = []string{"create", "delete", "deletecollection", "patch", "update"}
	case "readwrite":
		rule.Verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	}
	groups, what, ok := strings.Cut(words[1], ":")
	if !ok {
		return rule, fmt.Errorf("no group in %q", words[1])
	}
	if groups == "url" {
		rule.NonResourceURLs = strings.Split(what, ",")
		return rule, nil
	}
	rule.APIGroups = strings.Split(groups, ",")
	for i, g := range rule.APIGroups {
		if g == "core" {
			rule.APIGroups[i] = ""
		}
	}
	rule.Resources = strings.Split(what, ",")
	if len(words) > 2 {
		rule.ResourceNames = strings.Split(strings.TrimPrefix(words[2], "names="), ",")
	}
	return rule, nil
}

// Aggregate returns the rules an aggregated role should have: those of the
// roles its selectors match, in the order of their names, each once.
func Aggregate(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	if role.AggregationRule == nil {
		return role.Rules, nil
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	var out []rbacv1.PolicyRule
	for i := range role.AggregationRule.ClusterRoleSelectors {
		selector, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("clusterrole %q: aggregation rule: %w", role.Name, err)
		}
		for _, r := range sorted {
			if r.Name == role.Name || !selector.Matches(labels.Set(r.Labels)) {
				continue
			}
			for _, rule := range r.Rules {
				if !slices.ContainsFunc(out, func(o rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(o, rule) }) {
					out = append(out, rule)
				}
			}
		}
	}
	return out, nil
}
