// Package claimstatus keeps who may write the status of ResourceClaims to the parts of it that they have a
// permission for: a device driver cannot allocate, and a driver tells of its own devices only.
package claimstatus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/resource"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/serviceaccount"
)

// Check asks z whether the user of ctx's request may make of old's status (nil on create) that of obj. The
// permissions are on subresources that nothing else is asked of: "binding" for the allocation and the
// reservations, at the cluster scope, and "driver", by the driver's name, for what is told of its devices.
// Objects other than claims, and unchanged parts, take none.
func Check(ctx context.Context, z auth.Authorizer, obj, old api.Object) field.ErrorList {
	bound, drivers := resource.StatusChanges(obj, old)
	if !bound && len(drivers) == 0 {
		return nil
	}
	status := field.NewPath("status")
	a, ok := request.AttributesOf(ctx)
	if !ok {
		return field.ErrorList{field.InternalError(status, errors.New("cannot build authorizer attributes: who makes the request is not known"))}
	}
	var errs field.ErrorList
	if bound {
		ask := a
		ask.Subresource, ask.Namespace, ask.Name = resourcev1.SubresourceBinding, "", ""
		if err := refusal(ctx, z, ask); err != nil {
			errs = append(errs, field.Forbidden(status.Child("allocation"), fmt.Sprintf(
				"changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"%s\" permission: %s", a.Verb, err)))
		}
	}
	verbs := []string{resourcev1.VerbPrefixArbitraryNode + a.Verb}
	if onNode(a.User, resource.AllocatedNode(obj)) {
		verbs = slices.Insert(verbs, 0, resourcev1.VerbPrefixAssociatedNode+a.Verb)
	}
	for _, driver := range drivers {
		if err := anyOf(ctx, z, a, verbs, driver); err != nil {
			errs = append(errs, field.Forbidden(status.Child("devices"), fmt.Sprintf(
				"changing status.devices requires resource=\"resourceclaims/driver\", verb=\"%s\" permission: %s", verbs, err)))
		}
	}
	return errs
}

// anyOf is the refusal of the first verb when none is allowed.
func anyOf(ctx context.Context, z auth.Authorizer, a auth.Attributes, verbs []string, driver string) (first error) {
	a.Subresource, a.Name = resourcev1.SubresourceDriver, driver
	for _, a.Verb = range verbs {
		err := refusal(ctx, z, a)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// refusal is the 403 of what z does not allow. That z could not tell is one of its reasons.
func refusal(ctx context.Context, z auth.Authorizer, a auth.Attributes) error {
	d, reason, err := z.Authorize(ctx, a)
	if err != nil {
		reason = strings.TrimSuffix(err.Error()+": "+reason, ": ")
	}
	return request.Refusal(a, d, reason, nil)
}

// onNode tells a service account whose token is of a pod on the node.
func onNode(u auth.User, node string) bool {
	rest, ok := strings.CutPrefix(u.Name, auth.ServiceAccountPrefix)
	ns, name, both := strings.Cut(rest, ":")
	if !ok || !both || len(validation.ValidateNamespaceName(ns, false)) > 0 || len(validation.ValidateServiceAccountName(name, false)) > 0 {
		return false
	}
	on := u.Extra[serviceaccount.NodeNameKey]
	return len(on) == 1 && on[0] == node && len(validation.NameIsDNSSubdomain(node, false)) == 0
}
