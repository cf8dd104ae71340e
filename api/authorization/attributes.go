package authorization

import (
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate checks a review: its spec, who is asked about if it names a user,
// and its metadata, which must be empty (but for the namespace of a local one).
// Its error is the API's answer.
func Validate(meta *metav1.ObjectMeta, spec *authorizationv1.SubjectAccessReviewSpec, local, user bool) error {
	var errs field.ErrorList
	path := field.NewPath("spec")
	res, non := spec.ResourceAttributes, spec.NonResourceAttributes
	if (res == nil) == (non == nil) {
		errs = append(errs, field.Invalid(path, non, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if user && spec.User == "" && len(spec.Groups) == 0 {
		errs = append(errs, field.Invalid(path.Child("user"), spec.User, "at least one of user or group must be specified"))
	}
	errs = append(errs, validateAttributes(res)...)
	text := "must be empty"
	if local {
		text = "must be empty except for namespace"
	}
	// What a server sets itself on what is created does not count.
	bare := metav1.ObjectMeta{Name: meta.Name, GenerateName: meta.GenerateName, Generation: meta.Generation, Labels: meta.Labels,
		Annotations: meta.Annotations, OwnerReferences: meta.OwnerReferences, Finalizers: meta.Finalizers}
	if !apiequality.Semantic.DeepEqual(metav1.ObjectMeta{}, bare) {
		errs = append(errs, field.Invalid(field.NewPath("metadata"), meta, text))
	}
	if local && res != nil && res.Namespace != meta.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("spec.resourceAttributes.namespace"), res.Namespace, "must match metadata.namespace"))
	}
	if local && non != nil {
		errs = append(errs, field.Invalid(field.NewPath("spec.nonResourceAttributes"), non, "disallowed on this kind of request"))
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: Group}, "", errs)
}

// validateAttributes checks the selectors of the request that a review asks
// about; nil is fine.
func validateAttributes(a *authorizationv1.ResourceAttributes) (errs field.ErrorList) {
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
