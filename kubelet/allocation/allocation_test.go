package allocation

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestAContainerWithoutLimitHasThePods(t *testing.T) {
	cpu := func(request, limit string) v1.ResourceRequirements {
		return v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(request)},
			Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse(limit)}}
	}
	for _, c := range []struct {
		what             string
		own, was, now    v1.ResourceRequirements
		differ, podStays bool
	}{
		{what: "the pod's limit, inherited", own: cpu("10m", "0"), was: cpu("20m", "30m"), now: cpu("20m", "40m"), differ: true},
		{what: "the pod's limit, not inherited", own: cpu("10m", "15m"), was: cpu("20m", "30m"), now: cpu("20m", "40m")},
		{what: "the pod's request, which nobody inherits", own: cpu("10m", "0"), was: cpu("20m", "30m"), now: cpu("25m", "30m")},
		{what: "nothing", own: cpu("10m", "0"), was: cpu("20m", "30m"), now: cpu("0.02", "0.03"), podStays: true},
	} {
		a := Set{Pod: &c.was, Containers: map[string]v1.ResourceRequirements{"c": c.own}}
		b := Set{Pod: &c.now, Containers: map[string]v1.ResourceRequirements{"c": c.own}}
		if got := Differ(a, b, "c", v1.ResourceCPU); got != c.differ || Differ(b, a, "c", v1.ResourceCPU) != c.differ {
			t.Errorf("%s: cpu differs %v, want %v", c.what, got, c.differ)
		}
		if Differ(a, b, "c", v1.ResourceMemory) || Same(a, b, "c") == c.differ || SamePod(a, b) != c.podStays {
			t.Errorf("%s: memory, Same or SamePod", c.what)
		}
	}
}
