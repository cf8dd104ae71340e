package resource

import (
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func resourceClaimResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "resourceclaims", Singular: "resourceclaim", Kind: "ResourceClaim",
		Namespaced: true,
		Versions: []api.Version{api.Versioned[resourcev1.ResourceClaim, resourcev1.ResourceClaimList]("v1", func(c *resourcev1.ResourceClaim) {
			defaultClaimSpec(&c.Spec)
			if a := c.Status.Allocation; a != nil {
				for i := range a.Devices.Results {
					defaultTolerations(a.Devices.Results[i].Tolerations)
				}
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *resourcev1.ResourceClaim) {
				c.Status = resourcev1.ResourceClaimStatus{}
				dropClaimFields(&c.Spec)
			}),
			PrepareForUpdate: api.OnUpdate(func(c, old *resourcev1.ResourceClaim) {
				c.Status = old.Status
				dropClaimFields(&c.Spec)
			}),
			Validate: api.Check(func(c *resourcev1.ResourceClaim) field.ErrorList {
				l := &check.List{}
				checkClaimSpec(l, specPath, &c.Spec)
				return l.Errors
			}),
			ValidateUpdate: api.CheckUpdate(func(c, old *resourcev1.ResourceClaim) field.ErrorList {
				l := &check.List{}
				l.Immutable(specPath, c.Spec, old.Spec)
				return l.Errors
			}),
		},
		Subresources: []api.Subresource{api.StatusOnly(func(c, old *resourcev1.ResourceClaim) {
			c.Spec = old.Spec
			dropDeallocated(c, old)
		}, validateClaimStatus)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("State", "string", "A summary of the current state (allocated, pending, reserved, etc.)."),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *resourcev1.ResourceClaim, now metav1.Time) []any {
			return []any{c.Name, state(c), api.Age(c.CreationTimestamp, now)}
		}),
	}
}

func state(c *resourcev1.ResourceClaim) string {
	var s []string
	if c.DeletionTimestamp != nil {
		s = append(s, "deleted")
	}
	switch {
	case c.Status.Allocation != nil:
		s = append(s, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			s = append(s, "reserved")
		}
	case c.DeletionTimestamp == nil:
		s = append(s, "pending")
	}
	return strings.Join(s, ",")
}

func allocates(a *resourcev1.AllocationResult, d resourcev1.AllocatedDeviceStatus) bool {
	return a != nil && slices.ContainsFunc(a.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool {
		return r.Driver == d.Driver && r.Pool == d.Pool && r.Device == d.Device && (d.ShareID == nil || r.ShareID != nil && string(*r.ShareID) == *d.ShareID)
	})
}

func validateClaimStatus(c, old *resourcev1.ResourceClaim) field.ErrorList {
	l, s, p := &check.List{}, &c.Status, field.NewPath("status")
	at := p.Child("reservedFor")
	if n := len(s.ReservedFor); n > maxReservedBy {
		l.TooMany(at, n, maxReservedBy)
	}
	seen := sets.Set[types.UID]{}
	for i, r := range s.ReservedFor {
		if r.Resource == "" {
			l.Required(at.Index(i).Child("resource"), "")
		}
		if r.Name == "" {
			l.Required(at.Index(i).Child("name"), "")
		}
		if r.UID == "" {
			l.Required(at.Index(i).Child("uid"), "")
		} else if seen.Has(r.UID) {
			l.Duplicate(at.Index(i).Child("uid"), r.UID)
		}
		seen.Insert(r.UID)
	}
	for i, d := range s.Devices {
		at := p.Child("devices").Index(i)
		podspec.CheckCSIDriverName(l, at.Child("driver"), d.Driver)
		checkPoolName(l, at.Child("pool"), d.Pool)
		l.Label(at.Child("device"), d.Device)
		if !allocates(s.Allocation, d) {
			l.Invalid(at, resourcev1.AllocatedDeviceStatus{Driver: d.Driver, Pool: d.Pool, Device: d.Device, ShareID: d.ShareID}, "must be an allocated device in the claim")
		}
	}
	if len(s.ReservedFor) > 0 && s.Allocation == nil {
		l.Forbidden(at, "may not be specified when `allocated` is not set")
	}
	if c.DeletionTimestamp != nil && api.Changed(s.ReservedFor, old.Status.ReservedFor) {
		was := sets.Set[types.UID]{}
		for _, r := range old.Status.ReservedFor {
			was.Insert(r.UID)
		}
		if !was.IsSuperset(seen) {
			l.Forbidden(at, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set")
		}
	}
	if old.Status.Allocation != nil && s.Allocation != nil {
		l.Immutable(p.Child("allocation"), s.Allocation, old.Status.Allocation)
	} else if s.Allocation != nil {
		checkAllocated(l, p.Child("allocation"), s.Allocation, requestNames(&c.Spec))
	}
	return l.Errors
}

// checkAllocated checks what a scheduler gave a claim.
func checkAllocated(l *check.List, p *field.Path, a *resourcev1.AllocationResult, names sets.Set[string]) {
	for i := range a.Devices.Results {
		r, at := &a.Devices.Results[i], p.Child("devices", "results").Index(i)
		checkReference(l, at.Child("request"), r.Request, names)
		l.DriverName(at.Child("driver"), r.Driver)
		checkPoolName(l, at.Child("pool"), r.Pool)
		l.Label(at.Child("device"), r.Device)
		checkBinding(l, at, r.BindingConditions, r.BindingFailureConditions)
		for j := range r.Tolerations {
			checkToleration(l, at.Child("tolerations").Index(j), &r.Tolerations[j])
		}
	}
	for i := range a.Devices.Config {
		c, at := &a.Devices.Config[i], p.Child("devices", "config").Index(i)
		check.Choice(l, at.Child("source"), c.Source, resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)
		checkReferences(l, at.Child("requests"), c.Requests, names)
		checkConfig(l, at, &c.DeviceConfiguration)
	}
	if a.NodeSelector != nil {
		podspec.CheckNodeSelector(l, p.Child("nodeSelector"), a.NodeSelector)
	}
}
