package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
)

// hook is a plugin made of a function.
type hook struct {
	admit    func(r *admission.Request) error
	validate func(r *admission.Request) error
}

func (hook) Name() string { return "Hook" }

func (h hook) Admit(_ context.Context, r *admission.Request) error {
	if h.admit == nil {
		return nil
	}
	return h.admit(r)
}

func (h hook) Validate(_ context.Context, r *admission.Request) error {
	if h.validate == nil {
		return nil
	}
	return h.validate(r)
}

// A plugin sees an object in every version it is served in, and may change it in any.
func TestFormsOfARequest(t *testing.T) {
	rounds := 0
	s := newServer(t, func(c *apiserver.Config) {
		c.Admission = []admission.Plugin{hook{admit: func(r *admission.Request) error {
			if r.Resource != "horizontalpodautoscalers" || r.Object == nil {
				return nil
			}
			rounds++
			r.Reinvoke() // only one more round, however often it is asked for
			if r.Again() {
				return nil
			}
			other := r.Equivalents()[0]
			if got, want := fmt.Sprint(r.Own().Kind, other.Kind), "autoscaling/v2, Kind=HorizontalPodAutoscaler autoscaling/v1, Kind=HorizontalPodAutoscaler"; got != want {
				t.Errorf("forms are %s, want %s", got, want)
			}
			shown, err := other.Show(r.Object)
			if err != nil {
				return err
			}
			v1 := shown.(*autoscalingv1.HorizontalPodAutoscaler)
			v1.Spec.MaxReplicas, v1.Spec.TargetCPUUtilizationPercentage = 7, ptr.To[int32](42)
			back, err := other.Store(v1)
			if err != nil {
				return err
			}
			r.Replace(back)
			return nil
		}}}
	})
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MaxReplicas: 2, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "x", APIVersion: "apps/v1"}},
	}
	got, err := typed(t, s).AutoscalingV2().HorizontalPodAutoscalers("default").Create(t.Context(), hpa, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m := got.Spec.Metrics; got.Spec.MaxReplicas != 7 || len(m) != 1 || *m[0].Resource.Target.AverageUtilization != 42 {
		t.Errorf("the change did not reach the object: %+v", got.Spec)
	}
	if rounds != 2 {
		t.Errorf("%d rounds of admission, want 2", rounds)
	}
}

// What a connect asks for is seen as its options.
func TestAdmissionOfConnect(t *testing.T) {
	var seen []string
	s := newServer(t, func(c *apiserver.Config) {
		c.Admission = []admission.Plugin{hook{validate: func(r *admission.Request) error {
			if r.Operation() == admission.Connect {
				options, err := json.Marshal(r.Options)
				seen = append(seen, fmt.Sprintf("%s/%s %s %s", r.Resource, r.Subresource, r.Name, options))
				return err
			}
			return nil
		}}}
	})
	c := newRaw(s)
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	if code, body := c.do(t, "POST", "/api/v1/namespaces/default/pods", "application/json", []byte(pod)); code != 201 {
		t.Fatalf("%d %s", code, body)
	}
	for path, want := range map[string]string{
		"pods/p/exec?command=a&command=b&container=c&tty=1": `pods/exec p {"kind":"PodExecOptions","apiVersion":"v1","tty":true,"container":"c","command":["a","b"]}`,
		"pods/p/attach?stdin=true":                          `pods/attach p {"kind":"PodAttachOptions","apiVersion":"v1","stdin":true}`,
		"pods/p/portforward?ports=80,81":                    `pods/portforward p {"kind":"PodPortForwardOptions","apiVersion":"v1","ports":[80,81]}`,
		"pods/p/proxy/x/y":                                  `pods/proxy p {"kind":"PodProxyOptions","apiVersion":"v1","path":"/x/y"}`,
		"services/p:80/proxy/":                              `services/proxy p:80 {"kind":"ServiceProxyOptions","apiVersion":"v1","path":"/"}`,
	} {
		seen = nil
		_, body := c.do(t, "POST", "/api/v1/namespaces/default/"+path, "", nil)
		if len(seen) != 1 || seen[0] != want {
			t.Errorf("%s was admitted as %q, want %q (%s)", path, seen, want, body)
		}
	}
}
