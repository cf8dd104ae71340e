// Package clusterroleaggregation fills cluster roles that have an aggregation rule (admin, edit,
// view) with the rules of the roles they select.
package clusterroleaggregation

import (
	"context"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/rbac/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// New returns the cluster role aggregation controller.
func New(env engine.Env) (*engine.Controller, error) {
	inf := env.Informers.Rbac().V1().ClusterRoles()
	roles := inf.Lister()
	reconcile := func(ctx context.Context, name string) error {
		role, err := roles.Get(name)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil || role.AggregationRule == nil {
			return err
		}
		rules, err := aggregate(role, roles)
		if err != nil || equality.Semantic.DeepEqual(rules, role.Rules) {
			return err
		}
		role = role.DeepCopy()
		role.Rules = rules
		_, err = env.Client.RbacV1().ClusterRoles().Update(ctx, role, metav1.UpdateOptions{})
		return engine.IgnoreNotFound(err)
	}
	return &engine.Controller{
		Name:    "clusterrole-aggregation-controller",
		Outputs: []engine.Resource{"clusterroles.rbac.authorization.k8s.io"},
		Sources: []engine.Source{engine.On("clusterroles.rbac.authorization.k8s.io", inf.Informer(),
			func(q engine.Queue, old, new *rbacv1.ClusterRole) { wake(q, roles, old, new) })},
		Reconcile: reconcile,
	}, nil
}

// wake asks for every role that selects the changed one, before or after the change.
func wake(q engine.Queue, roles listers.ClusterRoleLister, old, new *rbacv1.ClusterRole) {
	if new != nil && new.AggregationRule != nil {
		q.Add(new.Name)
	}
	all, err := roles.List(labels.Everything())
	if err != nil {
		return
	}
	for _, r := range all {
		if r.AggregationRule == nil {
			continue
		}
		for i := range r.AggregationRule.ClusterRoleSelectors {
			sel, err := metav1.LabelSelectorAsSelector(&r.AggregationRule.ClusterRoleSelectors[i])
			if err == nil && (old != nil && sel.Matches(labels.Set(old.Labels)) || new != nil && sel.Matches(labels.Set(new.Labels))) {
				q.Add(r.Name)
				break
			}
		}
	}
}

// aggregate collects the rules of the selected roles, in the order of selectors and names, each
// rule once.
func aggregate(role *rbacv1.ClusterRole, roles listers.ClusterRoleLister) ([]rbacv1.PolicyRule, error) {
	rules := []rbacv1.PolicyRule{}
	for i := range role.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, err
		}
		found, err := roles.List(sel)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(found, func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
		for _, r := range found {
			if r.Name == role.Name {
				continue
			}
			for _, rule := range r.Rules {
				if !slices.ContainsFunc(rules, func(x rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(x, rule) }) {
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules, nil
}
