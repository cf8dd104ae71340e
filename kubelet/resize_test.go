package kubelet

import (
	"context"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func asks(cpu string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)},
			Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}
	}
}

// resize changes the spec as the API's subresource does.
func (r *rig) resize(name, cpu string) {
	r.t.Helper()
	p := r.get(name)
	asks(cpu)(p)
	p.Generation++
	if _, err := r.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func condition(p *v1.Pod, t v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func (r *rig) told(reason string) {
	r.t.Helper()
	r.eventually("event "+reason, func() bool { return strings.Contains(strings.Join(r.events(), "\n"), " "+reason+" ") })
}

// settled is what a client waits for before it takes a resize for done.
func settled(p *v1.Pod) bool {
	return p.Status.ObservedGeneration == p.Generation && condition(p, v1.PodResizePending) == nil && condition(p, v1.PodResizeInProgress) == nil
}

func TestResizeWaitsForRoomAndSurvivesARestart(t *testing.T) {
	r := newRig(t)
	n, err := r.client.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	half := n.Status.Allocatable.Cpu().MilliValue() / 2
	milli := func(m int64) string { return resource.NewMilliQuantity(m, resource.DecimalSI).String() }
	r.create(pod("other", asks(milli(half))))
	r.create(pod("p", asks("100m")))
	r.phase("other", v1.PodRunning)
	r.phase("p", v1.PodRunning)

	r.resize("p", milli(half+10))
	deferred := func() bool {
		c := condition(r.get("p"), v1.PodResizePending)
		return c != nil && c.Reason == v1.PodReasonDeferred && c.ObservedGeneration == 2 && strings.HasPrefix(c.Message, "Node didn't have enough resource: cpu")
	}
	r.eventually("the resize is deferred", deferred)
	if got := r.get("p").Status.ContainerStatuses[0].AllocatedResources.Cpu().String(); got != "100m" {
		t.Errorf("allocated while deferred: %s", got)
	}
	r.told("ResizeDeferred")

	r.stop()
	r.start(nil)
	r.eventually("the restarted kubelet still defers it", deferred)
	if calls := strings.Join(r.rt.Calls(), "\n"); strings.Contains(calls, "resize") {
		t.Errorf("the restart applied it:\n%s", calls)
	}

	r.delete("other", 0)
	r.eventually("the resize is done", func() bool { return settled(r.get("p")) })
	if got, want := r.get("p").Status.ContainerStatuses[0].AllocatedResources.Cpu().MilliValue(), half+10; got != want {
		t.Errorf("allocated: %dm, want %dm", got, want)
	}
	if calls := strings.Join(r.rt.Calls(), "\n"); !strings.Contains(calls, "resize main") {
		t.Errorf("settled, but the runtime was never told:\n%s", calls)
	}
	r.told("ResizeCompleted")
}

func TestResizeWhileTheKubeletIsDownIsApplied(t *testing.T) {
	r := newRig(t)
	r.create(pod("p", asks("100m")))
	r.phase("p", v1.PodRunning)
	r.stop()
	r.resize("p", "200m")
	r.start(nil)
	r.eventually("the resize is done", func() bool { return settled(r.get("p")) })
	if calls := strings.Join(r.rt.Calls(), "\n"); !strings.Contains(calls, "resize main cpu 20000") {
		t.Errorf("settled, but the runtime was never told:\n%s", calls)
	}
}
