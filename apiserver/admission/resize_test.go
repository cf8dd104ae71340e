package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
)

func TestResizeFitsTheNode(t *testing.T) {
	amounts := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	node := func(name, os string, features ...string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: os}},
			Status: corev1.NodeStatus{Allocatable: amounts("2", "4Gi"), DeclaredFeatures: features}}
	}
	w := newWorld()
	w["nodes"] = []api.Object{node("old", "linux"), node("win", "windows"),
		node("new", "linux", "InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers")}
	on := func(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = name } }
	asks := func(cpu, memory string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = amounts(cpu, memory) }
	}
	whole := func(cpu string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: amounts(cpu, "1Gi")}
		}
	}
	initial := func(cpu string, restart *corev1.ContainerRestartPolicy) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", RestartPolicy: restart, Resources: corev1.ResourceRequirements{Requests: amounts(cpu, "1Gi")}}}
		}
	}
	type change = []func(*corev1.Pod)
	const no = `pods "web" is forbidden: `
	for _, c := range []struct {
		name     string
		from, to change
		want     string
		cause    metav1.CauseType
	}{
		{"all there is", change{on("old"), asks("1", "1Gi")}, change{on("old"), asks("2", "4Gi")}, "", ""},
		{"too much cpu", change{on("old"), asks("1", "1Gi")}, change{on("old"), asks("2001m", "1Gi")},
			no + "node didn't have enough allocatable resources: cpu, requested: 2001, allocatable: 2000", "NodeCapacity"},
		{"too much of both", change{on("old"), asks("1", "1Gi")}, change{on("old"), asks("3", "5Gi")},
			no + "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000; memory, requested: 5368709120, allocatable: 4294967296", "NodeCapacity"},
		{"not bound yet", change{asks("1", "1Gi")}, change{asks("5", "1Gi")}, "", ""},
		{"no such node", change{on("gone"), asks("1", "1Gi")}, change{on("gone"), asks("2", "1Gi")}, no + `node "gone" not found`, ""},
		{"another system", change{on("win"), asks("1", "1Gi")}, change{on("win"), asks("2", "1Gi")},
			no + `pod resize is only supported on linux nodes, node "win" is "windows"`, "UnsupportedPlatform"},
		{"the pod as a whole", change{on("new"), whole("1")}, change{on("new"), whole("2")}, "", ""},
		{"the pod as a whole, too much", change{on("new"), whole("1")}, change{on("new"), whole("3")},
			no + "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000", "NodeCapacity"},
		{"the pod as a whole, on a node that cannot", change{on("old"), whole("1")}, change{on("old"), whole("2")},
			no + `pod update requires features InPlacePodLevelResourcesVerticalScaling which are not available on node "old"`, ""},
		{"an init container", change{on("new"), initial("1", nil)}, change{on("new"), initial("2", nil)}, "", ""},
		{"both, on a node that cannot", change{on("old"), initial("1", nil), whole("1")}, change{on("old"), initial("2", nil), whole("2")},
			no + `pod update requires features InPlacePodLevelResourcesVerticalScaling, InPlacePodVerticalScalingInitContainers which are not available on node "old"`, ""},
		{"a sidecar", change{on("old"), initial("1", ptr.To(corev1.ContainerRestartPolicyAlways))},
			change{on("old"), initial("2", ptr.To(corev1.ContainerRestartPolicyAlways))}, "", ""},
	} {
		old, now := pod(c.from...), pod(c.to...)
		old.Generation, now.Generation = 1, 2
		r := update("pods/resize", now, old)
		err := NewChain(New(Config{Reader: w})).Validate(t.Context(), r)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want || c.cause != "" && !apierrors.HasStatusCause(err, c.cause) {
			t.Errorf("%s:\n got %s (%v)\nwant %s (%s)", c.name, got, err, c.want, c.cause)
		}
		now.Generation = 1
		if got := admit(w, update("pods/resize", now, old)); got != "" {
			t.Errorf("%s, with no change of the spec: %s", c.name, got)
		}
	}
}
