package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/skiff-project/skiff/api"
)

func selfSubjectReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "selfsubjectreviews", Singular: "selfsubjectreview", Kind: "SelfSubjectReview",
		Versions: []api.Version{api.Review[authenticationv1.SelfSubjectReview]("v1", nil)},
		Virtual:  true,
		Verbs:    []string{"create"},
	}
}
