package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/skiff-project/skiff/auth"
)

// Guard keeps users from granting permissions they do not have themselves.
type Guard struct {
	Source Source
	// Authorizer answers the escalate and bind verbs: the server's whole
	// chain. Nil: nobody has these verbs.
	Authorizer auth.Authorizer
}

// Check judges a write of a Role, ClusterRole, RoleBinding or
// ClusterRoleBinding as upstream does: obj is what would be stored, old what
// is (nil on create). It returns an API Forbidden error, or nil when the user
// may; any other type of object is fine.
func (g Guard) Check(ctx context.Context, a auth.Attributes, obj, old runtime.Object) error {
	if slices.Contains(a.User.Groups, auth.GroupMasters) || onlyCollectorFields(obj, old) {
		return nil
	}
	switch o := obj.(type) {
	case *rbacv1.ClusterRole:
		return g.checkClusterRole(ctx, a, o, old)
	case *rbacv1.Role:
		if g.mayEscalate(ctx, a) {
			return nil
		}
		return asForbidden("roles", o.Name, g.ConfirmNoEscalation(a.User, a.Namespace, o.Rules))
	case *rbacv1.ClusterRoleBinding:
		return g.checkBinding(ctx, a, "clusterrolebindings", o.Name, o.RoleRef)
	case *rbacv1.RoleBinding:
		return g.checkBinding(ctx, a, "rolebindings", o.Name, o.RoleRef)
	}
	return nil
}

func (g Guard) checkClusterRole(ctx context.Context, a auth.Attributes, o *rbacv1.ClusterRole, old runtime.Object) error {
	if g.mayEscalate(ctx, a) {
		return nil
	}
	if err := g.ConfirmNoEscalation(a.User, "", o.Rules); err != nil {
		return asForbidden("clusterroles", o.Name, err)
	}
	oldRole, _ := old.(*rbacv1.ClusterRole)
	if !aggregates(o) && (oldRole == nil || !aggregates(oldRole)) {
		return nil
	}
	// An aggregation rule can gather any rule, so it needs them all.
	everything := []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
		{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
	}
	if g.ConfirmNoEscalation(a.User, "", everything) != nil {
		return asForbidden("clusterroles", o.Name, errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	return nil
}

func (g Guard) checkBinding(ctx context.Context, a auth.Attributes, resource, name string, ref rbacv1.RoleRef) error {
	if g.mayBind(ctx, a, ref) {
		return nil
	}
	rules, err := refRules(g.Source, ref, a.Namespace)
	if err != nil {
		return err
	}
	return asForbidden(resource, name, g.ConfirmNoEscalation(a.User, a.Namespace, rules))
}

func aggregates(r *rbacv1.ClusterRole) bool {
	return r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
}

func asForbidden(resource, name string, err error) error {
	if err == nil {
		return nil
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: rbacv1.GroupName, Resource: resource}, name, err)
}

func (g Guard) mayEscalate(ctx context.Context, a auth.Attributes) bool {
	a.Verb, a.APIVersion, a.Subresource = "escalate", "*", ""
	return g.allowed(ctx, a)
}

// mayBind asks in the namespace where the binding is made, so that a right to
// bind can be given for one namespace.
func (g Guard) mayBind(ctx context.Context, a auth.Attributes, ref rbacv1.RoleRef) bool {
	resource := map[string]string{"ClusterRole": "clusterroles", "Role": "roles"}[ref.Kind]
	if resource == "" {
		return false
	}
	return g.allowed(ctx, auth.Attributes{
		User: a.User, Verb: "bind", Namespace: a.Namespace, ResourceRequest: true,
		APIGroup: ref.APIGroup, APIVersion: "*", Resource: resource, Name: ref.Name,
	})
}

func (g Guard) allowed(ctx context.Context, a auth.Attributes) bool {
	if g.Authorizer == nil {
		return false
	}
	d, _, _ := g.Authorizer.Authorize(ctx, a)
	return d == auth.Allow
}

// onlyCollectorFields: the garbage collector may clear owner references and
// finalizers of a role it could not itself grant.
func onlyCollectorFields(obj, old runtime.Object) bool {
	if old == nil || obj == nil {
		return false
	}
	a, aok := obj.DeepCopyObject().(metav1.Object)
	b, bok := old.(metav1.Object)
	if !aok || !bok {
		return false
	}
	a.SetOwnerReferences(b.GetOwnerReferences())
	a.SetFinalizers(b.GetFinalizers())
	a.SetManagedFields(b.GetManagedFields())
	return equality.Semantic.DeepEqual(a, b)
}

// ConfirmNoEscalation returns an error listing what in rules user does not
// hold in namespace.
func (g Guard) ConfirmNoEscalation(user auth.User, namespace string, rules []rbacv1.PolicyRule) error {
	held, resolveErr := RulesFor(g.Source, user, namespace)
	missing := Uncovered(held, rules)
	if len(missing) == 0 {
		return nil
	}
	lines := sets.New[string]()
	for _, m := range compact(missing) {
		lines.Insert(describe(m))
	}
	msg := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		user.Name, user.Groups, strings.Join(sets.List(lines), "\n"))
	if resolveErr != nil {
		msg += fmt.Sprintf("; resolution errors: %v", []error{resolveErr})
	}
	return errors.New(msg)
}

