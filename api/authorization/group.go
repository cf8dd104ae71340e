// Package authorization describes the reviews of the authorization.k8s.io group.
package authorization

import "github.com/skiff-project/skiff/api"

// Group is the name of the API group.
const Group = "authorization.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	return []*api.Resource{
		localSubjectAccessReviewResource(),
		selfSubjectAccessReviewResource(),
		selfSubjectRulesReviewResource(),
		subjectAccessReviewResource(),
	}
}
