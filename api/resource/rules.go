package resource

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/validate"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
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

// dropClaimFields drops what is behind gates that are off.
func dropClaimFields(s *resourcev1.ResourceClaimSpec) {
	for i := range s.Devices.Requests {
		r := &s.Devices.Requests[i]
		if r.Exactly != nil {
			r.Exactly.DerivedAttributes = nil
		}
		for j := range r.FirstAvailable {
			r.FirstAvailable[j].DerivedAttributes = nil
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
			l.Duplicate(p, r)
		}
		names.Insert(r.Name)
	}
	names = requestNames(s)
	for i, c := range s.Devices.Constraints {
		p := at.Child("constraints").Index(i)
		checkReferences(l, p.Child("requests"), c.Requests, names)
		qualified := func(at string, name *resourcev1.FullyQualifiedName) {
			l.Add(validate.ResourceFullyQualifiedName(context.Background(), operation.Operation{}, p.Child(at), name, nil))
		}
		qualified("matchAttribute", c.MatchAttribute)
		qualified("distinctAttribute", c.DistinctAttribute)
		if c.MatchAttribute == nil && c.DistinctAttribute == nil {
			l.Required(p, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`)
		}
	}
	for i, c := range s.Devices.Config {
		p := at.Child("config").Index(i)
		checkReferences(l, p.Child("requests"), c.Requests, names)
		checkConfig(l, p, &c.DeviceConfiguration)
	}
}

// requestNames are the names that constraints, configuration and results may refer to.
func requestNames(s *resourcev1.ResourceClaimSpec) sets.Set[string] {
	names := sets.Set[string]{}
	for _, r := range s.Devices.Requests {
		names.Insert(r.Name)
		for _, sub := range r.FirstAvailable {
			names.Insert(r.Name + "/" + sub.Name)
		}
	}
	return names
}

func checkReferences(l *check.List, p *field.Path, list []string, names sets.Set[string]) {
	for i, name := range list {
		checkReference(l, p.Index(i), name, names)
		if slices.Contains(list[:i], name) {
			l.Duplicate(p.Index(i), name)
		}
	}
}

func checkReference(l *check.List, p *field.Path, name string, names sets.Set[string]) {
	if parts := strings.Split(name, "/"); len(parts) <= 2 {
		for _, part := range parts {
			l.Label(p, part)
		}
	}
	if !names.Has(name) {
		l.Invalid(p, name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
	}
}

func checkConfig(l *check.List, p *field.Path, c *resourcev1.DeviceConfiguration) {
	if c.Opaque == nil {
		l.Required(p.Child("opaque"), "")
		return
	}
	l.DriverName(p.Child("opaque", "driver"), c.Opaque.Driver)
	checkRaw(l, p.Child("opaque", "parameters"), c.Opaque.Parameters.Raw)
}

// checkRaw wants a JSON object of at most 10 KiB.
func checkRaw(l *check.List, p *field.Path, raw []byte) {
	var v any
	if len(raw) > resourcev1.OpaqueParametersMaxLength {
		l.TooLong(p, resourcev1.OpaqueParametersMaxLength)
	} else if err := json.Unmarshal(raw, &v); err != nil && len(raw) > 0 {
		l.Invalid(p, "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err))
	} else if v == nil {
		l.Required(p, "")
	} else if _, isObject := v.(map[string]any); !isObject {
		l.Invalid(p, "<value omitted>", "must be a valid JSON object")
	}
}

func checkRequest(l *check.List, p *field.Path, r *resourcev1.DeviceRequest) {
	l.Label(p.Child("name"), r.Name)
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
			l.Label(p.Child("name"), sub.Name)
			if slices.ContainsFunc(r.FirstAvailable[:i], func(o resourcev1.DeviceSubRequest) bool { return o.Name == sub.Name }) {
				l.Duplicate(p, sub)
			}
			if at := p.Child("deviceClassName"); sub.DeviceClassName == "" {
				l.Required(at, "")
			} else {
				l.Messages(at, sub.DeviceClassName, content.IsDNS1123Subdomain(sub.DeviceClassName))
			}
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

// checkSelectors checks that selectors say something. Their CEL is not compiled: nothing here allocates devices.
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
