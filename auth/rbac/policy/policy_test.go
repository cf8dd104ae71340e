package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac"
)

// The sum was taken when every object was equal to upstream v1.37.2's own test
// fixtures. A change of bootstrap.txt must be checked against those again.
func TestBootstrapIsUpstreams(t *testing.T) {
	p := Bootstrap()
	if a, b, c, d := len(p.ClusterRoles), len(p.ClusterRoleBindings), len(p.Roles), len(p.RoleBindings); a != 73 || b != 54 || c != 7 || d != 7 {
		t.Errorf("%d cluster roles, %d cluster role bindings, %d roles, %d role bindings", a, b, c, d)
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if got, want := hex.EncodeToString(sum[:8]), "ebe820b735a7c2e0"; got != want {
		t.Errorf("policy has changed: sum %s, want %s", got, want)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"  get core:pods":             "line 1: a rule outside a role",
		"clusterrole":                 `line 1: no name in ["clusterrole"]`,
		"thing x":                     `line 1: unknown object "thing"`,
		"role a/b\n  get":             `line 2: not a rule: ["get"]`,
		"role a/b\n  get pods":        `line 2: no group in "pods"`,
		"rolebinding a/b":             "line 1: a binding to nothing",
		"rolebinding a/b Role:r it:x": `line 1: unknown subject "it:x"`,
	} {
		if _, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAggregate(t *testing.T) {
	p := Bootstrap()
	get := func(name string) *rbacv1.ClusterRole {
		for _, r := range p.ClusterRoles {
			if r.Name == name {
				return r
			}
		}
		t.Fatalf("no %s", name)
		return nil
	}
	// view feeds edit feeds admin: three rounds settle all.
	for range 3 {
		for _, name := range []string{"admin", "edit", "view"} {
			rules, err := Aggregate(get(name), p.ClusterRoles)
			if err != nil {
				t.Fatal(err)
			}
			get(name).Rules = rules
		}
	}
	for _, c := range []struct {
		role, verb, resource string
		want                 bool
	}{
		{"view", "get", "pods", true}, {"view", "get", "secrets", false}, {"view", "create", "pods", false},
		{"edit", "create", "pods", true}, {"edit", "get", "secrets", true},
		{"admin", "get", "configmaps", true}, {"admin", "create", "pods", true},
	} {
		got := rbac.RulesAllow(get(c.role).Rules, auth.Attributes{Verb: c.verb, Resource: c.resource, ResourceRequest: true})
		if got != c.want {
			t.Errorf("%s may %s %s: %v", c.role, c.verb, c.resource, got)
		}
	}
}

func TestReconcile(t *testing.T) {
	want := Bootstrap().ClusterRoles[0]
	if _, changed := ReconcileClusterRole(want, want); changed {
		t.Error("an equal role changed")
	}
	have := want.DeepCopy()
	have.Labels = map[string]string{"mine": "1"}
	have.AggregationRule = nil
	have.Rules = []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
	out, changed := ReconcileClusterRole(have, want)
	if !changed || out.Labels["mine"] != "1" || out.Labels["kubernetes.io/bootstrapping"] == "" || len(out.Rules) != 1 || out.AggregationRule == nil {
		t.Errorf("%v %+v", changed, out)
	}
	have.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
	if _, changed := ReconcileClusterRole(have, want); changed {
		t.Error("a protected role changed")
	}

	b := Bootstrap().ClusterRoleBindings[0]
	other := b.DeepCopy()
	other.RoleRef.Name = "other"
	if _, _, recreate := ReconcileClusterRoleBinding(other, b); !recreate {
		t.Error("a binding to another role must be made anew")
	}
	fewer := b.DeepCopy()
	fewer.Subjects = []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "me"}}
	gotB, changed, recreate := ReconcileClusterRoleBinding(fewer, b)
	if !changed || recreate || len(gotB.Subjects) != 2 {
		t.Errorf("%v %v %+v", changed, recreate, gotB.Subjects)
	}
	r := Bootstrap().Roles[0]
	less := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name}}
	gotR, changed := ReconcileRole(less, r)
	if !changed || len(rbac.Uncovered(gotR.Rules, r.Rules)) != 0 {
		t.Errorf("%v %+v", changed, gotR.Rules)
	}
	rb := Bootstrap().RoleBindings[0]
	if _, changed, recreate := ReconcileRoleBinding(rb, rb); changed || recreate {
		t.Error("an equal role binding changed")
	}
}
