package rbac

import (
	"context"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/auth"
)

// fake is a Source held in memory.
type fake struct {
	roles           []*rbacv1.Role
	clusterRoles    []*rbacv1.ClusterRole
	bindings        []*rbacv1.RoleBinding
	clusterBindings []*rbacv1.ClusterRoleBinding
}

func (f *fake) Role(ns, name string) (*rbacv1.Role, error) {
	for _, r := range f.roles {
		if r.Namespace == ns && r.Name == name {
			return r, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}, name)
}

func (f *fake) ClusterRole(name string) (*rbacv1.ClusterRole, error) {
	for _, r := range f.clusterRoles {
		if r.Name == name {
			return r, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}, name)
}

func (f *fake) RoleBindings(ns string) (out []*rbacv1.RoleBinding, _ error) {
	for _, b := range f.bindings {
		if b.Namespace == ns {
			out = append(out, b)
		}
	}
	return out, nil
}

func (f *fake) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return f.clusterBindings, nil
}

func rule(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), APIGroups: strings.Split(groups, ","), Resources: strings.Split(resources, ","), ResourceNames: names}
}

func urls(verb string, paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: paths}
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func subject(kind, ns, name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: kind, Namespace: ns, Name: name}
}

func ref(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
}

func cluster() *fake {
	return &fake{
		clusterRoles: []*rbacv1.ClusterRole{
			{ObjectMeta: meta("", "admin"), Rules: []rbacv1.PolicyRule{rule("*", "*", "*"), urls("*", "*")}},
			{ObjectMeta: meta("", "view"), Rules: []rbacv1.PolicyRule{rule("get,list,watch", "", "pods,pods/log"), urls("get", "/healthz", "/metrics/*")}},
			{ObjectMeta: meta("", "scaler"), Rules: []rbacv1.PolicyRule{rule("update", "*", "*/scale"), rule("get", "", "configmaps", "one")}},
		},
		roles: []*rbacv1.Role{{ObjectMeta: meta("a", "edit"), Rules: []rbacv1.PolicyRule{rule("create,delete", "", "pods")}}},
		clusterBindings: []*rbacv1.ClusterRoleBinding{
			{ObjectMeta: meta("", "dangling"), RoleRef: ref("ClusterRole", "gone"), Subjects: []rbacv1.Subject{subject("User", "", "dan")}},
			{ObjectMeta: meta("", "admins"), RoleRef: ref("ClusterRole", "admin"), Subjects: []rbacv1.Subject{subject("Group", "", "ops")}},
			{ObjectMeta: meta("", "scalers"), RoleRef: ref("ClusterRole", "scaler"), Subjects: []rbacv1.Subject{subject("ServiceAccount", "kube-system", "hpa")}},
		},
		bindings: []*rbacv1.RoleBinding{
			{ObjectMeta: meta("a", "viewers"), RoleRef: ref("ClusterRole", "view"), Subjects: []rbacv1.Subject{subject("User", "", "vic"), subject("ServiceAccount", "", "local")}},
			{ObjectMeta: meta("a", "editors"), RoleRef: ref("Role", "edit"), Subjects: []rbacv1.Subject{subject("User", "", "eve")}},
		},
	}
}

func req(user, verb, ns, what string, groups ...string) auth.Attributes {
	a := auth.Attributes{User: auth.User{Name: user, Groups: groups}, Verb: verb, Namespace: ns}
	if strings.HasPrefix(what, "/") {
		a.Path = what
		return a
	}
	a.ResourceRequest = true
	what, a.Name, _ = strings.Cut(what, ":")
	if i := strings.LastIndex(what, "."); i >= 0 {
		a.APIGroup, what = what[:i], what[i+1:]
	}
	a.Resource, a.Subresource, _ = strings.Cut(what, "/")
	return a
}

