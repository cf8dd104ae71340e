package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func roleResource() *api.Resource {
	validate := func(r *rbacv1.Role) field.ErrorList {
		l := &check.List{}
		checkRules(l, r.Rules, true)
		return l.Errors
	}
	return &api.Resource{
		Group: Group, Name: "roles", Singular: "role", Kind: "Role",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[rbacv1.Role, rbacv1.RoleList]("v1", nil)},
		Strategy: api.Strategy{
			Validate:            api.Check(validate),
			ValidateUpdate:      api.CheckUpdate(func(r, _ *rbacv1.Role) field.ErrorList { return validate(r) }),
			NameValid:           nameValid,
			AllowCreateOnUpdate: true,
		},
	}
}
