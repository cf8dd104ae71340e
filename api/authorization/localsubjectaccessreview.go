package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/skiff-project/skiff/api"
)

func localSubjectAccessReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "localsubjectaccessreviews", Singular: "localsubjectaccessreview", Kind: "LocalSubjectAccessReview",
		Namespaced: true,
		Versions:   []api.Version{api.Review[authorizationv1.LocalSubjectAccessReview]("v1", nil)},
		Virtual:    true,
		Verbs:      []string{"create"},
	}
}
