package policy_test

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/policy"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store/embedded"
)

// What policies add to a request: none stored, one about something else, one that is about it.
func BenchmarkValidate(b *testing.B) {
	st, err := embedded.Open(embedded.Options{Decorate: wire.Decorate})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	reader, err := registry.NewReader(st, all.Resources(), nil)
	if err != nil {
		b.Fatal(err)
	}
	_, validate := policy.New(policy.Config{Reader: reader})
	r := &admission.Request{
		Attributes: auth.Attributes{ResourceRequest: true, Verb: "create", APIVersion: "v1", Resource: "pods", Name: "p"},
		Kind:       corev1.SchemeGroupVersion.WithKind("Pod"),
		Object:     &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}}},
	}
	run := func(name string) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := validate.Validate(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("none")
	store := func(name, resource string) {
		for _, res := range all.Resources() {
			reg, _ := registry.New(registry.Config{Resource: res, Store: st})
			write := registry.Write{}
			switch res.Name {
			case "validatingadmissionpolicies":
				p := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
				p.Spec.FailurePolicy = ptr.To(admissionv1.Fail)
				p.Spec.Validations = []admissionv1.Validation{{Expression: "object.spec.containers.all(c, c.name != 'evil')"}}
				p.Spec.MatchConstraints = &admissionv1.MatchResources{
					MatchPolicy: ptr.To(admissionv1.Equivalent), NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
					ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
						Operations: []admissionv1.OperationType{"CREATE"},
						Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}},
					}}},
				}
				if _, err := reg.Create(b.Context(), write, p); err != nil {
					b.Fatal(err)
				}
			case "validatingadmissionpolicybindings":
				bind := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}
				bind.Spec.PolicyName, bind.Spec.ValidationActions = name, []admissionv1.ValidationAction{"Deny"}
				if _, err := reg.Create(b.Context(), write, bind); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	store("other", "secrets")
	run("another resource")
	store("mine", "pods")
	run("matching")
}
