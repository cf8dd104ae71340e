package endpoints_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/controller/endpoints"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "svc",
		Labels: map[string]string{"team": "a"}, CreationTimestamp: metav1.NewTime(enginetest.Epoch)},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("www")}}}}
	if change != nil {
		change(s)
	}
	return s
}

func pod(name, ip string, ready bool, change func(*corev1.Pod)) *corev1.Pod {
	st := corev1.ConditionFalse
	if ready {
		st = corev1.ConditionTrue
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c",
			Ports: []corev1.ContainerPort{{Name: "www", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: st, LastTransitionTime: metav1.NewTime(enginetest.Epoch.Add(-60e9))}}}}
	if change != nil {
		change(p)
	}
	return p
}

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(endpoints.New(w.Env))
}

func show(w *enginetest.World) string {
	e, err := w.Client.CoreV1().Endpoints("ns").Get(w.T.Context(), "web", metav1.GetOptions{})
	if err != nil {
		return "none"
	}
	var out []string
	for _, s := range e.Subsets {
		line := "ready"
		for _, a := range s.Addresses {
			line += " " + a.IP + a.Hostname
		}
		line += " not"
		for _, a := range s.NotReadyAddresses {
			line += " " + a.IP
		}
		for _, p := range s.Ports {
			line += fmt.Sprintf(" %s:%d", p.Name, p.Port)
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestEndpoints(t *testing.T) {
	going := func(p *corev1.Pod) {
		p.DeletionTimestamp = new(metav1.NewTime(enginetest.Epoch))
		p.Finalizers = []string{"x/y"}
	}
	publish := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	headless := func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = "None", nil }
	two := func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "plain", Port: 81, Protocol: "TCP", TargetPort: intstr.FromInt32(9)})
	}
	for name, c := range map[string]struct {
		svc  *corev1.Service
		pods []runtime.Object
		want string
	}{
		"no pods":         {service(nil), nil, ""},
		"ready and not":   {service(nil), []runtime.Object{pod("a", "10.0.0.1", true, nil), pod("b", "10.0.0.2", false, nil)}, "ready 10.0.0.1 not 10.0.0.2 http:8080"},
		"terminating out": {service(nil), []runtime.Object{pod("a", "10.0.0.1", true, going)}, ""},
		"terminating published": {service(publish), []runtime.Object{pod("a", "10.0.0.1", false, going)},
			"ready 10.0.0.1 not http:8080"},
		"finished out": {service(nil), []runtime.Object{pod("a", "10.0.0.1", true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, ""},
		"headless without ports": {service(headless), []runtime.Object{pod("a", "10.0.0.1", true, func(p *corev1.Pod) {
			p.Spec.Hostname, p.Spec.Subdomain = "-h", "web"
		})}, "ready 10.0.0.1-h not"},
		"ports of the same pods share a subset": {service(two), []runtime.Object{pod("a", "10.0.0.1", true, nil)}, "ready 10.0.0.1 not http:8080 plain:9"},
		"named port missing in one": {service(two), []runtime.Object{pod("a", "10.0.0.1", true, nil),
			pod("b", "10.0.0.2", true, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil })},
			"ready 10.0.0.1 not http:8080; ready 10.0.0.1 10.0.0.2 not plain:9"},
		"no selector": {service(func(s *corev1.Service) { s.Spec.Selector = nil }), []runtime.Object{pod("a", "10.0.0.1", true, nil)}, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t, append(c.pods, c.svc)...).Settle()
			got := strings.Split(show(w), "; ")
			want := strings.Split(c.want, "; ")
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			w.Writes()
			_ = w.Reconcile("ns/web")
			if again := w.Writes(); len(again) > 0 {
				t.Errorf("second look writes %v", again)
			}
		})
	}
}

func TestLabelsAndTriggerTime(t *testing.T) {
	w := world(t, service(nil), pod("a", "10.0.0.1", true, nil)).Settle()
	e, _ := w.Client.CoreV1().Endpoints("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if got := fmt.Sprint(e.Labels); got != "map[endpoints.kubernetes.io/managed-by:endpoint-controller team:a]" {
		t.Errorf("labels %s", got)
	}
	if got := e.Annotations["endpoints.kubernetes.io/last-change-trigger-time"]; got != "2026-11-23T11:59:00Z" {
		t.Errorf("trigger time %s", got)
	}
}

func TestServiceGone(t *testing.T) {
	w := world(t, service(nil)).Settle()
	w.Remove(service(nil))
	w.Settle()
	if got := show(w); got != "none" {
		t.Errorf("endpoints still there: %s", got)
	}
}

func TestAtMostThousandAddresses(t *testing.T) {
	objs := []runtime.Object{service(nil)}
	for i := range 1001 {
		objs = append(objs, pod(fmt.Sprintf("p%d", i), fmt.Sprintf("10.1.%d.%d", i/200, i%200+1), true, nil))
	}
	w := world(t, objs...).Settle()
	e, _ := w.Client.CoreV1().Endpoints("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if n := len(e.Subsets[0].Addresses); n != 1000 || e.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("%d addresses, annotations %v", n, e.Annotations)
	}
}