func TestAuthorize(t *testing.T) {
	z := New(cluster())
	for _, c := range []struct {
		name   string
		in     auth.Attributes
		allow  bool
		reason string
	}{
		{"cluster-wide group", req("root", "delete", "x", "apps.deployments:d", "ops"), true, `RBAC: allowed by ClusterRoleBinding "admins" of ClusterRole "admin" to Group "ops"`},
		{"everything is any path too", req("root", "post", "", "/anything", "ops"), true, `RBAC: allowed by ClusterRoleBinding "admins" of ClusterRole "admin" to Group "ops"`},
		{"a role binding", req("vic", "list", "a", ".pods"), true, `RBAC: allowed by RoleBinding "viewers/a" of ClusterRole "view" to User "vic"`},
		{"not in another namespace", req("vic", "list", "b", ".pods"), false, ""},
		{"not cluster-wide", req("vic", "list", "", ".pods"), false, ""},
		{"another verb", req("vic", "delete", "a", ".pods"), false, ""},
		{"another group", req("vic", "get", "a", "metrics.k8s.io.pods"), false, ""},
		{"subresource named", req("vic", "get", "a", ".pods/log"), true, `RBAC: allowed by RoleBinding "viewers/a" of ClusterRole "view" to User "vic"`},
		{"subresource not named", req("vic", "get", "a", ".pods/exec"), false, ""},
		{"role binding never gives paths", req("vic", "get", "", "/healthz"), false, ""},
		{"service account of the binding's namespace", req("system:serviceaccount:a:local", "get", "a", ".pods"), true, `RBAC: allowed by RoleBinding "viewers/a" of ClusterRole "view" to ServiceAccount "local/a"`},
		{"service account of another namespace", req("system:serviceaccount:b:local", "get", "a", ".pods"), false, ""},
		{"any resource's scale", req("system:serviceaccount:kube-system:hpa", "update", "q", "apps.deployments/scale:x"), true, `RBAC: allowed by ClusterRoleBinding "scalers" of ClusterRole "scaler" to ServiceAccount "hpa/kube-system"`},
		{"but not the resource", req("system:serviceaccount:kube-system:hpa", "update", "q", "apps.deployments:x"), false, ""},
		{"the named object", req("system:serviceaccount:kube-system:hpa", "get", "q", ".configmaps:one"), true, `RBAC: allowed by ClusterRoleBinding "scalers" of ClusterRole "scaler" to ServiceAccount "hpa/kube-system"`},
		{"another object", req("system:serviceaccount:kube-system:hpa", "get", "q", ".configmaps:two"), false, ""},
		{"a role", req("eve", "create", "a", ".pods"), true, `RBAC: allowed by RoleBinding "editors/a" of Role "edit" to User "eve"`},
		{"a missing role is told", req("dan", "get", "a", ".pods"), false, `RBAC: clusterroles.rbac.authorization.k8s.io "gone" not found`},
		{"nobody", req("nobody", "get", "a", ".pods"), false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, reason, err := z.Authorize(context.Background(), c.in)
			if (d == auth.Allow) != c.allow || d == auth.Deny || reason != c.reason || err != nil {
				t.Fatalf("got %v %q %v", d, reason, err)
			}
		})
	}
}

func TestURLs(t *testing.T) {
	for _, c := range []struct {
		rule, path string
		want       bool
	}{
		{"/healthz", "/healthz", true}, {"/healthz", "/healthz/ping", false}, {"/healthz/*", "/healthz/ping", true},
		{"/healthz/*", "/healthz", false}, {"*", "/x", true}, {"/heal*", "/healthz", true},
	} {
		r := urls("get", c.rule)
		if got := Allows(&r, auth.Attributes{Verb: "get", Path: c.path}); got != c.want {
			t.Errorf("%s on %s: %v", c.rule, c.path, got)
		}
	}
}

func TestReviewRules(t *testing.T) {
	status := New(cluster()).ReviewRules(auth.User{Name: "vic"}, "a")
	if len(status.ResourceRules) != 1 || len(status.NonResourceRules) != 1 || status.Incomplete || status.EvaluationError != "" {
		t.Errorf("%+v", status)
	}
	status = New(cluster()).ReviewRules(auth.User{Name: "dan"}, "a")
	if status.EvaluationError == "" || status.ResourceRules == nil {
		t.Errorf("%+v", status)
	}
}

