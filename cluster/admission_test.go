package cluster_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-project/skiff/cluster"
)

// A server with every optional plugin and a file that configures all that take
// a configuration: each does its part of a request.
func TestOptionalAdmissionPlugins(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "admission.yaml")
	for name, text := range map[string]string{
		"admission.yaml": `
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: EventRateLimit
  path: events.yaml
- name: PodNodeSelector
  configuration:
    podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: env=prod, picky: env=prod}
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline}
    exemptions: {namespaces: [picky]}
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources: [{resource: pods, matchContains: [requests.cpu]}]
`,
		"events.yaml": `
apiVersion: eventratelimit.admission.k8s.io/v1alpha1
kind: Configuration
limits: [{type: Namespace, qps: 1, burst: 1}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := cluster.Start(t, cluster.TestOptions{APIOnly: true, AdmissionConfig: file,
		EnableAdmission: []string{"EventRateLimit", "AlwaysPullImages", "PodNodeSelector", "DenyServiceExternalIPs"}})
	client := kubernetes.NewForConfigOrDie(c.Config()).CoreV1()
	if _, err := client.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "picky"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := func(ns string, change func(*corev1.PodSpec)) (*corev1.Pod, error) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", ImagePullPolicy: corev1.PullNever}}}}
		change(&p.Spec)
		return client.Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	}
	plain := func(*corev1.PodSpec) {}
	if p, err := pod("default", plain); err != nil || p.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways || p.Spec.NodeSelector["env"] != "prod" {
		t.Errorf("a plain pod: %v, %v", p, err)
	}
	_, host := pod("default", func(s *corev1.PodSpec) { s.HostNetwork = true })
	_, exempt := pod("picky", func(s *corev1.PodSpec) { s.HostNetwork = true })
	_, other := pod("picky", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"zone": "z1"} })
	_, unlimited := pod("default", func(s *corev1.PodSpec) {
		s.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	})
	_, external := client.Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"},
		Spec: corev1.ServiceSpec{ExternalIPs: []string{"192.0.2.1"}, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	for _, r := range []struct {
		name string
		err  error
		want string // "": it is admitted
	}{
		{"the host's network", host, `violates PodSecurity "baseline:latest": host namespaces`},
		{"in an exempt namespace", exempt, ""},
		{"a selector that is not whitelisted", other, "pod node label selector labels conflict with its namespace whitelist"},
		{"a limited resource", unlimited, "insufficient quota to consume: requests.cpu"},
		{"an external IP", external, "Use of external IPs is denied by admission control"},
	} {
		if r.want == "" && r.err != nil || r.want != "" && (!apierrors.IsForbidden(r.err) || !strings.Contains(r.err.Error(), r.want)) {
			t.Errorf("%s: %v, want %q", r.name, r.err, r.want)
		}
	}
	var err error
	for range 1000 { // any two within a second will do
		_, err = client.Events("picky").Create(t.Context(), &corev1.Event{ObjectMeta: metav1.ObjectMeta{GenerateName: "e-"},
			InvolvedObject: corev1.ObjectReference{Namespace: "picky"}}, metav1.CreateOptions{})
		if err != nil {
			break
		}
	}
	if !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), "limit reached on type Namespace for key picky") {
		t.Errorf("events without end: %v", err)
	}
}
