package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func clusterRoleResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "clusterroles", Singular: "clusterrole", Kind: "ClusterRole",
		Versions: []api.Version{api.Versioned[rbacv1.ClusterRole, rbacv1.ClusterRoleList]("v1", nil)},
		Strategy: api.Strategy{
			Validate:            api.Check(validateClusterRole),
			ValidateUpdate:      api.CheckUpdate(func(r, _ *rbacv1.ClusterRole) field.ErrorList { return validateClusterRole(r) }),
			NameValid:           nameValid,
			AllowCreateOnUpdate: true,
		},
	}
}

func validateClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	l := &check.List{}
	checkRules(l, r.Rules, false)
	if r.AggregationRule == nil {
		return l.Errors
	}
	at := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
		l.Required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil")
	}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		s := &r.AggregationRule.ClusterRoleSelectors[i]
		l.Selector(at.Index(i), s)
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			l.Invalid(at.Index(i), s, "invalid label selector.")
		}
	}
	return l.Errors
}
