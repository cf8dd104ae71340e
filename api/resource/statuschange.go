package resource

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/skiff-project/skiff/api"
)

// device is one device, or a share of one.
type device struct{ driver, pool, name, share string }

func allocated(r resourcev1.DeviceRequestAllocationResult) device {
	d := device{r.Driver, r.Pool, r.Device, ""}
	if r.ShareID != nil {
		d.share = string(*r.ShareID)
	}
	return d
}

func told(s resourcev1.AllocatedDeviceStatus) device {
	d := device{s.Driver, s.Pool, s.Device, ""}
	if s.ShareID != nil {
		d.share = *s.ShareID
	}
	return d
}

// dropDeallocated removes what is told of devices that c no longer has and old had, so that who takes an
// allocation away need not know of it.
func dropDeallocated(c, old *resourcev1.ResourceClaim) {
	gone := sets.Set[device]{}
	if a := old.Status.Allocation; a != nil {
		for _, r := range a.Devices.Results {
			gone.Insert(allocated(r))
		}
	}
	if a := c.Status.Allocation; a != nil {
		for _, r := range a.Devices.Results {
			gone.Delete(allocated(r))
		}
	}
	c.Status.Devices = slices.DeleteFunc(slices.Clone(c.Status.Devices), func(s resourcev1.AllocatedDeviceStatus) bool { return gone.Has(told(s)) })
	if len(c.Status.Devices) == 0 {
		c.Status.Devices = nil
	}
}

// StatusChanges tells what of a claim's status differs in obj from old: whether its allocation or reservations
// do, and the drivers, sorted, that something else is told of. Of a claim without an allocation nothing can be
// told, so its drivers are none. Objects other than claims, and an old that is nil, have no changes.
func StatusChanges(obj, old api.Object) (bound bool, drivers []string) {
	c, ok := obj.(*resourcev1.ResourceClaim)
	was, both := old.(*resourcev1.ResourceClaim)
	if !ok || !both {
		return false, nil
	}
	bound = api.Changed(c.Status.Allocation, was.Status.Allocation) || api.Changed(c.Status.ReservedFor, was.Status.ReservedFor)
	if c.Status.Allocation == nil {
		return bound, nil
	}
	before, changed := map[device]resourcev1.AllocatedDeviceStatus{}, sets.Set[string]{}
	for _, s := range was.Status.Devices {
		before[told(s)] = s
	}
	for _, s := range c.Status.Devices {
		if b, ok := before[told(s)]; !ok || api.Changed(s, b) {
			changed.Insert(s.Driver)
		}
		delete(before, told(s))
	}
	for d := range before {
		changed.Insert(d.driver)
	}
	return bound, sets.List(changed)
}

// AllocatedNode is the only node on which a claim's devices can be used, by its name; "" where there are
// more, or obj is not an allocated claim.
func AllocatedNode(obj api.Object) string {
	c, ok := obj.(*resourcev1.ResourceClaim)
	if !ok || c.Status.Allocation == nil || c.Status.Allocation.NodeSelector == nil {
		return ""
	}
	terms := c.Status.Allocation.NodeSelector.NodeSelectorTerms
	if len(terms) != 1 || len(terms[0].MatchExpressions) > 0 || len(terms[0].MatchFields) != 1 {
		return ""
	}
	f := terms[0].MatchFields[0]
	if f.Key != "metadata.name" || f.Operator != corev1.NodeSelectorOpIn || len(f.Values) != 1 {
		return ""
	}
	return f.Values[0]
}
