// Package all is the one list of every built-in resource.
package all

import (
	"slices"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration"
	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/api/apps"
	"github.com/skiff-project/skiff/api/authentication"
	"github.com/skiff-project/skiff/api/authorization"
	"github.com/skiff-project/skiff/api/autoscaling"
	"github.com/skiff-project/skiff/api/batch"
	"github.com/skiff-project/skiff/api/certificates"
	"github.com/skiff-project/skiff/api/coordination"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/discovery"
	"github.com/skiff-project/skiff/api/events"
	"github.com/skiff-project/skiff/api/flowcontrol"
	"github.com/skiff-project/skiff/api/networking"
	"github.com/skiff-project/skiff/api/node"
	"github.com/skiff-project/skiff/api/policy"
	"github.com/skiff-project/skiff/api/rbac"
	"github.com/skiff-project/skiff/api/resource"
	"github.com/skiff-project/skiff/api/scheduling"
	"github.com/skiff-project/skiff/api/storage"
	"github.com/skiff-project/skiff/api/storagemigration"
)

// Resources lists every built-in resource, grouped, the groups in upstream's
// order of preference: an unqualified name means the first group that has it.
func Resources() []*api.Resource {
	return slices.Concat(
		core.Resources(),
		authentication.Resources(),
		authorization.Resources(),
		autoscaling.Resources(),
		batch.Resources(),
		certificates.Resources(),
		coordination.Resources(),
		discovery.Resources(),
		networking.Resources(),
		node.Resources(),
		policy.Resources(),
		rbac.Resources(),
		scheduling.Resources(),
		storage.Resources(),
		storagemigration.Resources(),
		flowcontrol.Resources(),
		apps.Resources(),
		admissionregistration.Resources(),
		apiextensions.Resources(),
		apiregistration.Resources(),
		events.Resources(),
		resource.Resources(),
	)
}
