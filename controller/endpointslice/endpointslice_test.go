package endpointslice_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/endpointslice"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "svc", Labels: map[string]string{"team": "a"}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}}}
	if change != nil {
		change(s)
	}
	return s
}

func pod(i int, change func(*corev1.Pod)) *corev1.Pod {
	name := fmt.Sprintf("p%03d", i)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{
			{IP: fmt.Sprintf("10.0.%d.%d", i/200, i%200+1)}, {IP: fmt.Sprintf("fd00::%x", i+1)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	if change != nil {
		change(p)
	}
	return p
}

func pods(from, to int) []runtime.Object {
	var out []runtime.Object
	for i := from; i < to; i++ {
		out = append(out, pod(i, nil))
	}
	return out
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, append(objs, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1",
		Labels: map[string]string{corev1.LabelTopologyZone: "z1"}}})...)
	return w.Build(endpointslice.New(w.Env))
}

func stored(w *enginetest.World) []discoveryv1.EndpointSlice {
	l, err := w.Client.DiscoveryV1().EndpointSlices("ns").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	return l.Items
}

// sizes lists family:count of each slice, sorted.
func sizes(w *enginetest.World) string {
	var out []string
	for _, s := range stored(w) {
		out = append(out, fmt.Sprintf("%s:%d", s.AddressType, len(s.Endpoints)))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, got, want)
	}
}

func TestOneSlice(t *testing.T) {
	w := world(t, service(nil), pod(0, nil)).Settle()
	s := stored(w)[0]
	expect(t, "labels", fmt.Sprint(s.Labels), "map[endpointslice.kubernetes.io/managed-by:endpointslice-controller.k8s.io kubernetes.io/service-name:web team:a]")
	if !strings.HasPrefix(s.Name, "web-") || !metav1.IsControlledBy(&s, service(nil)) {
		t.Errorf("name %s owners %v", s.Name, s.OwnerReferences)
	}
	e := s.Endpoints[0]
	expect(t, "endpoint", fmt.Sprintln(e.Addresses, *e.NodeName, *e.Zone, e.TargetRef.Name, *s.Ports[0].Name, *s.Ports[0].Port), "[10.0.0.1] n1 z1 p000 http 8080\n")
}

func TestConditions(t *testing.T) {
	going := func(p *corev1.Pod) {
		p.DeletionTimestamp = new(metav1.NewTime(enginetest.Epoch))
		p.Finalizers = []string{"x/y"}
	}
	unready := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	for name, c := range map[string]struct {
		publish bool
		change  func(*corev1.Pod)
		want    string // ready, serving, terminating
	}{
		"ready":                 {false, nil, "true true false"},
		"not ready":             {false, unready, "false false false"},
		"terminating":           {false, going, "false true true"},
		"terminating published": {true, going, "true true true"},
		"not ready published":   {true, unready, "true false false"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t, service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = c.publish }), pod(0, c.change)).Settle()
			k := stored(w)[0].Endpoints[0].Conditions
			expect(t, "conditions", fmt.Sprint(*k.Ready, *k.Serving, *k.Terminating), c.want)
		})
	}
}

func TestHundredPerSlice(t *testing.T) {
	w := world(t, append(pods(0, 250), service(nil))...).Settle()
	expect(t, "slices", sizes(w), "IPv4:100 IPv4:100 IPv4:50")
	// one more goes where there is room, with one write
	w.Writes()
	w.Put(pod(250, nil))
	w.Settle()
	expect(t, "slices", sizes(w), "IPv4:100 IPv4:100 IPv4:51")
	if n := len(w.Writes()); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
	for i := range 150 {
		w.Remove(pod(i, nil))
	}
	w.Settle()
	total := 0
	for _, s := range stored(w) {
		total += len(s.Endpoints)
	}
	if total != 101 {
		t.Errorf("%d endpoints left in %s, want 101", total, sizes(w))
	}
}

func TestPlaceholderAndDualStack(t *testing.T) {
	w := world(t, service(func(s *corev1.Service) {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	})).Settle()
	expect(t, "no pods", sizes(w), "IPv4:0 IPv6:0")
	w.Put(pod(0, nil))
	w.Settle()
	expect(t, "one pod", sizes(w), "IPv4:1 IPv6:1")
	w.Remove(pod(0, nil))
	w.Settle()
	expect(t, "gone again", sizes(w), "IPv4:0 IPv6:0")
}

// The cache does not show the slices just made: no second set is made.
func TestStaleCache(t *testing.T) {
	w := world(t, append(pods(0, 3), service(nil))...).Observe()
	for range 3 {
		if err := w.Reconcile("ns/web"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "slices", sizes(w), "IPv4:3")
	w.Settle()
	expect(t, "slices", sizes(w), "IPv4:3")
}

func TestForeignSlicesStay(t *testing.T) {
	mine := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "mine",
		Labels: map[string]string{discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "me"}}, AddressType: "IPv4"}
	w := world(t, service(nil), mine).Settle()
	for _, l := range w.Writes() {
		if strings.Contains(l, "mine") {
			t.Errorf("touched: %s", l)
		}
	}
}

func TestHeadlessHostnames(t *testing.T) {
	w := world(t, service(func(s *corev1.Service) { s.Spec.ClusterIP = "None" }),
		pod(0, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "db-0", "web" })).Settle()
	s := stored(w)[0]
	if _, ok := s.Labels["service.kubernetes.io/headless"]; !ok || s.Endpoints[0].Hostname == nil || *s.Endpoints[0].Hostname != "db-0" {
		t.Errorf("labels %v, hostname %v", s.Labels, s.Endpoints[0].Hostname)
	}
}
