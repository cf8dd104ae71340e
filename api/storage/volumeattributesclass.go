package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func volumeAttributesClassResource() *api.Resource {
	validate := func(c *storagev1.VolumeAttributesClass) field.ErrorList {
		l := &check.List{}
		checkDriver(l, field.NewPath("driverName"), c.DriverName)
		checkParameters(l, c.Parameters, false)
		return l.Errors
	}
	return &api.Resource{
		Group: Group, Name: "volumeattributesclasses", Singular: "volumeattributesclass", Kind: "VolumeAttributesClass",
		ShortNames: []string{"vac"},
		Versions:   []api.Version{api.Versioned[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList]("v1", nil)},
		Strategy: api.Strategy{
			Validate: api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
				l := &check.List{}
				if c.DriverName != old.DriverName {
					l.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden.")
				}
				if api.Changed(c.Parameters, old.Parameters) {
					l.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden.")
				}
				l.Add(validate(c))
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("DriverName", "string", storagev1.VolumeAttributesClass{}.SwaggerDoc()["driverName"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *storagev1.VolumeAttributesClass, now metav1.Time) []any {
			return []any{c.Name, c.DriverName, api.Age(c.CreationTimestamp, now)}
		}),
	}
}
