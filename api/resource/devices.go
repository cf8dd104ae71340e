package resource

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

// maxIdentifier and maxAttribute bound names and texts of attributes, in bytes.
const (
	maxIdentifier = 32
	maxAttribute  = 64
	maxConditions = 4
)

func checkToleration(l *check.List, p *field.Path, t *resourcev1.DeviceToleration) {
	if t.Key != "" {
		l.LabelName(p.Child("key"), t.Key)
	}
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			l.Invalid(p.Child("value"), t.Value, "must be empty for operator `Exists`")
		}
	case resourcev1.DeviceTolerationOpEqual:
		l.Messages(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
	default:
		check.Choice(l, p.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)
	}
	if t.Effect != "" {
		checkEffect(l, p.Child("effect"), t.Effect)
	}
}

func checkEffect(l *check.List, p *field.Path, e resourcev1.DeviceTaintEffect) {
	check.Choice(l, p, e, resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone)
}

// checkQualified checks the name of an attribute or capacity: an identifier,
// perhaps behind a domain and a slash.
func checkQualified(l *check.List, p *field.Path, name string) {
	parts := strings.Split(name, "/")
	if len(parts) == 2 {
		if parts[0] == "" {
			l.Invalid(p, "", "the domain must not be empty")
		} else {
			podspec.CheckCSIDriverName(l, p, parts[0])
		}
		if parts[1] == "" {
			l.Invalid(p, "", "the name must not be empty")
		}
	}
	if id := parts[len(parts)-1]; len(parts) == 1 || len(parts) == 2 && id != "" {
		if len(id) > maxIdentifier {
			l.TooLong(p, maxIdentifier)
		}
		l.Messages(p, id, validation.IsCIdentifier(id))
	}
}

func checkPoolName(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	if len(name) > validation.DNS1123SubdomainMaxLength {
		l.TooLong(p, validation.DNS1123SubdomainMaxLength)
	}
	for part := range strings.SplitSeq(name, "/") {
		l.Subdomain(p, part)
	}
}

// checkDevice checks what a slice says of one device.
func checkDevice(l *check.List, p *field.Path, d *resourcev1.Device) {
	l.Label(p.Child("name"), d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		l.Invalid(p, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice))
	}
	for name, a := range check.Sorted(d.Attributes) {
		checkQualified(l, p.Child("attributes"), string(name))
		checkAttribute(l, p.Child("attributes").Key(string(name)), &a)
	}
	for name, c := range check.Sorted(d.Capacity) {
		checkQualified(l, p.Child("capacity"), string(name))
		if at := p.Child("capacity").Key(string(name)).Child("requestPolicy"); c.RequestPolicy == nil {
			continue
		} else if d.AllowMultipleAllocations != nil && *d.AllowMultipleAllocations {
			checkPolicy(l, at, c.Value, c.RequestPolicy)
		} else {
			l.Forbidden(at, "allowMultipleAllocations must be true")
		}
	}
	for j := range d.Taints {
		checkTaint(l, p.Child("taints").Index(j), &d.Taints[j])
	}
	for j, c := range d.ConsumesCounters {
		at := p.Child("consumesCounters").Index(j)
		if c.CounterSet == "" {
			l.Required(at.Child("counterSet"), "")
		} else {
			l.Label(at.Child("counterSet"), c.CounterSet)
		}
		if slices.ContainsFunc(d.ConsumesCounters[:j], func(o resourcev1.DeviceCounterConsumption) bool { return o.CounterSet == c.CounterSet }) {
			l.Duplicate(at, c.CounterSet)
		}
		checkCounters(l, at.Child("counters"), c.Counters)
	}
	checkBinding(l, p, d.BindingConditions, d.BindingFailureConditions)
}

func checkCounters(l *check.List, p *field.Path, counters map[string]resourcev1.Counter) {
	if len(counters) == 0 {
		l.Required(p, "")
	} else if n := len(counters); n > resourcev1.ResourceSliceMaxCountersPerCounterSet {
		l.TooMany(p, n, resourcev1.ResourceSliceMaxCountersPerCounterSet)
		return
	}
	for name := range check.Sorted(counters) {
		l.Label(p, name)
	}
}

