// Package check gathers the small validation steps all groups share. Each adds
// what it finds wrong, in upstream's words, to a List.
package check

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strconv"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// List gathers errors in the order they are found. The zero value is ready.
type List struct{ Errors field.ErrorList }

// Add appends errors found elsewhere.
func (l *List) Add(errs field.ErrorList) { l.Errors = append(l.Errors, errs...) }

// Required says that a field must have a value.
func (l *List) Required(p *field.Path, detail string) {
	l.Errors = append(l.Errors, field.Required(p, detail))
}

// Invalid says that the value of a field is wrong, and how.
func (l *List) Invalid(p *field.Path, value any, detail string) {
	l.Errors = append(l.Errors, field.Invalid(p, value, detail))
}

// Forbidden says that a field may not be set, or not so, here.
func (l *List) Forbidden(p *field.Path, detail string) {
	l.Errors = append(l.Errors, field.Forbidden(p, detail))
}

// Duplicate says that a value is there twice.
func (l *List) Duplicate(p *field.Path, value any) {
	l.Errors = append(l.Errors, field.Duplicate(p, value))
}

// NotFound says that a value refers to something that is not there.
func (l *List) NotFound(p *field.Path, value any) {
	l.Errors = append(l.Errors, field.NotFound(p, value))
}

// TooLong says that a value has more than limit bytes.
func (l *List) TooLong(p *field.Path, limit int) {
	l.Errors = append(l.Errors, field.TooLong(p, "", limit))
}

// TooMany says that a list has more than limit items.
func (l *List) TooMany(p *field.Path, n, limit int) {
	l.Errors = append(l.Errors, field.TooMany(p, n, limit))
}

// Messages adds an Invalid for each message.
func (l *List) Messages(p *field.Path, value any, messages []string) {
	for _, m := range messages {
		l.Invalid(p, value, m)
	}
}

// OneOf checks that a value is one of those allowed; the order is the one told to the user.
func OneOf[T ~string](l *List, p *field.Path, value T, allowed ...T) bool {
	if slices.Contains(allowed, value) {
		return true
	}
	l.Errors = append(l.Errors, field.NotSupported(p, value, allowed))
	return false
}

// Choice is OneOf for a field that must not be empty.
func Choice[T ~string](l *List, p *field.Path, value T, allowed ...T) bool {
	if value == "" {
		l.Required(p, "")
		return false
	}
	return OneOf(l, p, value, allowed...)
}

// Label checks a DNS-1123 label.
func (l *List) Label(p *field.Path, s string) { l.Messages(p, s, validation.IsDNS1123Label(s)) }

// Subdomain checks a DNS-1123 subdomain.
func (l *List) Subdomain(p *field.Path, s string) { l.Messages(p, s, validation.IsDNS1123Subdomain(s)) }

// QualifiedName checks a name with an optional domain prefix.
func (l *List) QualifiedName(p *field.Path, s string) {
	l.Messages(p, s, validation.IsQualifiedName(s))
}

// LabelName checks the key of a label.
func (l *List) LabelName(p *field.Path, s string) {
	if !plainKey(s) {
		l.Add(metavalidation.ValidateLabelName(s, p))
	}
}

// Labels checks the keys and values of labels.
func (l *List) Labels(p *field.Path, labels map[string]string) {
	if !plainLabels(labels) {
		l.Add(metavalidation.ValidateLabels(labels, p))
	}
}

// Annotations checks the keys and the total size of annotations.
func (l *List) Annotations(p *field.Path, a map[string]string) {
	l.Add(apivalidation.ValidateAnnotations(a, p))
}

// Selector checks a label selector; nil is fine.
func (l *List) Selector(p *field.Path, s *metav1.LabelSelector) {
	l.Add(metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, p))
}

// Nonnegative checks value >= 0.
func (l *List) Nonnegative(p *field.Path, value int64) {
	l.Add(apivalidation.ValidateNonnegativeField(value, p))
}

// Positive checks value > 0.
func (l *List) Positive(p *field.Path, value int64) {
	if value <= 0 {
		l.Invalid(p, value, "must be greater than zero")
	}
}

// NonnegativeQuantity checks a quantity >= 0.
func (l *List) NonnegativeQuantity(p *field.Path, q resource.Quantity) {
	if q.Sign() < 0 {
		l.Invalid(p, q.String(), apivalidation.IsNegativeErrorMsg)
	}
}

