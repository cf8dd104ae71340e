package resource

import (
	"context"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/validate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func deviceClassResource() *api.Resource {
	validateClass := func(c *resourcev1.DeviceClass) field.ErrorList {
		l := &check.List{}
		checkSelectors(l, specPath.Child("selectors"), c.Spec.Selectors)
		for i := range c.Spec.Config {
			checkConfig(l, specPath.Child("config").Index(i), &c.Spec.Config[i].DeviceConfiguration)
		}
		l.Add(validate.ExtendedResourceName(context.Background(), operation.Operation{}, specPath.Child("extendedResourceName"), c.Spec.ExtendedResourceName, nil))
		return l.Errors
	}
	return &api.Resource{
		Group: Group, Name: "deviceclasses", Singular: "deviceclass", Kind: "DeviceClass",
		Versions: []api.Version{api.Versioned[resourcev1.DeviceClass, resourcev1.DeviceClassList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *resourcev1.DeviceClass) { c.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(c, old *resourcev1.DeviceClass) {
				api.BumpGeneration(c, old, api.Changed(c.Spec, old.Spec))
			}),
			Validate:       api.Check(validateClass),
			ValidateUpdate: api.CheckUpdate(func(c, _ *resourcev1.DeviceClass) field.ErrorList { return validateClass(c) }),
			NameValid:      check.DeclaredName,
		},
		Columns: ageOnly(),
		Cells: api.Row(func(c *resourcev1.DeviceClass, now metav1.Time) []any {
			return []any{c.Name, api.Age(c.CreationTimestamp, now)}
		}),
	}
}
