package resource

import (
	"fmt"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

var specPath = field.NewPath("spec")

// ageOnly is the table of kinds of which only the age is shown.
func ageOnly() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{api.AgeColumn()}
}

func defaultTaint(t *resourcev1.DeviceTaint) {
	if t.TimeAdded == nil {
		t.TimeAdded = &metav1.Time{Time: time.Now().Truncate(time.Second)}
	}
}

func defaultClaimSpec(s *resourcev1.ResourceClaimSpec) {
	for i := range s.Devices.Requests {
		r := &s.Devices.Requests[i]
		if e := r.Exactly; e != nil {
			defaultAllocation(&e.AllocationMode, &e.Count)
			defaultTolerations(e.Tolerations)
		}
		for j := range r.FirstAvailable {
			sub := &r.FirstAvailable[j]
			defaultAllocation(&sub.AllocationMode, &sub.Count)
			defaultTolerations(sub.Tolerations)
		}
	}
}

func defaultAllocation(mode *resourcev1.DeviceAllocationMode, count *int64) {
	if *mode == "" {
		*mode = resourcev1.DeviceAllocationModeExactCount
	}
	if *mode == resourcev1.DeviceAllocationModeExactCount && *count == 0 {
		*count = 1
	}
}

func defaultTolerations(list []resourcev1.DeviceToleration) {
	for i := range list {
		if list[i].Operator == "" {
			list[i].Operator = resourcev1.DeviceTolerationOpEqual
		}
	}
}

// Limits of claims and slices.
const (
	maxRequests   = 32
	maxSelectors  = 32
	maxFirst      = 8
	maxDevices    = 128
	maxReservedBy = 256
)

func checkClaimSpec(l *check.List, p *field.Path, s *resourcev1.ResourceClaimSpec) {
	at := p.Child("devices")
	requests := at.Child("requests")
	if n := len(s.Devices.Requests); n > maxRequests {
		l.TooMany(requests, n, maxRequests)
	}
	names := sets.Set[string]{}
	for i := range s.Devices.Requests {
		r, p := &s.Devices.Requests[i], requests.Index(i)
		checkRequest(l, p, r)
		if names.Has(r.Name) {
			l.Duplicate(p.Child("name"), r.Name)
		}
		names.Insert(r.Name)
		for _, sub := range r.FirstAvailable {
			names.Insert(r.Name + "/" + sub.Name)
		}
	}
	known := func(p *field.Path, list []string) {
		for i, name := range list {
			if !names.Has(name) {
				l.Invalid(p.Index(i), name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
			}
		}
	}
	for i, c := range s.Devices.Constraints {
		p := at.Child("constraints").Index(i)
		known(p.Child("requests"), c.Requests)
		switch {
		case c.MatchAttribute != nil:
			checkQualified(l, p.Child("matchAttribute"), string(*c.MatchAttribute), true)
		case c.DistinctAttribute != nil:
			checkQualified(l, p.Child("distinctAttribute"), string(*c.DistinctAttribute), true)
		default:
			l.Required(p, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`)
		}
	}
	for i, c := range s.Devices.Config {
		p := at.Child("config").Index(i)
		known(p.Child("requests"), c.Requests)
		checkConfig(l, p, &c.DeviceConfiguration)
	}
}

func checkConfig(l *check.List, p *field.Path, c *resourcev1.DeviceConfiguration) {
	if c.Opaque == nil {
		l.Required(p.Child("opaque"), "")
		return
	}
	podspec.CheckCSIDriverName(l, p.Child("opaque", "driver"), c.Opaque.Driver)
	if len(c.Opaque.Parameters.Raw) == 0 {
		l.Required(p.Child("opaque", "parameters"), "")
	}
}

func checkRequest(l *check.List, p *field.Path, r *resourcev1.DeviceRequest) {
	if r.Name == "" {
		l.Required(p.Child("name"), "")
	} else {
		l.Label(p.Child("name"), r.Name)
	}
	switch exactly, first := r.Exactly != nil, len(r.FirstAvailable) > 0; {
	case !exactly && !first:
		l.Required(p, "exactly one of `exactly` or `firstAvailable` is required")
	case exactly && first:
		l.Invalid(p, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")
	case exactly:
		e, p := r.Exactly, p.Child("exactly")
		checkClassName(l, p.Child("deviceClassName"), e.DeviceClassName)
		checkSelectors(l, p.Child("selectors"), e.Selectors)
		checkAllocation(l, p, e.AllocationMode, e.Count)
		for i := range e.Tolerations {
			checkToleration(l, p.Child("tolerations").Index(i), &e.Tolerations[i])
		}
	default:
		at := p.Child("firstAvailable")
		if n := len(r.FirstAvailable); n > maxFirst {
			l.TooMany(at, n, maxFirst)
		}
		for i, sub := range r.FirstAvailable {
			p := at.Index(i)
			if sub.Name == "" {
				l.Required(p.Child("name"), "")
			} else {
				l.Label(p.Child("name"), sub.Name)
			}
			checkClassName(l, p.Child("deviceClassName"), sub.DeviceClassName)
			checkSelectors(l, p.Child("selectors"), sub.Selectors)
			checkAllocation(l, p, sub.AllocationMode, sub.Count)
			for i := range sub.Tolerations {
				checkToleration(l, p.Child("tolerations").Index(i), &sub.Tolerations[i])
			}
		}
	}
}

func checkClassName(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	l.Subdomain(p, name)
}

func checkAllocation(l *check.List, p *field.Path, mode resourcev1.DeviceAllocationMode, count int64) {
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			l.Invalid(p.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			l.Invalid(p.Child("count"), count, "must be greater than zero")
		}
	default:
		check.OneOf(l, p.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)
	}
}

// checkSelectors checks that selectors say something; whether their CEL
// compiles is for admission.
func checkSelectors(l *check.List, p *field.Path, list []resourcev1.DeviceSelector) {
	if n := len(list); n > maxSelectors {
		l.TooMany(p, n, maxSelectors)
	}
	for i, s := range list {
		at := p.Index(i).Child("cel")
		if s.CEL == nil {
			l.Required(at, "")
		} else if s.CEL.Expression == "" {
			l.Required(at.Child("expression"), "")
		}
	}
}

func checkTaint(l *check.List, p *field.Path, t *resourcev1.DeviceTaint) {
	l.LabelName(p.Child("key"), t.Key)
	l.Messages(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
	checkEffect(l, p.Child("effect"), t.Effect)
}
