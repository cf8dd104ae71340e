package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/skiff-project/skiff/api"
)

func selfSubjectRulesReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "selfsubjectrulesreviews", Singular: "selfsubjectrulesreview", Kind: "SelfSubjectRulesReview",
		Versions: []api.Version{api.Review[authorizationv1.SelfSubjectRulesReview]("v1", nil)},
		Virtual:  true,
		Verbs:    []string{"create"},
	}
}
