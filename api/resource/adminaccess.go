package resource

import (
	"fmt"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
)

// Reader reads stored objects.
type Reader interface {
	Get(group, resource, namespace, name string) (api.Object, error)
}

// CheckAdminAccess refuses access to devices as their administrator in a namespace that is not labelled
// for it: what a new claim or template asks for, and what a status newly grants. old is nil on create.
func CheckAdminAccess(obj, old api.Object, read Reader) field.ErrorList {
	at := adminAccess(obj, old)
	if at == nil {
		return nil
	}
	ns, err := read.Get("", "namespaces", "", obj.GetNamespace())
	if err != nil {
		return field.ErrorList{field.InternalError(at, fmt.Errorf("could not retrieve namespace to verify admin access: %w", err))}
	}
	if ns.GetLabels()[resourcev1.DRAAdminNamespaceLabelKey] != "true" {
		return field.ErrorList{field.Forbidden(at, "admin access to devices requires the `"+resourcev1.DRAAdminNamespaceLabelKey+": true` label on the containing namespace")}
	}
	return nil
}

// adminAccess is where obj first asks for what old (nil on create) did not have. A spec never changes, so
// it is looked at once; its path is the claim's also in a template, as upstream tells it.
func adminAccess(obj, old api.Object) *field.Path {
	var spec *resourcev1.ResourceClaimSpec
	switch obj := obj.(type) {
	case *resourcev1.ResourceClaimTemplate:
		spec = &obj.Spec.Spec
	case *resourcev1.ResourceClaim:
		if was, ok := old.(*resourcev1.ResourceClaim); ok {
			if granted(was) != nil {
				return nil
			}
			return granted(obj)
		}
		spec = &obj.Spec
	}
	if spec == nil || old != nil {
		return nil
	}
	for i, r := range spec.Devices.Requests {
		if r.Exactly != nil && r.Exactly.AdminAccess != nil && *r.Exactly.AdminAccess {
			return specPath.Child("devices", "requests").Index(i).Child("adminAccess")
		}
	}
	return nil
}

// granted is where a claim's status first has admin access.
func granted(c *resourcev1.ResourceClaim) *field.Path {
	if c.Status.Allocation == nil {
		return nil
	}
	for i, r := range c.Status.Allocation.Devices.Results {
		if r.AdminAccess != nil && *r.AdminAccess {
			return field.NewPath("status", "allocation", "devices", "results").Index(i).Child("adminAccess")
		}
	}
	return nil
}
