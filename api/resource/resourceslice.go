package resource

import (
	"fmt"
	"slices"
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
			PrepareForCreate: api.On(func(s *resourcev1.ResourceSlice) {
				dropSliceFields(&s.Spec)
				s.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(s, old *resourcev1.ResourceSlice) {
				dropSliceFields(&s.Spec)
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
			NoField: "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: %s",
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

// dropSliceFields drops what is behind gates that are off.
func dropSliceFields(s *resourcev1.ResourceSliceSpec) {
	s.PartitionTypeAttribute, s.SkipNodeOperations = nil, nil
	for i := range s.Devices {
		d := &s.Devices[i]
		d.NodeAllocatableResources = nil
		for name, a := range d.Attributes {
			a.BoolValues, a.IntValues, a.StringValues, a.VersionValues = nil, nil, nil, nil
			d.Attributes[name] = a
		}
	}
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
	if s.SharedCounters != nil && s.Devices != nil {
		l.Invalid(specPath, "", "only one of `sharedCounters` or `devices` is allowed")
	}
	checkSharedCounters(l, specPath.Child("sharedCounters"), s.SharedCounters)
	if n := len(s.Devices); n > maxDevices {
		l.TooMany(specPath.Child("devices"), n, maxDevices)
	}
	names := sets.Set[string]{}
	for i := range s.Devices {
		d, at := &s.Devices[i], specPath.Child("devices").Index(i)
		checkDevice(l, at, d)
		checkDevicePlace(l, at, d, s.PerDeviceNodeSelection != nil && *s.PerDeviceNodeSelection)
		if names.Has(d.Name) {
			l.Duplicate(at, d.Name)
		}
		names.Insert(d.Name)
	}
	return l.Errors
}

func checkSharedCounters(l *check.List, p *field.Path, list []resourcev1.CounterSet) {
	if n := len(list); n > resourcev1.ResourceSliceMaxCounterSets {
		l.TooMany(p, n, resourcev1.ResourceSliceMaxCounterSets)
	}
	for i, c := range list {
		at := p.Index(i)
		if c.Name == "" {
			l.Required(at.Child("name"), "")
		} else {
			l.Label(at.Child("name"), c.Name)
		}
		if slices.ContainsFunc(list[:i], func(o resourcev1.CounterSet) bool { return o.Name == c.Name }) {
			l.Duplicate(at, c)
		}
		checkCounters(l, at.Child("counters"), c.Counters)
	}
}

// checkDevicePlace checks that a device says where it is just where its slice leaves that to the devices.
func checkDevicePlace(l *check.List, p *field.Path, d *resourcev1.Device, each bool) {
	if !each {
		if d.NodeName != nil || d.NodeSelector != nil || d.AllNodes != nil {
			l.Invalid(p, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec")
		}
		return
	}
	var set []string
	if n := d.NodeName; n != nil && *n == "" {
		l.Invalid(p.Child("nodeName"), *n, "must not be empty")
	} else if n != nil {
		l.Subdomain(p.Child("nodeName"), *n)
		set = append(set, "`nodeName`")
	}
	if d.NodeSelector != nil {
		podspec.CheckNodeSelector(l, p.Child("nodeSelector"), d.NodeSelector)
		set = append(set, "`nodeSelector`")
	}
	if a := d.AllNodes; a != nil && !*a {
		l.Invalid(p.Child("allNodes"), *a, "must be either unset or set to true")
	} else if a != nil {
		set = append(set, "`allNodes`")
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
	if len(set) == 0 {
		l.Required(p, one)
	} else if len(set) > 1 {
		l.Invalid(p, fmt.Sprintf("{%s}", strings.Join(set, ", ")), one)
	}
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
		if terms := s.NodeSelector.NodeSelectorTerms; len(terms) != 1 {
			l.Invalid(specPath.Child("nodeSelector", "nodeSelectorTerms"), terms, "must have exactly one node selector term")
		}
	}
	for at, b := range map[string]*bool{"allNodes": s.AllNodes, "perDeviceNodeSelection": s.PerDeviceNodeSelection} {
		if b != nil && !*b {
			l.Invalid(specPath.Child(at), *b, "must be either unset or set to true")
		}
	}
}
