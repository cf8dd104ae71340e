package resource

import (
	"reflect"
	"testing"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What is told of a device goes with the device, or with the share of it; what never was allocated stays, for
// validation to refuse.
func TestDropDeallocated(t *testing.T) {
	one, two := types.UID("1"), types.UID("2")
	allocate := func(shares ...*types.UID) *resourcev1.AllocationResult {
		a := &resourcev1.AllocationResult{}
		for _, s := range shares {
			a.Devices.Results = append(a.Devices.Results, resourcev1.DeviceRequestAllocationResult{Driver: "d", Pool: "p", Device: "x", ShareID: s})
		}
		return a
	}
	told := func(shares ...string) []resourcev1.AllocatedDeviceStatus {
		list := []resourcev1.AllocatedDeviceStatus{}
		for _, s := range shares {
			d := resourcev1.AllocatedDeviceStatus{Driver: "d", Pool: "p", Device: "x"}
			if s != "" {
				d.ShareID = &s
			}
			list = append(list, d)
		}
		return list
	}
	claim := func(a *resourcev1.AllocationResult, shares ...string) *resourcev1.ResourceClaim {
		return &resourcev1.ResourceClaim{Status: resourcev1.ResourceClaimStatus{Allocation: a, Devices: told(shares...)}}
	}
	all := allocate(nil, &one, &two)
	for _, c := range []struct {
		name  string
		given *resourcev1.ResourceClaim
		was   *resourcev1.AllocationResult
		want  []resourcev1.AllocatedDeviceStatus
	}{
		{"all are still there", claim(all, "", "1"), all, told("", "1")},
		{"one share is gone", claim(allocate(nil, &two), "", "1", "2"), all, told("", "2")},
		{"all are gone", claim(nil, "", "1"), all, nil},
		{"none ever was", claim(nil, "1"), nil, told("1")},
		{"nothing is told", claim(nil), nil, nil},
	} {
		if dropDeallocated(c.given, claim(c.was)); !reflect.DeepEqual(c.given.Status.Devices, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.given.Status.Devices, c.want)
		}
	}
}
