// Package authentication describes the reviews of the authentication.k8s.io group.
package authentication

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "authentication.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		selfSubjectReviewResource(),
		tokenReviewResource(),
	}
}
