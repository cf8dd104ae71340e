package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func leaseResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "leases", Singular: "lease", Kind: "Lease",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[coordinationv1.Lease, coordinationv1.LeaseList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate:        api.On(dropCoordinated),
			PrepareForUpdate:        api.OnUpdate(func(l, _ *coordinationv1.Lease) { dropCoordinated(l) }),
			Validate:                api.Check(validate),
			ValidateUpdate:          api.CheckUpdate(func(l, _ *coordinationv1.Lease) field.ErrorList { return validate(l) }),
			AllowCreateOnUpdate:     true,
			DenyUnconditionalUpdate: true,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Holder", "string", coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(l *coordinationv1.Lease, now metav1.Time) []any {
			holder := ""
			if l.Spec.HolderIdentity != nil {
				holder = *l.Spec.HolderIdentity
			}
			return []any{l.Name, holder, api.Age(l.CreationTimestamp, now)}
		}),
	}
}

// dropCoordinated clears the fields of coordinated leader election, which is
// off by default.
func dropCoordinated(l *coordinationv1.Lease) { l.Spec.Strategy, l.Spec.PreferredHolder = nil, nil }

func validate(lease *coordinationv1.Lease) field.ErrorList {
	l, p := &check.List{}, field.NewPath("spec")
	if d := lease.Spec.LeaseDurationSeconds; d != nil && *d <= 0 {
		l.Invalid(p.Child("leaseDurationSeconds"), d, "must be greater than 0")
	}
	if n := lease.Spec.LeaseTransitions; n != nil && *n < 0 {
		l.Invalid(p.Child("leaseTransitions"), n, "must be greater than or equal to 0")
	}
	return l.Errors
}
