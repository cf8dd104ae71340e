package quantities_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/object/quantities"
)

var digits = strings.Repeat("9", 2000)

func TestBodies(t *testing.T) {
	pod, quota, configMap := reflect.TypeFor[*corev1.Pod](), reflect.TypeFor[*corev1.ResourceQuota](), reflect.TypeFor[*corev1.ConfigMap]()
	var c quantities.Checker
	for _, tt := range []struct {
		how  func(reflect.Type, []byte) error
		t    reflect.Type
		body string
		want string // of the error; "": there is none
	}{
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1e9999999"}}}`, "spec.hard.cpu: a quantity with the exponent 9999999: it may be from -9999 to 9999"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":1e9999999}}}`, "spec.hard.cpu"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1E-9999999"}}}`, "exponent -9999999"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":".5e99999999999999999999999"}}}`, "spec.hard.cpu"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1\u0065999\u00399999"}}}`, "spec.hard.cpu"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1e9999999","cpu":"1"}}}`, "spec.hard.cpu"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"` + digits + `"}}}`, "spec.hard.cpu: a quantity of 2000 characters: there may be 1000"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":` + digits + `}}}`, "spec.hard.cpu"},
		{c.JSON, pod, `{"spec":{"containers":[{},{"resources":{"limits":{"memory":"1e99999"}}}]}}`, "spec.containers.1.resources.limits.memory"},
		{c.JSON, pod, `{"spec":{"volumes":[{"emptyDir":{"sizeLimit":"1e99999"}}]}}`, "spec.volumes.0.emptyDir.sizeLimit"},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1e3","memory":"12345678901234567890123","pods":"1e00000000001","e":"1E","f":"10Ei"}}}`, ""},
		{c.JSON, pod, `{"metadata":{"labels":{"commit":"3e1234567"},"annotations":{"pi":"` + digits + `","cpu":"1e9999999"}}}`, ""},
		{c.JSON, configMap, `{"data":{"cpu":"1e9999999"}}`, ""},
		{c.JSON, quota, `{"spec":{"hard":{"cpu":"1e9999999"`, "spec.hard.cpu"},
		{c.JSON, quota, `]1e9999999`, ""},
		{c.JSON, quota, strings.Repeat("[", 1_000_000) + "1e9999999", ""},
		{c.YAML, quota, "spec: {hard: {cpu: 1e9999999x, memory: '1e9999999'}}", "spec.hard.memory"},
		{c.YAML, quota, "spec:\n  hard:\n    cpu: \"1\\x659999999\"\n", "spec.hard.cpu"},
		{c.YAML, quota, "spec: {hard: {cpu: 1e3}}", ""},
		{c.Patch, pod, `[{"op":"add","path":"/spec/containers/0/resources/requests/cpu","value":"1e9999999"}]`, "exponent 9999999"},
		{c.Patch, pod, `[{"op":"add","path":"/spec/containers/-","value":{"resources":{"requests":{"cpu":"1e9999999"}}}}]`, "resources.requests.cpu"},
		{c.Patch, quota, `[{"op":"replace","path":"","value":{"spec":{"hard":{"cpu":"1e9999999"}}},"VALUE":1}]`, "spec.hard.cpu"},
		{c.Patch, quota, `[{"op":"add","path":"/spec/hard/requests.nvidia.com~1gpu","value":"1e9999999"}]`, "exponent"},
		{c.Patch, pod, `[{"op":"add","path":"/metadata/labels/commit","value":"3e1234567"}]`, ""},
	} {
		began := time.Now()
		err := tt.how(tt.t, []byte(tt.body))
		if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%.100s: %v, want %q (%v)", tt.body, err, tt.want, time.Since(began))
		}
	}
}

func TestProtobuf(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"commit": "3e1234567"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("1e99")}}}}},
	}
	raw, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var c quantities.Checker
	if err := c.Protobuf(reflect.TypeOf(pod), raw); err != nil {
		t.Error(err)
	}
	const text, evil = "123456789", "1e9999999" // as long
	pod.Spec.Containers[0].Resources.Limits["cpu"] = resource.MustParse(text)
	if raw, err = pod.Marshal(); err != nil {
		t.Fatal(err)
	}
	raw = []byte(strings.Replace(string(raw), text, evil, 1))
	if err := c.Protobuf(reflect.TypeOf(pod), raw); err == nil || !strings.Contains(err.Error(), "spec.containers.0.resources.limits.cpu") {
		t.Error(err)
	}
}

// A body in which nothing looks like it is looked at, and no more.
func BenchmarkJSON(b *testing.B) {
	var c quantities.Checker
	body := []byte(`{"metadata":{"name":"web","labels":{"app":"web","pod-template-hash":"667f56bf75"}},"spec":{"containers":[{"name":"web",` +
		`"image":"registry.example.com/web:v1.2.3","resources":{"limits":{"cpu":"100m","memory":"128Mi"}}}]}}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := c.JSON(reflect.TypeFor[*corev1.Pod](), body); err != nil {
			b.Fatal(err)
		}
	}
}