// checkPolicy checks how much of a capacity may be asked for: one of a list of amounts, or steps of a range.
func checkPolicy(l *check.List, p *field.Path, capacity resource.Quantity, r *resourcev1.CapacityRequestPolicy) {
	values, span := r.ValidValues, r.ValidRange
	name := "validRange"
	if len(values) > 0 {
		name = "validValues"
	}
	at := p.Child(name)
	more := func(p *field.Path, what string, q, than resource.Quantity, of string) {
		if q.Cmp(than) > 0 {
			l.Invalid(p, q.String(), what+" is larger than "+of+": "+than.String())
		}
	}
	switch {
	case len(values) > 0 && span != nil:
		l.Forbidden(p, `exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time`)
	case len(values) == 0 && span == nil:
	case r.Default == nil:
		l.Required(p.Child("default"), "required when "+name+" is defined")
	case len(values) > 0:
		for i, v := range values {
			if i > 0 && values[i-1].Cmp(v) > 0 {
				l.Invalid(at.Index(i), v.String(), "values must be sorted in ascending order")
			}
			more(at.Index(i), "option", v, capacity, "capacity value")
		}
		if !slices.ContainsFunc(values, func(v resource.Quantity) bool { return v.Cmp(*r.Default) == 0 }) {
			l.Invalid(at, r.Default.String(), "default value is not valid according to the requestPolicy")
		}
	case span.Min == nil:
		l.Required(at.Child("min"), "required when validRange is defined")
	default:
		more(at.Child("min"), "min", *span.Min, capacity, "capacity value")
		if r.Default.Cmp(*span.Min) < 0 {
			l.Invalid(at.Child("default"), r.Default.String(), "default is less than min: "+span.Min.String())
		}
		if span.Max != nil {
			more(at.Child("max"), "min", *span.Min, *span.Max, "max")
			more(at.Child("max"), "max", *span.Max, capacity, "capacity value")
			if r.Default.Cmp(*span.Max) > 0 {
				l.Invalid(at.Child("default"), r.Default.String(), "default is more than max: "+span.Max.String())
			}
		}
		if span.Step != nil {
			checkStep(l, at.Child("step"), capacity, r)
		}
	}
}

func checkStep(l *check.List, p *field.Path, capacity resource.Quantity, r *resourcev1.CapacityRequestPolicy) {
	low, step := r.ValidRange.Min, r.ValidRange.Step
	if step.Sign() <= 0 {
		l.Invalid(p, step.String(), "must be greater than zero")
		return
	}
	one := low.DeepCopy()
	if one.Add(*step); one.Cmp(capacity) > 0 {
		l.Invalid(p, step.String(), fmt.Sprintf("one step %s is larger than capacity value: %s", one.String(), capacity.String()))
	}
	for _, q := range []*resource.Quantity{r.Default, r.ValidRange.Max} {
		if q != nil && step.Value() > 0 && (q.Value()-low.Value())%step.Value() != 0 {
			l.Invalid(p, q.String(), fmt.Sprintf("value is not a multiple of a given step (%s) from (%s)", step.String(), low.String()))
		}
	}
}

// semantic matches a version as of semver.org 2.0.0.
var semantic = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

func checkAttribute(l *check.List, p *field.Path, a *resourcev1.DeviceAttribute) {
	var set []string
	note := func(name string, isSet bool) {
		if isSet {
			set = append(set, name)
		}
	}
	note("int", a.IntValue != nil)
	note("bool", a.BoolValue != nil)
	note("string", a.StringValue != nil)
	note("version", a.VersionValue != nil)
	for at, text := range map[string]*string{"string": a.StringValue, "version": a.VersionValue} {
		if text != nil && len(*text) > maxAttribute {
			l.TooLong(p.Child(at), maxAttribute)
		}
	}
	if a.VersionValue != nil && !semantic.MatchString(*a.VersionValue) {
		l.Invalid(p.Child("version"), *a.VersionValue, "must be a string compatible with semver.org spec 2.0.0")
	}
	// Lists of values have been dropped: their gate is off.
	const one = "one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"
	switch len(set) {
	case 0:
		l.Invalid(p, "", "must specify "+one)
	case 1:
	default:
		l.Invalid(p, fmt.Sprintf("{%s}", strings.Join(set, ", ")), "must specify exactly "+one)
	}
}

// checkBinding checks the conditions under which a pod is bound to a node for a device.
func checkBinding(l *check.List, p *field.Path, conditions, failures []string) {
	binding, failure := p.Child("bindingConditions"), p.Child("bindingFailureConditions")
	names := func(p *field.Path, list []string) {
		if len(list) > maxConditions {
			l.TooMany(p, len(list), maxConditions)
		}
		for i, name := range list {
			l.LabelName(p.Index(i), name)
		}
	}
	names(binding, conditions)
	names(failure, failures)
	bound, failed := sets.Set[string]{}, sets.Set[string]{}
	for i, c := range conditions {
		if bound.Has(c) {
			l.Duplicate(binding.Index(i), c)
		}
		bound.Insert(c)
	}
	for i, c := range failures {
		if failed.Has(c) {
			l.Duplicate(failure.Index(i), c)
		}
		failed.Insert(c)
		if bound.Has(c) {
			l.Invalid(failure.Index(i), c, "bindingFailureConditions must not overlap with bindingConditions")
		}
	}
	switch {
	case len(bound) == 0 && len(failed) > 0:
		l.Invalid(binding, conditions, "bindingConditions are required to use bindingFailureConditions")
	case len(failed) == 0 && len(bound) > 0:
		l.Invalid(failure, failures, "bindingFailureConditions are required to use bindingConditions")
	}
}
