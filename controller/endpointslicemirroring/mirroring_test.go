package endpointslicemirroring_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/controller/endpointslicemirroring"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func service(sel map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "svc"}, Spec: corev1.ServiceSpec{Selector: sel}}
}

func endpoints(change func(*corev1.Endpoints), ips ...string) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "e"},
		Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Name: "sql", Port: 5432, Protocol: "TCP"}}}}}
	for _, ip := range ips {
		e.Subsets[0].Addresses = append(e.Subsets[0].Addresses, corev1.EndpointAddress{IP: ip})
	}
	if change != nil {
		change(e)
	}
	return e
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(endpointslicemirroring.New(w.Env)).Settle()
}

func show(w *enginetest.World) string {
	l, _ := w.Client.DiscoveryV1().EndpointSlices("ns").List(w.T.Context(), metav1.ListOptions{})
	var out []string
	for _, s := range l.Items {
		line := fmt.Sprint(s.AddressType, ":", *s.Ports[0].Port)
		for _, e := range s.Endpoints {
			line += " " + e.Addresses[0]
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestMirrors(t *testing.T) {
	w := world(t, service(nil), endpoints(nil, "192.0.2.1", "2001:db8::1"))
	expect(t, "slices", show(w), "IPv4:5432 192.0.2.1; IPv6:5432 2001:db8::1")
	w.Writes()
	w.Put(endpoints(nil, "192.0.2.2", "2001:db8::1"))
	w.Settle()
	expect(t, "after a change", show(w), "IPv4:5432 192.0.2.2; IPv6:5432 2001:db8::1")
	if n := len(w.Writes()); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
	w.Remove(endpoints(nil))
	w.Settle()
	expect(t, "endpoints gone", show(w), "")
}

func TestNotMirrored(t *testing.T) {
	for name, objs := range map[string][]runtime.Object{
		"selector":   {service(map[string]string{"a": "b"}), endpoints(nil, "192.0.2.1")},
		"no service": {endpoints(nil, "192.0.2.1")},
		"skipped": {service(nil), endpoints(func(e *corev1.Endpoints) {
			e.Labels = map[string]string{"endpointslice.kubernetes.io/skip-mirror": "true"}
		}, "192.0.2.1")},
		"leader election": {service(nil), endpoints(func(e *corev1.Endpoints) {
			e.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": "x"}
		}, "192.0.2.1")},
	} {
		expect(t, name, show(world(t, objs...)), "")
	}
}
