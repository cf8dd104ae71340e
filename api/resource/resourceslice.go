package resource

import (
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func resourceSliceResource() *api.Resource {
	doc := resourcev1.ResourceSliceSpec{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "resourceslices", Singular: "resourceslice", Kind: "ResourceSlice",
		Versions: []api.Version{api.Versioned[resourcev1.ResourceSlice, resourcev1.ResourceSliceList]("v1", func(s *resourcev1.ResourceSlice) {
			for i := range s.Spec.Devices {
				for j := range s.Spec.Devices[i].Taints {
					defaultTaint(&s.Spec.Devices[i].Taints[j])
				}
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(s *resourcev1.ResourceSlice) { s.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(s, old *resourcev1.ResourceSlice) {
				api.BumpGeneration(s, old, api.Changed(s.Spec, old.Spec))
			}),
			Validate: api.Check(validateSlice),
			ValidateUpdate: api.CheckUpdate(func(s, old *resourcev1.ResourceSlice) field.ErrorList {
				l := &check.List{Errors: validateSlice(s)}
				l.Immutable(specPath.Child("driver"), s.Spec.Driver, old.Spec.Driver)
				l.Immutable(specPath.Child("pool", "name"), s.Spec.Pool.Name, old.Spec.Pool.Name)
				l.Immutable(specPath.Child("nodeName"), s.Spec.NodeName, old.Spec.NodeName)
				return l.Errors
			}),
			Selectable: api.Select(func(s *resourcev1.ResourceSlice) fields.Set {
				return fields.Set{"spec.driver": s.Spec.Driver, "spec.nodeName": nodeName(s)}
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Node", "string", doc["nodeName"]),
			api.Column("Driver", "string", doc["driver"]),
			api.Column("Pool", "string", resourcev1.ResourcePool{}.SwaggerDoc()["name"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(s *resourcev1.ResourceSlice, now metav1.Time) []any {
			return []any{s.Name, nodeName(s), s.Spec.Driver, s.Spec.Pool.Name, api.Age(s.CreationTimestamp, now)}
		}),
	}
}

func nodeName(s *resourcev1.ResourceSlice) string { return nodeNameOf(&s.Spec) }

func nodeNameOf(s *resourcev1.ResourceSliceSpec) string {
	if s.NodeName == nil {
		return ""
	}
	return *s.NodeName
}

func validateSlice(r *resourcev1.ResourceSlice) field.ErrorList {
	l, s := &check.List{}, &r.Spec
	podspec.CheckCSIDriverName(l, specPath.Child("driver"), s.Driver)
	pool := specPath.Child("pool")
	checkPoolName(l, pool.Child("name"), s.Pool.Name)
	if s.Pool.ResourceSliceCount <= 0 {
		l.Invalid(pool.Child("resourceSliceCount"), s.Pool.ResourceSliceCount, "must be greater than zero")
	}
	if s.Pool.Generation < 0 {
		l.Invalid(pool.Child("generation"), s.Pool.Generation, "must be greater than or equal to zero")
	}
	checkPlace(l, s)
	if n := len(s.Devices); n > maxDevices {
		l.TooMany(specPath.Child("devices"), n, maxDevices)
	}
	names := sets.Set[string]{}
	for i := range s.Devices {
		d, at := &s.Devices[i], specPath.Child("devices").Index(i)
		checkDevice(l, at, d)
		if names.Has(d.Name) {
			l.Duplicate(at.Child("name"), d.Name)
		}
		names.Insert(d.Name)
	}
	return l.Errors
}

// checkPlace checks that a slice says in exactly one way where its devices are.
func checkPlace(l *check.List, s *resourcev1.ResourceSliceSpec) {
	var set []string
	note := func(name string, isSet bool) {
		if isSet {
			set = append(set, "`"+name+"`")
		}
	}
	if s.NodeName != nil && *s.NodeName == "" {
		l.Invalid(specPath.Child("nodeName"), "", "must be either unset or set to a non-empty string")
	} else if s.NodeName != nil {
		l.Subdomain(specPath.Child("nodeName"), *s.NodeName)
	}
	note("nodeName", nodeNameOf(s) != "")
	note("nodeSelector", s.NodeSelector != nil)
	note("allNodes", s.AllNodes != nil && *s.AllNodes)
	note("perDeviceNodeSelection", s.PerDeviceNodeSelection != nil && *s.PerDeviceNodeSelection)
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch len(set) {
	case 0:
		l.Required(specPath, one)
	case 1:
	default:
		l.Invalid(specPath, fmt.Sprintf("{%s}", strings.Join(set, ", ")), one+", but multiple fields are set")
	}
	if s.NodeSelector != nil {
		podspec.CheckNodeSelector(l, specPath.Child("nodeSelector"), s.NodeSelector)
	}
}
