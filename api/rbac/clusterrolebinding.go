package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func clusterRoleBindingResource() *api.Resource {
	of := func(b *rbacv1.ClusterRoleBinding) binding {
		return binding{&b.RoleRef, b.Subjects, []string{"ClusterRole"}}
	}
	validate := func(b *rbacv1.ClusterRoleBinding) field.ErrorList { return of(b).validate(false) }
	return &api.Resource{
		Group: Group, Name: "clusterrolebindings", Singular: "clusterrolebinding", Kind: "ClusterRoleBinding",
		Versions: []api.Version{api.Versioned[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList]("v1", func(b *rbacv1.ClusterRoleBinding) {
			of(b).setDefaults()
		})},
		Strategy: api.Strategy{
			Validate: api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
				l := &check.List{Errors: validate(b)}
				l.Immutable(field.NewPath("roleRef"), b.RoleRef, old.RoleRef)
				return l.Errors
			}),
			NameValid:           nameValid,
			AllowCreateOnUpdate: true,
		},
		Columns: binding{}.columns(rbacv1.ClusterRoleBinding{}.SwaggerDoc()["roleRef"], "clusterRoleBinding"),
		Cells: api.Row(func(b *rbacv1.ClusterRoleBinding, now metav1.Time) []any {
			return of(b).cells(&b.ObjectMeta, now)
		}),
	}
}
