package node

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func input() Input {
	return Input{Name: "n", IPs: []string{"192.0.2.1"}, MaxPods: 110, Port: 10250, Version: "v1.37.2", Runtime: "x://1", Now: time.Unix(1000, 0),
		Facts: Facts{CPUs: 2, MemoryBytes: 1 << 30, MemoryFree: 1 << 29, DiskBytes: 1000, DiskFree: 500, InodesTotal: 100, InodesFree: 50, OS: "linux", Arch: "amd64"}}
}

func TestForeignResourcesAreKept(t *testing.T) {
	s := Status(input(), v1.NodeStatus{Capacity: v1.ResourceList{"example.com/gpu": resource.MustParse("4")}})
	for _, l := range []v1.ResourceList{s.Capacity, s.Allocatable} {
		if q := l["example.com/gpu"]; q.Value() != 4 {
			t.Errorf("extended resource: %v", l)
		}
	}
	if got := s.Allocatable.Memory().Value(); got != 1<<30-100<<20 {
		t.Errorf("allocatable memory %d", got)
	}
	if got := s.Allocatable.StorageEphemeral().Value(); got != 900 {
		t.Errorf("allocatable storage %d", got)
	}
}

func TestConditions(t *testing.T) {
	in := input()
	first := Status(in, v1.NodeStatus{})
	in.Now = in.Now.Add(time.Minute)
	if again := Status(in, first); !Same(first, again) || again.Conditions[3].LastTransitionTime != first.Conditions[3].LastTransitionTime {
		t.Error("time alone changed the status")
	}
	in.Facts.MemoryFree, in.Facts.DiskFree = 1, 1
	in.Problems = []string{"a", "b"}
	bad := Status(in, first)
	want := map[v1.NodeConditionType]string{v1.NodeMemoryPressure: "True KubeletHasInsufficientMemory kubelet has insufficient memory available",
		v1.NodeDiskPressure: "True KubeletHasDiskPressure kubelet has disk pressure",
		v1.NodePIDPressure:  "False KubeletHasSufficientPID kubelet has sufficient PID available", v1.NodeReady: "False KubeletNotReady [a, b]"}
	for _, c := range bad.Conditions {
		if got := string(c.Status) + " " + c.Reason + " " + c.Message; got != want[c.Type] {
			t.Errorf("%s: %s, want %s", c.Type, got, want[c.Type])
		}
	}
	events := Events(first, bad)
	if len(events) != 3 || events[0] != "NodeHasInsufficientMemory" || events[2] != "NodeNotReady" {
		t.Errorf("events %v", events)
	}
}

func TestFactsOfThisMachine(t *testing.T) {
	f, err := Read(t.TempDir())
	if err != nil || f.CPUs < 1 || f.MemoryBytes < 1<<20 || f.DiskBytes == 0 || f.Kernel == "" || f.BootID == "" || f.PIDMax == 0 {
		t.Errorf("%+v %v", f, err)
	}
}
