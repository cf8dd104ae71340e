package env

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "EMPTY": ""}
	lookup := func(n string) (string, bool) { v, ok := vars[n]; return v, ok }
	for in, want := range map[string]string{
		"x$(A)y": "x1y", "$(B)": "$(B)", "$$(A)": "$(A)", "$$$(A)": "$1", "$A": "$A", "$": "$", "$(A": "$(A", "$(EMPTY)": "", "$()": "$()", "a$$b": "a$b", "$(A)$(A)": "11",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$x$(")
	f.Fuzz(func(t *testing.T, s string) {
		if got := Expand(s, func(string) (string, bool) { return "", false }); !strings.Contains(s, "$") && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func testPod() (*v1.Pod, *v1.Container) {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"k": "v"}},
		Spec: v1.PodSpec{NodeName: "n", ServiceAccountName: "sa", Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{
			Limits:   v1.ResourceList{v1.ResourceCPU: resource.MustParse("1250m")},
			Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("32Mi")}}}}}}
	return p, &p.Spec.Containers[0]
}

func TestFieldsAndResources(t *testing.T) {
	p, c := testPod()
	node := Node{IPs: []string{"192.0.2.1", "2001:db8::1"}, Allocatable: v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Gi")}}
	for path, want := range map[string]string{
		"metadata.name": "p", "metadata.namespace": "ns", "metadata.uid": "u", "metadata.labels": "a=\"1\"\nb=\"2\"", "metadata.labels['a']": "1",
		"metadata.annotations['k']": "v", "metadata.annotations['none']": "", "spec.nodeName": "n", "spec.serviceAccountName": "sa",
		"status.hostIP": "192.0.2.1", "status.hostIPs": "192.0.2.1,2001:db8::1", "status.podIP": "10.0.0.1", "status.podIPs": "10.0.0.1,fd00::1",
	} {
		if got, err := Field(p, path, []string{"10.0.0.1", "fd00::1"}, node); err != nil || got != want {
			t.Errorf("%s = %q %v, want %q", path, got, err, want)
		}
	}
	if _, err := Field(p, "spec.nope", nil, node); err == nil || err.Error() != "unsupported fieldPath: spec.nope" {
		t.Errorf("%v", err)
	}
	for _, r := range []struct{ res, div, want string }{
		{"limits.cpu", "", "2"}, {"limits.cpu", "1m", "1250"}, {"requests.memory", "1Mi", "32"}, {"requests.cpu", "", "0"}, {"limits.memory", "1Mi", "1024"},
	} {
		ref := &v1.ResourceFieldSelector{Resource: r.res}
		if r.div != "" {
			ref.Divisor = resource.MustParse(r.div)
		}
		if got, err := Resource(p, c, ref, node); err != nil || got != r.want {
			t.Errorf("%s / %s = %q %v, want %q", r.res, r.div, got, err, r.want)
		}
	}
}

func TestMake(t *testing.T) {
	p, c := testPod()
	yes := true
	c.EnvFrom = []v1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}},
		{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}, Optional: &yes}}}
	c.Env = []v1.EnvVar{{Name: "X", Value: "$(P_k)-$(DB_SERVICE_HOST)-$(LATER)"}, {Name: "LATER", Value: "z"}, {Name: "P_o", Value: "mine"},
		{Name: "NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		{Name: "SKIP", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, Key: "zz", Optional: &yes}}}}
	src := Sources{
		ConfigMap: func(string, string) (*v1.ConfigMap, error) {
			return &v1.ConfigMap{Data: map[string]string{"k": "v", "o": "overridden"}}, nil
		},
		Secret: func(_, n string) (*v1.Secret, error) {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secret"}, n)
		},
		Services: []*v1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns"}, Spec: v1.ServiceSpec{ClusterIP: "10.96.0.5",
			Ports: []v1.ServicePort{{Name: "sql", Port: 5432, Protocol: v1.ProtocolTCP}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "headless", Namespace: "ns"}, Spec: v1.ServiceSpec{ClusterIP: "None", Ports: []v1.ServicePort{{Port: 1}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "elsewhere"}, Spec: v1.ServiceSpec{ClusterIP: "10.96.0.6", Ports: []v1.ServicePort{{Port: 1}}}}},
	}
	vars, err := Make(p, c, src)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range vars {
		got = append(got, v.Name+"="+v.Value)
	}
	want := "DB_PORT=tcp://10.96.0.5:5432 DB_PORT_5432_TCP=tcp://10.96.0.5:5432 DB_PORT_5432_TCP_ADDR=10.96.0.5 DB_PORT_5432_TCP_PORT=5432 DB_PORT_5432_TCP_PROTO=tcp " +
		"DB_SERVICE_HOST=10.96.0.5 DB_SERVICE_PORT=5432 DB_SERVICE_PORT_SQL=5432 LATER=z NAME=p P_k=v P_o=mine X=v-10.96.0.5-$(LATER)"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}
