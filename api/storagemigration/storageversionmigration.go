package storagemigration

import (
	"strings"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func storageVersionMigrationResource() *api.Resource {
	name := metav1.TableColumnDefinition{Name: "Name", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
	return &api.Resource{
		Group: Group, Name: "storageversionmigrations", Singular: "storageversionmigration", Kind: "StorageVersionMigration",
		Versions: []api.Version{api.Versioned[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(m *storagemigrationv1.StorageVersionMigration) {
				m.Status = storagemigrationv1.StorageVersionMigrationStatus{}
			}),
			PrepareForUpdate: api.OnUpdate(func(m, old *storagemigrationv1.StorageVersionMigration) { m.Status = old.Status }),
			Validate:         api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(m, old *storagemigrationv1.StorageVersionMigration) field.ErrorList {
				l := &check.List{Errors: validate(m)}
				l.Immutable(field.NewPath("spec"), m.Spec, old.Spec)
				return l.Errors
			}),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(m, old *storagemigrationv1.StorageVersionMigration) { m.Spec = old.Spec }, func(m, _ *storagemigrationv1.StorageVersionMigration) field.ErrorList {
			return metavalidation.ValidateConditions(m.Status.Conditions, field.NewPath("status", "conditions"))
		})},
		Columns: []metav1.TableColumnDefinition{
			name,
			api.Column("Resource", "string", "GroupResource to migrate"),
			api.Column("Status", "string", "Status of the migration"),
		},
		WholeTable: true, // its name has no format
		Cells: api.Row(func(m *storagemigrationv1.StorageVersionMigration, _ metav1.Time) []any {
			state := "Unknown"
			for _, c := range m.Status.Conditions {
				if c.Status != metav1.ConditionTrue {
					continue
				}
				switch storagemigrationv1.MigrationConditionType(c.Type) {
				case storagemigrationv1.MigrationRunning, storagemigrationv1.MigrationFailed, storagemigrationv1.MigrationSucceeded:
					state = c.Type
				}
			}
			return []any{m.Name, m.Spec.Resource.String(), state}
		}),
	}
}

func validate(m *storagemigrationv1.StorageVersionMigration) field.ErrorList {
	l, r, p := &check.List{}, &m.Spec.Resource, field.NewPath("spec", "resource")
	if r.Resource == "" {
		l.Required(p.Child("resource"), "resource is required to be set")
	} else if msgs := validation.IsDNS1035Label(r.Resource); len(msgs) > 0 {
		l.Invalid(p.Child("resource"), r.Resource, strings.Join(msgs, ","))
	}
	if msgs := validation.IsDNS1123Subdomain(r.Group); r.Group != "" && len(msgs) > 0 {
		l.Invalid(p.Child("group"), r.Group, strings.Join(msgs, ","))
	}
	return l.Errors
}
