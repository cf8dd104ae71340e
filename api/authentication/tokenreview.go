package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/skiff-project/skiff/api"
)

func tokenReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "tokenreviews", Singular: "tokenreview", Kind: "TokenReview",
		Versions: []api.Version{api.Review[authenticationv1.TokenReview]("v1", nil)},
		Virtual:  true,
		Verbs:    []string{"create"},
	}
}
