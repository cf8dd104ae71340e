package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/skiff-project/skiff/api"
)

func selfSubjectAccessReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "selfsubjectaccessreviews", Singular: "selfsubjectaccessreview", Kind: "SelfSubjectAccessReview",
		Versions: []api.Version{api.Review[authorizationv1.SelfSubjectAccessReview]("v1", nil)},
		Virtual:  true,
		Verbs:    []string{"create"},
	}
}
