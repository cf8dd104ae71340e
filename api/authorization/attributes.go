package authorization

import (
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateAttributes checks the selectors of the request that a review asks
// about; nil is fine.
func ValidateAttributes(a *authorizationv1.ResourceAttributes) (errs field.ErrorList) {
	if a == nil {
		return nil
	}
	p := field.NewPath("spec.resourceAttributes")
	either := func(p *field.Path, raw string, n int) {
		switch {
		case raw != "" && n > 0:
			errs = append(errs, field.Invalid(p.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
		case raw == "" && n == 0:
			errs = append(errs, field.Required(p.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", p)))
		}
	}
	if s, p := a.FieldSelector, p.Child("fieldSelector"); s != nil {
		either(p, s.RawSelector, len(s.Requirements))
		for i, r := range s.Requirements {
			errs = append(errs, metavalidation.ValidateFieldSelectorRequirement(r, metavalidation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	if s, p := a.LabelSelector, p.Child("labelSelector"); s != nil {
		either(p, s.RawSelector, len(s.Requirements))
		for i, r := range s.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(r, metavalidation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	return errs
}
