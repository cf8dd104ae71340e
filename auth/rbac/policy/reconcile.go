package policy

import (
	"maps"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/auth/rbac"
)

// An existing object with this annotation set to false is left alone.
func protected(m *metav1.ObjectMeta) bool {
	return m.Annotations[rbacv1.AutoUpdateAnnotationKey] == "false"
}

// mergeMeta adds the expected labels and annotations that have are missing;
// what is there wins.
func mergeMeta(have, want *metav1.ObjectMeta) {
	have.Labels = merged(have.Labels, want.Labels)
	have.Annotations = merged(have.Annotations, want.Annotations)
}

func merged(have, want map[string]string) map[string]string {
	out := maps.Clone(want)
	if out == nil {
		return have
	}
	maps.Copy(out, have)
	return out
}

// ReconcileClusterRole returns have with everything want adds (permissions
// are never taken away), and whether that differs from have.
func ReconcileClusterRole(have, want *rbacv1.ClusterRole) (*rbacv1.ClusterRole, bool) {
	if protected(&have.ObjectMeta) {
		return have, false
	}
	out := have.DeepCopy()
	mergeMeta(&out.ObjectMeta, &want.ObjectMeta)
	out.Rules = append(out.Rules, rbac.Uncovered(have.Rules, want.Rules)...)
	switch {
	case want.AggregationRule == nil:
		out.AggregationRule = nil
	case out.AggregationRule == nil:
		out.AggregationRule = want.AggregationRule.DeepCopy()
	default:
		for _, s := range want.AggregationRule.ClusterRoleSelectors {
			if !slices.ContainsFunc(out.AggregationRule.ClusterRoleSelectors, func(h metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(h, s) }) {
				out.AggregationRule.ClusterRoleSelectors = append(out.AggregationRule.ClusterRoleSelectors, s)
			}
		}
	}
	return out, !equality.Semantic.DeepEqual(out, have)
}

// ReconcileRole is ReconcileClusterRole for a Role.
func ReconcileRole(have, want *rbacv1.Role) (*rbacv1.Role, bool) {
	if protected(&have.ObjectMeta) {
		return have, false
	}
	out := have.DeepCopy()
	mergeMeta(&out.ObjectMeta, &want.ObjectMeta)
	out.Rules = append(out.Rules, rbac.Uncovered(have.Rules, want.Rules)...)
	return out, !equality.Semantic.DeepEqual(out, have)
}

// ReconcileClusterRoleBinding returns have with want's missing subjects added,
// and whether that differs. With recreate true have refers to another role,
// which cannot be changed: it must be deleted and want created.
func ReconcileClusterRoleBinding(have, want *rbacv1.ClusterRoleBinding) (out *rbacv1.ClusterRoleBinding, changed, recreate bool) {
	if protected(&have.ObjectMeta) {
		return have, false, false
	}
	if have.RoleRef != want.RoleRef {
		return want, true, true
	}
	out = have.DeepCopy()
	mergeMeta(&out.ObjectMeta, &want.ObjectMeta)
	out.Subjects = withSubjects(out.Subjects, want.Subjects)
	return out, !equality.Semantic.DeepEqual(out, have), false
}

// ReconcileRoleBinding is ReconcileClusterRoleBinding for a RoleBinding.
func ReconcileRoleBinding(have, want *rbacv1.RoleBinding) (out *rbacv1.RoleBinding, changed, recreate bool) {
	if protected(&have.ObjectMeta) {
		return have, false, false
	}
	if have.RoleRef != want.RoleRef {
		return want, true, true
	}
	out = have.DeepCopy()
	mergeMeta(&out.ObjectMeta, &want.ObjectMeta)
	out.Subjects = withSubjects(out.Subjects, want.Subjects)
	return out, !equality.Semantic.DeepEqual(out, have), false
}

func withSubjects(have, want []rbacv1.Subject) []rbacv1.Subject {
	for _, s := range want {
		if !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	return have
}
