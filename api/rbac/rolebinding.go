package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func roleBindingResource() *api.Resource {
	of := func(b *rbacv1.RoleBinding) binding {
		return binding{&b.RoleRef, b.Subjects, []string{"Role", "ClusterRole"}}
	}
	validate := func(b *rbacv1.RoleBinding) field.ErrorList { return of(b).validate(true) }
	return &api.Resource{
		Group: Group, Name: "rolebindings", Singular: "rolebinding", Kind: "RoleBinding",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[rbacv1.RoleBinding, rbacv1.RoleBindingList]("v1", func(b *rbacv1.RoleBinding) {
			of(b).setDefaults()
		})},
		Strategy: api.Strategy{
			Validate: api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(b, old *rbacv1.RoleBinding) field.ErrorList {
				l := &check.List{Errors: validate(b)}
				l.Immutable(field.NewPath("roleRef"), b.RoleRef, old.RoleRef)
				return l.Errors
			}),
			NameValid:           nameValid,
			AllowCreateOnUpdate: true,
		},
		Columns: binding{}.columns(rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"], "roleBinding"),
		Cells: api.Row(func(b *rbacv1.RoleBinding, now metav1.Time) []any {
			return of(b).cells(&b.ObjectMeta, now)
		}),
	}
}