// Uncovered returns the parts of want no single rule in have covers, each with
// one verb, group, resource and name.
func Uncovered(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var missing []rbacv1.PolicyRule
	for _, w := range want {
		for _, atom := range atoms(w) {
			if !slices.ContainsFunc(have, func(h rbacv1.PolicyRule) bool { return covers(h, atom) }) {
				missing = append(missing, atom)
			}
		}
	}
	return missing
}

func atoms(r rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, group := range r.APIGroups {
		for _, resource := range r.Resources {
			for _, verb := range r.Verbs {
				atom := rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: []string{verb}}
				if len(r.ResourceNames) == 0 {
					out = append(out, atom)
				}
				for _, name := range r.ResourceNames {
					named := atom
					named.ResourceNames = []string{name}
					out = append(out, named)
				}
			}
		}
	}
	for _, url := range r.NonResourceURLs {
		for _, verb := range r.Verbs {
			out = append(out, rbacv1.PolicyRule{NonResourceURLs: []string{url}, Verbs: []string{verb}})
		}
	}
	return out
}

// covers reports whether rule h gives all of the atomic rule a.
func covers(h, a rbacv1.PolicyRule) bool {
	if !hasOrStar(h.Verbs, a.Verbs[0]) {
		return false
	}
	if len(a.NonResourceURLs) > 0 {
		return slices.ContainsFunc(h.NonResourceURLs, func(url string) bool { return urlCovers(url, a.NonResourceURLs[0]) })
	}
	resource, sub, _ := strings.Cut(a.Resources[0], "/")
	return hasOrStar(h.APIGroups, a.APIGroups[0]) && resourceCovers(h.Resources, resource, sub) &&
		(len(h.ResourceNames) == 0 || (len(a.ResourceNames) > 0 && slices.Contains(h.ResourceNames, a.ResourceNames[0])))
}

// compact joins atomic rules that differ in their verb only.
func compact(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	at := map[string]int{}
	for _, r := range rules {
		if len(r.NonResourceURLs) > 0 {
			out = append(out, r)
			continue
		}
		key := fmt.Sprintf("%q%q%q", r.APIGroups, r.Resources, r.ResourceNames)
		if i, ok := at[key]; ok {
			out[i].Verbs = append(out[i].Verbs, r.Verbs...)
			continue
		}
		at[key] = len(out)
		out = append(out, r)
	}
	return out
}

func describe(r rbacv1.PolicyRule) string {
	var parts []string
	add := func(label string, values []string) {
		if len(values) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", label, values))
		}
	}
	add("APIGroups", r.APIGroups)
	add("Resources", r.Resources)
	add("NonResourceURLs", r.NonResourceURLs)
	add("ResourceNames", r.ResourceNames)
	add("Verbs", r.Verbs)
	return "{" + strings.Join(parts, ", ") + "}"
}
