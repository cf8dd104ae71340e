package cluster_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/cluster"
)

// policyOn is a policy about one resource with validations of no message.
func policyOn(name, group, resource string, expressions ...string) *admissionv1.ValidatingAdmissionPolicy {
	p := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.MatchConstraints = &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: []string{resource}},
	}}}}
	for _, x := range expressions {
		p.Spec.Validations = append(p.Spec.Validations, admissionv1.Validation{Expression: x})
	}
	return p
}

// The types in a policy's expressions are checked against those of the kinds it is about.
func TestPolicyTypesAreChecked(t *testing.T) {
	c := clientsOf(t, cluster.Start(t, cluster.TestOptions{}))
	c.define(t, "widget")
	api := c.kube.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	check := func(p *admissionv1.ValidatingAdmissionPolicy) string {
		t.Helper()
		if _, err := api.Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		var out []string
		eventually(t, p.Name+" is checked", func() bool {
			got, err := api.Get(t.Context(), p.Name, metav1.GetOptions{})
			if err != nil || got.Status.TypeChecking == nil || got.Status.ObservedGeneration != 1 {
				return false
			}
			for _, w := range got.Status.TypeChecking.ExpressionWarnings {
				out = append(out, w.FieldRef+": "+w.Warning)
			}
			return true
		})
		return strings.Join(out, "|")
	}
	want := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	want(check(policyOn("right", "apps", "deployments", "object.spec.replicas > 1 && object.spec.template.spec.containers.all(c, c.image != '')")), "")
	confused := policyOn("confused", "apps", "deployments", "object.spec.replicas > '1'")
	confused.Spec.Validations[0].MessageExpression = "'wants replicas > 1, got ' + object.spec.replicas"
	want(check(confused), "spec.validations[0].expression: apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"+
		"|spec.validations[0].messageExpression: apps/v1, Kind=Deployment: ERROR: <input>:1:28: found no matching overload for '_+_' applied to '(string, int)'\n | 'wants replicas > 1, got ' + object.spec.replicas\n | ...........................^\n")
	want(check(policyOn("custom", "example.com", "widgets", "object.spec.size > 1", "object.spec.none < 10")),
		"spec.validations[1].expression: example.com/v1, Kind=Kindwidget: ERROR: <input>:1:12: undefined field 'none'\n | object.spec.none < 10\n | ...........^\n")
	variable := policyOn("variable", "", "configmaps", "variables.n > 'x'", "params.nothing == 1 || authorizer.requestResource.check('get').allowed()")
	variable.Spec.Variables = []admissionv1.Variable{{Name: "n", Expression: "object.metadata.generation"}}
	variable.Spec.ParamKind = &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
	if got := check(variable); !strings.Contains(got, "'_>_' applied to '(int, string)'") || !strings.Contains(got, "undefined field 'nothing'") || strings.Contains(got, "requestResource'") {
		t.Error(got)
	}
	want(check(policyOn("unknown", "example.com", "nothings", "object.no == 1")), "")
}

// Whoever writes a policy or a binding with parameters must be allowed to read them.
func TestPolicyParamsNeedPermission(t *testing.T) {
	s := cluster.Start(t, cluster.TestOptions{})
	admin := clientsOf(t, s)
	cfg := rest.CopyConfig(s.Config())
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "writer"}
	writer := kubernetes.NewForConfigOrDie(cfg)
	grant(t, admin.kube, "writer", "policies", "*", admissionv1.GroupName, "*")

	p := policyOn("p", "", "pods", "params.data.x == '1'")
	p.Spec.ParamKind = &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
	policies, bindings := writer.AdmissionregistrationV1().ValidatingAdmissionPolicies(), writer.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	refused := func(err error, want string) {
		t.Helper()
		if !apierrors.IsInvalid(err) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	_, err := policies.Create(t.Context(), p, metav1.CreateOptions{})
	refused(err, `must have "get" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)`)
	if _, err := admin.kube.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}}
	deny := admissionv1.DenyAction
	b.Spec = admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: "p", ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		ParamRef: &admissionv1.ParamRef{Name: "limits", Namespace: corev1.NamespaceDefault, ParameterNotFoundAction: &deny},
	}
	_, err = bindings.Create(t.Context(), b, metav1.CreateOptions{})
	refused(err, `does not have "get" permission on the object referenced by paramRef`)
	grant(t, admin.kube, "writer", "limits", "get", "", "configmaps")
	eventually(t, "the binding is allowed", func() bool {
		_, err := bindings.Create(t.Context(), b, metav1.CreateOptions{})
		return err == nil
	})
	b.Name, b.Spec.ParamRef = "selecting", &admissionv1.ParamRef{Selector: &metav1.LabelSelector{}, ParameterNotFoundAction: &deny}
	_, err = bindings.Create(t.Context(), b, metav1.CreateOptions{})
	refused(err, `does not have "list" permission on the object referenced by paramRef`)
}

// grant lets a user do something everywhere.
func grant(t *testing.T, c kubernetes.Interface, user, name, verb, group, resource string) {
	t.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}}}
	if _, err := c.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: user}},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
