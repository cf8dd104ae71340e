package resource

import (
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
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
// perhaps behind a domain and a slash, or surely so.
func checkQualified(l *check.List, p *field.Path, name string, domain bool) {
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
	if domain && len(parts) == 1 {
		l.Invalid(p, name, "a fully qualified name must be a domain and a name separated by a slash")
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

// checkDevice checks what a slice says of one device, but for its place.
func checkDevice(l *check.List, p *field.Path, d *resourcev1.Device) {
	if d.Name == "" {
		l.Required(p.Child("name"), "")
	} else {
		l.Label(p.Child("name"), d.Name)
	}
	for name, a := range check.Sorted(d.Attributes) {
		checkQualified(l, p.Child("attributes"), string(name), false)
		checkAttribute(l, p.Child("attributes").Key(string(name)), &a)
	}
	for name := range check.Sorted(d.Capacity) {
		checkQualified(l, p.Child("capacity"), string(name), false)
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
		if len(c.Counters) == 0 {
			l.Required(at.Child("counters"), "")
		}
	}
	checkBinding(l, p, d)
}

func checkAttribute(l *check.List, p *field.Path, a *resourcev1.DeviceAttribute) {
	var set []string
	note := func(name string, isSet bool) {
		if isSet {
			set = append(set, name)
		}
	}
	note("bool", a.BoolValue != nil)
	note("int", a.IntValue != nil)
	note("string", a.StringValue != nil)
	note("version", a.VersionValue != nil)
	note("bools", a.BoolValues != nil)
	note("ints", a.IntValues != nil)
	note("strings", a.StringValues != nil)
	note("versions", a.VersionValues != nil)
	for at, text := range map[string]*string{"string": a.StringValue, "version": a.VersionValue} {
		if text != nil && len(*text) > maxAttribute {
			l.TooLong(p.Child(at), maxAttribute)
		}
	}
	const one = "exactly one value must be specified"
	switch len(set) {
	case 0:
		l.Invalid(p, "", one)
	case 1:
	default:
		l.Invalid(p, fmt.Sprintf("{%s}", strings.Join(set, ", ")), one)
	}
}

// checkBinding checks the conditions under which a pod is bound to a node for a device.
func checkBinding(l *check.List, p *field.Path, d *resourcev1.Device) {
	binding, failure := p.Child("bindingConditions"), p.Child("bindingFailureConditions")
	names := func(p *field.Path, list []string) {
		if len(list) > maxConditions {
			l.TooMany(p, len(list), maxConditions)
		}
		for i, name := range list {
			l.LabelName(p.Index(i), name)
		}
	}
	names(binding, d.BindingConditions)
	names(failure, d.BindingFailureConditions)
	bound, failed := sets.Set[string]{}, sets.Set[string]{}
	for i, c := range d.BindingConditions {
		if bound.Has(c) {
			l.Duplicate(binding.Index(i), c)
		}
		bound.Insert(c)
	}
	for i, c := range d.BindingFailureConditions {
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
		l.Invalid(binding, d.BindingConditions, "bindingConditions are required to use bindingFailureConditions")
	case len(failed) == 0 && len(bound) > 0:
		l.Invalid(failure, d.BindingFailureConditions, "bindingFailureConditions are required to use bindingConditions")
	}
}
