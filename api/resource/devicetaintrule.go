package resource

import (
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func deviceTaintRuleResource() *api.Resource {
	doc := resourcev1.DeviceTaint{}.SwaggerDoc()
	validate := func(r *resourcev1.DeviceTaintRule) field.ErrorList {
		l := &check.List{}
		if s, at := r.Spec.DeviceSelector, specPath.Child("deviceSelector"); s != nil {
			if s.Driver != nil {
				podspec.CheckCSIDriverName(l, at.Child("driver"), *s.Driver)
			}
			if s.Pool != nil {
				checkPoolName(l, at.Child("pool"), *s.Pool)
			}
			if s.Device != nil {
				l.Label(at.Child("device"), *s.Device)
			}
		}
		checkTaint(l, specPath.Child("taint"), &r.Spec.Taint)
		return l.Errors
	}
	return &api.Resource{
		Group: Group, Name: "devicetaintrules", Singular: "devicetaintrule", Kind: "DeviceTaintRule",
		Versions: []api.Version{api.Versioned[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList]("v1", func(r *resourcev1.DeviceTaintRule) {
			defaultTaint(&r.Spec.Taint)
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(r *resourcev1.DeviceTaintRule) {
				r.Status, r.Generation = resourcev1.DeviceTaintRuleStatus{}, 1
			}),
			PrepareForUpdate: api.OnUpdate(func(r, old *resourcev1.DeviceTaintRule) {
				r.Status = old.Status
				if now, was := &r.Spec.Taint, &old.Spec.Taint; now.Effect != was.Effect && now.TimeAdded.Equal(was.TimeAdded) {
					now.TimeAdded = &metav1.Time{Time: time.Now().Truncate(time.Second)}
				}
				api.BumpGeneration(r, old, api.Changed(r.Spec, old.Spec))
			}),
			Validate:       api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(r, _ *resourcev1.DeviceTaintRule) field.ErrorList { return validate(r) }),
		},
		Subresources: []api.Subresource{api.StatusOnly(func(r, old *resourcev1.DeviceTaintRule) { r.Spec = old.Spec }, func(r, _ *resourcev1.DeviceTaintRule) field.ErrorList {
			return metavalidation.ValidateConditions(r.Status.Conditions, field.NewPath("status", "conditions"))
		})},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Key", "string", doc["key"]),
			api.Column("Value", "string", doc["value"]),
			api.Column("Effect", "string", doc["effect"]),
			api.Column("TimeAdded", "string", doc["timeAdded"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(r *resourcev1.DeviceTaintRule, now metav1.Time) []any {
			t, added := &r.Spec.Taint, ""
			if t.TimeAdded != nil {
				added = api.Age(*t.TimeAdded, now)
			}
			return []any{r.Name, t.Key, t.Value, string(t.Effect), added, api.Age(r.CreationTimestamp, now)}
		}),
	}
}