func TestGuard(t *testing.T) {
	src := cluster()
	src.clusterRoles = append(src.clusterRoles, &rbacv1.ClusterRole{ObjectMeta: meta("", "binder"), Rules: []rbacv1.PolicyRule{
		rule("bind", rbacv1.GroupName, "clusterroles", "admin"), rule("escalate", rbacv1.GroupName, "roles"),
	}})
	src.clusterBindings = append(src.clusterBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b"), RoleRef: ref("ClusterRole", "binder"), Subjects: []rbacv1.Subject{subject("User", "", "bob")}})
	g := Guard{Source: src, Authorizer: New(src)}
	role := func(rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: meta("a", "new"), Rules: rules}
	}
	bindTo := func(r rbacv1.RoleRef) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: meta("a", "new"), RoleRef: r}
	}
	aggregated := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}}
	withFinalizer := role(rule("*", "*", "*"))
	withFinalizer.Finalizers = []string{"x"}

	attrs := func(user, ns, resource string, groups ...string) auth.Attributes {
		a := req(user, "create", ns, "."+resource, groups...)
		a.APIGroup = rbacv1.GroupName
		return a
	}
	check := func(name string, err error, denied string) {
		t.Helper()
		switch {
		case denied == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case denied != "" && (!apierrors.IsForbidden(err) || !strings.HasSuffix(err.Error(), denied)):
			t.Errorf("%s:\n got %v\nwant …%s", name, err, denied)
		}
	}
	ctx := context.Background()
	check("what one has", g.Check(ctx, attrs("vic", "a", "roles"), role(rule("get", "", "pods")), nil), "")
	check("more than one has", g.Check(ctx, attrs("vic", "a", "roles"), role(rule("get,delete,create", "", "pods"), rule("get", "", "secrets")), nil),
		`roles.rbac.authorization.k8s.io "new" is forbidden: user "vic" (groups=[]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["pods"], Verbs:["delete" "create"]}
{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`)
	check("a name is less than all", g.Check(ctx, attrs("vic", "a", "roles"), role(rule("get", "", "pods", "one")), nil), "")
	check("all is more than a name", g.Check(ctx, attrs("system:serviceaccount:kube-system:hpa", "a", "roles"), role(rule("get", "", "configmaps")), nil), `Verbs:["get"]}`)
	check("masters", g.Check(ctx, attrs("m", "a", "roles", auth.GroupMasters), role(rule("*", "*", "*")), nil), "")
	check("cluster admin", g.Check(ctx, attrs("root", "a", "roles", "ops"), role(rule("*", "*", "*")), nil), "")
	check("the escalate verb", g.Check(ctx, attrs("bob", "a", "roles"), role(rule("*", "*", "*")), nil), "")
	check("only finalizers change", g.Check(ctx, attrs("vic", "a", "roles"), role(rule("*", "*", "*")), withFinalizer), "")
	check("the bind verb", g.Check(ctx, attrs("bob", "a", "rolebindings"), bindTo(ref("ClusterRole", "admin")), nil), "")
	check("binding what one has", g.Check(ctx, attrs("vic", "a", "rolebindings"), bindTo(ref("ClusterRole", "view")), nil), "")
	check("binding more", g.Check(ctx, attrs("vic", "a", "rolebindings"), bindTo(ref("ClusterRole", "admin")), nil), `{NonResourceURLs:["*"], Verbs:["*"]}`)
	check("aggregation", g.Check(ctx, attrs("vic", "", "clusterroles"), aggregated, nil), `must have cluster-admin privileges to use the aggregationRule`)
	check("aggregation by an admin", g.Check(ctx, attrs("root", "", "clusterroles", "ops"), aggregated, nil), "")
	if err := g.Check(ctx, attrs("vic", "a", "rolebindings"), bindTo(ref("ClusterRole", "gone")), nil); !apierrors.IsNotFound(err) {
		t.Errorf("binding a missing role: %v", err)
	}
}
