package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/skiff-project/skiff/api"
)

func subjectAccessReviewResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "subjectaccessreviews", Singular: "subjectaccessreview", Kind: "SubjectAccessReview",
		Versions: []api.Version{api.Review[authorizationv1.SubjectAccessReview]("v1", nil)},
		Virtual:  true,
		Verbs:    []string{"create"},
	}
}