// PositiveQuantity checks a quantity > 0.
func (l *List) PositiveQuantity(p *field.Path, q resource.Quantity) {
	if q.Sign() <= 0 {
		l.Invalid(p, q.String(), "must be greater than zero")
	}
}

// Immutable checks that a field has not changed; nil and empty are alike.
func (l *List) Immutable(p *field.Path, now, old any) {
	if !apiequality.Semantic.DeepEqual(now, old) {
		l.Invalid(p, now, apivalidation.FieldImmutableErrorMsg)
	}
}

// Names checks metadata.name and generateName, as far as they are set, by a rule that depends on the object.
func (l *List) Names(m metav1.Object, problems func(name string) []string) {
	for _, n := range []struct{ field, value string }{{"generateName", m.GetGenerateName()}, {"name", m.GetName()}} {
		if n.value != "" {
			l.Messages(field.NewPath("metadata", n.field), n.value, problems(n.value))
		}
	}
}

// PathSegment is the rule for names that need only fit a path.
func PathSegment(name string, prefix bool) []string {
	if prefix {
		return content.IsPathSegmentPrefix(name)
	}
	return content.IsPathSegmentName(name)
}

// DeclaredName is the rule for names that upstream's declared validation checks: a DNS-1123
// subdomain, and any generateName.
func DeclaredName(name string, prefix bool) []string {
	if prefix {
		return nil
	}
	return content.IsDNS1123Subdomain(name)
}

// DriverName checks the name of a driver where upstream's declared validation does, which has words of its own.
func (l *List) DriverName(p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	if len(name) > maxDriverName {
		l.Errors = append(l.Errors, field.TooLongCharacters(p, "", maxDriverName))
	}
	l.Add(validate.LongNameCaseless(context.Background(), operation.Operation{}, p, &name, nil))
}

const maxDriverName = 63

// Fixed is Immutable where upstream's declared validation checks it, which does not show the value.
func (l *List) Fixed(p *field.Path, now, old any) {
	if !apiequality.Semantic.DeepEqual(now, old) {
		l.Invalid(p, nil, apivalidation.FieldImmutableErrorMsg)
	}
}

// Port checks a port number.
func (l *List) Port(p *field.Path, port int32) {
	l.Messages(p, port, validation.IsValidPortNum(int(port)))
}

// PortNumOrName checks a port given by number or by name.
func (l *List) PortNumOrName(p *field.Path, port intstr.IntOrString) {
	if port.Type == intstr.Int {
		l.Messages(p, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
		return
	}
	l.Messages(p, port.StrVal, validation.IsValidPortName(port.StrVal))
}

// IP checks an address in its canonical form.
func (l *List) IP(p *field.Path, ip string) {
	l.Add(validation.IsValidIPForLegacyField(p, ip, true, nil))
}

// Sorted walks a map in the order of its keys, so that errors come in one order.
func Sorted[M ~map[K]V, K cmp.Ordered, V any](m M) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		keys := make([]K, 0, len(m)) // mostly few, which growing a list would cost thrice
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// IntOrPercent checks a count or a percentage, which may not exceed 100% where
// capped; nil is zero. It returns the number, percent or not.
func (l *List) IntOrPercent(p *field.Path, v *intstr.IntOrString, capped bool) int {
	if v == nil {
		v = &intstr.IntOrString{}
	}
	if v.Type == intstr.Int {
		l.Nonnegative(p, int64(v.IntValue()))
		return v.IntValue()
	}
	msgs := validation.IsValidPercent(v.StrVal)
	l.Messages(p, *v, msgs)
	n, _ := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	if capped && len(msgs) == 0 && n > 100 {
		l.Invalid(p, *v, "must not be greater than 100%")
	}
	return n
}

// ForbidIf forbids a field when set.
func (l *List) ForbidIf(p *field.Path, set bool, detail string) {
	if set {
		l.Forbidden(p, detail)
	}
}

// Text requires a text that is not empty.
func (l *List) Text(p *field.Path, s string) {
	if s == "" {
		l.Required(p, "")
	}
}

// Range checks that v is between low and high, both included.
func (l *List) Range(p *field.Path, v, low, high int64) {
	if v < low || v > high {
		l.Invalid(p, v, validation.InclusiveRangeError(int(low), int(high)))
	}
}

// NoBacksteps refuses a path with "..".
func (l *List) NoBacksteps(p *field.Path, s string) {
	if slices.Contains(strings.Split(s, "/"), "..") {
		l.Invalid(p, s, "must not contain '..'")
	}
}
