package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// review is one kind of access review; only its body and its place differ.
func review(name, kind string, namespaced bool, v api.Version, validate func(api.Object) field.ErrorList) *api.Resource {
	r := &api.Resource{
		Group: Group, Name: name, Singular: name[:len(name)-1], Kind: kind,
		Namespaced: namespaced,
		Versions:   []api.Version{v},
		Virtual:    true,
		Verbs:      []string{"create"},
	}
	if validate != nil {
		r.Strategy.Validate = api.Check(validate)
	}
	return r
}

func localSubjectAccessReviewResource() *api.Resource {
	return review("localsubjectaccessreviews", "LocalSubjectAccessReview", true, api.Review[authorizationv1.LocalSubjectAccessReview]("v1", nil), func(o api.Object) field.ErrorList {
		r := o.(*authorizationv1.LocalSubjectAccessReview)
		l := &check.List{}
		checkSubject(l, r.Spec.User, r.Spec.Groups)
		at := field.NewPath("spec", "resourceAttributes")
		if r.Spec.NonResourceAttributes != nil {
			l.Invalid(field.NewPath("spec", "nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request")
		}
		if r.Spec.ResourceAttributes != nil && r.Spec.ResourceAttributes.Namespace != r.Namespace {
			l.Invalid(at.Child("namespace"), r.Spec.ResourceAttributes.Namespace, "must match metadata.namespace")
		}
		if r.Spec.ResourceAttributes == nil {
			l.Required(at, "")
		}
		return l.Errors
	})
}

func selfSubjectAccessReviewResource() *api.Resource {
	return review("selfsubjectaccessreviews", "SelfSubjectAccessReview", false, api.Review[authorizationv1.SelfSubjectAccessReview]("v1", nil), func(o api.Object) field.ErrorList {
		s := &o.(*authorizationv1.SelfSubjectAccessReview).Spec
		l := &check.List{}
		checkTarget(l, s.ResourceAttributes, s.NonResourceAttributes)
		return l.Errors
	})
}

func selfSubjectRulesReviewResource() *api.Resource {
	return review("selfsubjectrulesreviews", "SelfSubjectRulesReview", false, api.Review[authorizationv1.SelfSubjectRulesReview]("v1", nil), nil)
}

func subjectAccessReviewResource() *api.Resource {
	return review("subjectaccessreviews", "SubjectAccessReview", false, api.Review[authorizationv1.SubjectAccessReview]("v1", nil), func(o api.Object) field.ErrorList {
		s := &o.(*authorizationv1.SubjectAccessReview).Spec
		l := &check.List{}
		checkTarget(l, s.ResourceAttributes, s.NonResourceAttributes)
		checkSubject(l, s.User, s.Groups)
		return l.Errors
	})
}

func checkSubject(l *check.List, user string, groups []string) {
	if user == "" && len(groups) == 0 {
		l.Invalid(field.NewPath("spec", "user"), user, "at least one of user or group must be specified")
	}
}

func checkTarget(l *check.List, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) {
	switch {
	case r != nil && n != nil:
		l.Invalid(field.NewPath("spec", "nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes")
	case r == nil && n == nil:
		l.Invalid(field.NewPath("spec", "resourceAttributes"), r, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
	}
}
