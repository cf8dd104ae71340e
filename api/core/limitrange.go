package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func limitRangeResource() *api.Resource {
	return &api.Resource{
		Name: "limitranges", Singular: "limitrange", Kind: "LimitRange",
		ShortNames: []string{"limits"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.LimitRange, corev1.LimitRangeList]("v1", defaultLimitRange)},
		Strategy: api.Strategy{
			Validate:            api.Check(validateLimitRange),
			ValidateUpdate:      api.CheckUpdate(func(l, _ *corev1.LimitRange) field.ErrorList { return validateLimitRange(l) }),
			AllowCreateOnUpdate: true,
		},
	}
}

func validateLimitRange(r *corev1.LimitRange) field.ErrorList {
	l, seen := &check.List{}, map[corev1.LimitType]bool{}
	for i := range r.Spec.Limits {
		it, at := &r.Spec.Limits[i], specPath.Child("limits").Index(i)
		msgs := validation.IsQualifiedName(string(it.Type))
		l.Messages(at.Child("type"), it.Type, msgs)
		standard := it.Type == corev1.LimitTypePod || it.Type == corev1.LimitTypeContainer || it.Type == corev1.LimitTypePersistentVolumeClaim
		if !strings.Contains(string(it.Type), "/") && !standard && len(msgs) == 0 {
			l.Invalid(at.Child("type"), it.Type, "must be a standard limit type or fully qualified")
		}
		if seen[it.Type] {
			l.Duplicate(at.Child("type"), it.Type)
		}
		seen[it.Type] = true
		checkLimitItem(l, at, it)
	}
	return l.Errors
}

func checkLimitItem(l *check.List, p *field.Path, it *corev1.LimitRangeItem) {
	names := sets.Set[corev1.ResourceName]{}
	note := func(name string, list corev1.ResourceList) {
		for n := range check.Sorted(list) {
			if it.Type == corev1.LimitTypePod || it.Type == corev1.LimitTypeContainer {
				podspec.CheckContainerResourceName(l, p.Child(name).Key(string(n)), n)
			} else {
				podspec.CheckResourceName(l, p.Child(name).Key(string(n)), n)
			}
			names.Insert(n)
		}
	}
	note("max", it.Max)
	note("min", it.Min)
	if it.Type == corev1.LimitTypePod {
		const not = "may not be specified when `type` is 'Pod'"
		l.ForbidIf(p.Child("default"), len(it.Default) > 0, not)
		l.ForbidIf(p.Child("defaultRequest"), len(it.DefaultRequest) > 0, not)
	} else {
		note("default", it.Default)
		note("defaultRequest", it.DefaultRequest)
	}
	if it.Type == corev1.LimitTypePersistentVolumeClaim {
		_, low := it.Min[corev1.ResourceStorage]
		_, high := it.Max[corev1.ResourceStorage]
		if !low && !high {
			l.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
		}
	}
	note("maxLimitRequestRatio", it.MaxLimitRequestRatio)
	for _, n := range sets.List(names) {
		checkLimitOrder(l, p, it, n)
	}
}

// checkLimitOrder checks min ≤ default request ≤ default ≤ max for one resource.
func checkLimitOrder(l *check.List, p *field.Path, it *corev1.LimitRangeItem, n corev1.ResourceName) {
	low, lok := it.Min[n]
	high, hok := it.Max[n]
	var def, req resource.Quantity
	var dok, rok bool
	if it.Type != corev1.LimitTypePod {
		def, dok = it.Default[n]
		req, rok = it.DefaultRequest[n]
	}
	order := func(ok bool, a, b resource.Quantity, at string, bad resource.Quantity, aName, bName string) {
		if ok && a.Cmp(b) > 0 {
			l.Invalid(p.Child(at).Key(string(n)), bad, fmt.Sprintf("%s value %s is greater than %s value %s", aName, a.String(), bName, b.String()))
		}
	}
	order(lok && hok, low, high, "min", low, "min", "max")
	order(rok && lok, low, req, "defaultRequest", req, "min", "default request")
	order(rok && hok, req, high, "defaultRequest", req, "default request", "max")
	order(rok && dok, req, def, "defaultRequest", req, "default request", "default limit")
	order(dok && lok, low, def, "default", low, "min", "default")
	order(dok && hok, def, high, "default", high, "default", "max")
	if ratio, ok := it.MaxLimitRequestRatio[n]; ok {
		at := p.Child("maxLimitRequestRatio").Key(string(n))
		if ratio.Cmp(resource.MustParse("1")) < 0 {
			l.Invalid(at, ratio, fmt.Sprintf("ratio %s is less than 1", ratio.String()))
		}
		if most := high.AsApproximateFloat64() / low.AsApproximateFloat64(); lok && hok && ratio.AsApproximateFloat64() > most {
			l.Invalid(at, ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), most))
		}
	}
	if !podspec.OvercommitAllowed(n) && dok && rok && def.Cmp(req) != 0 {
		l.Invalid(p.Child("defaultRequest").Key(string(n)), req, fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", def.String(), req.String(), n))
	}
}
