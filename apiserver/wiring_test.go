package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/netip"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac"
	"github.com/skiff-project/skiff/auth/rbac/policy"
	"github.com/skiff-project/skiff/auth/serviceaccount"
)

// source shows a Reader to RBAC and to the token validator.
type source struct{ *apiserver.Reader }

func one[T api.Object](o api.Object, err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	return o.(T), nil
}

func many[T api.Object](l []api.Object, err error) ([]T, error) {
	var out []T
	for _, o := range l {
		out = append(out, o.(T))
	}
	return out, err
}

const rbacAPI = rbacv1.GroupName

func (s source) Role(ns, n string) (*rbacv1.Role, error) {
	return one[*rbacv1.Role](s.Get(rbacAPI, "roles", ns, n))
}
func (s source) ClusterRole(n string) (*rbacv1.ClusterRole, error) {
	return one[*rbacv1.ClusterRole](s.Get(rbacAPI, "clusterroles", "", n))
}
func (s source) RoleBindings(ns string) ([]*rbacv1.RoleBinding, error) {
	return many[*rbacv1.RoleBinding](s.List(rbacAPI, "rolebindings", ns))
}
func (s source) ClusterRoleBindings() ([]*rbacv1.ClusterRoleBinding, error) {
	return many[*rbacv1.ClusterRoleBinding](s.List(rbacAPI, "clusterrolebindings", ""))
}
func (s source) ServiceAccount(_ context.Context, ns, n string) (*corev1.ServiceAccount, error) {
	return one[*corev1.ServiceAccount](s.Get("", "serviceaccounts", ns, n))
}
func (s source) Pod(_ context.Context, ns, n string) (*corev1.Pod, error) {
	return one[*corev1.Pod](s.Get("", "pods", ns, n))
}
func (s source) Secret(_ context.Context, ns, n string) (*corev1.Secret, error) {
	return one[*corev1.Secret](s.Get("", "secrets", ns, n))
}
func (s source) Node(_ context.Context, n string) (*corev1.Node, error) {
	return one[*corev1.Node](s.Get("", "nodes", "", n))
}

// fullServer has RBAC, default admission, the bootstrap policy and service
// account tokens, as a cluster wires them.
func fullServer(t testing.TB) (*apiserver.Server, *rest.Config) {
	return newTLSServer(t, func(c *apiserver.Config) {
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := serviceaccount.New(serviceaccount.Config{SigningKey: key, Getter: source{reader}})
		if err != nil {
			t.Fatal(err)
		}
		roles := rbac.New(source{reader})
		c.ServiceAccounts, c.Tokens, c.Rules = tokens, tokens, roles
		c.Authenticator = auth.Server(auth.HealthPaths, auth.Bearer(auth.Tokens(tokens, oneToken{})))
		c.Authorizer = auth.Authorizers(auth.Masters(), roles)
		c.Admission = admission.New(admission.Config{Reader: reader})
		c.Policy = policy.Bootstrap()
	})
}

func TestWholeWiring(t *testing.T) {
	s, cfg := fullServer(t)
	c := typed(t, s)
	roles, err := c.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(roles.Items) < 50 {
		t.Fatalf("%d bootstrap roles, %v", len(roles.Items), err)
	}
	if adm, err := c.RbacV1().ClusterRoles().Get(t.Context(), "admin", metav1.GetOptions{}); err != nil || len(adm.Rules) == 0 {
		t.Errorf("admin has no rules: %v", err)
	}
	if _, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	tr, err := c.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil || tr.Status.Token == "" {
		t.Fatalf("token: %v", err)
	}
	sa := rest.CopyConfig(cfg)
	sa.BearerToken = tr.Status.Token
	asSA := kubernetes.NewForConfigOrDie(sa)
	_, err = asSA.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default"`) {
		t.Errorf("service account without rights: %v", err)
	}
	me, err := asSA.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || me.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Errorf("who am I: %+v %v", me, err)
	}
	rv, err := c.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tr.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !rv.Status.Authenticated || rv.Status.User.Username != "system:serviceaccount:default:default" {
		t.Errorf("token review: %+v %v", rv, err)
	}
	rules, err := asSA.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	if err != nil || len(rules.Status.NonResourceRules) == 0 {
		t.Errorf("rules: %+v %v", rules, err)
	}
	escalation(t, c, asSA)
	p, err := c.CoreV1().Pods("default").Create(t.Context(), pod("p"), metav1.CreateOptions{})
	if err != nil || p.Spec.ServiceAccountName != "default" || len(p.Spec.Volumes) != 1 || len(p.Spec.Tolerations) != 2 {
		t.Errorf("admitted pod: %+v %v", p, err)
	}
	_, err = c.CoreV1().ConfigMaps("nowhere").Create(t.Context(), configMap("a", nil), metav1.CreateOptions{})
	if !apierrors.IsNotFound(err) || err.Error() != `namespaces "nowhere" not found` {
		t.Errorf("missing namespace: %v", err)
	}
	im := rest.CopyConfig(cfg)
	im.Impersonate = rest.ImpersonationConfig{UserName: "bob", Groups: []string{"x"}}
	who, err := kubernetes.NewForConfigOrDie(im).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "bob" {
		t.Errorf("impersonated: %+v %v", who, err)
	}
}

// escalation: a user who may write roles cannot grant more than they have.
func escalation(t *testing.T, c, user *kubernetes.Clientset) {
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	writer := rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{rbacAPI}, Resources: []string{"roles"}}
	if _, err := c.RbacV1().Roles("default").Create(t.Context(), role("writer", writer), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RbacV1().RoleBindings("default").Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "writer"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacAPI, Kind: "Role", Name: "writer"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: "default"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secrets := rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}}
	// "*" on roles includes escalate, so narrow it for the check.
	writer.Verbs = []string{"create", "update", "get"}
	if _, err := c.RbacV1().Roles("default").Update(t.Context(), role("writer", writer), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = user.RbacV1().Roles("default").Create(t.Context(), role("more", secrets), metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "is attempting to grant RBAC permissions not currently held") {
		t.Errorf("escalation: %v", err)
	}
	if _, err = user.RbacV1().Roles("default").Create(t.Context(), role("same", writer), metav1.CreateOptions{}); err != nil {
		t.Errorf("granting what one has: %v", err)
	}
}

// The document about tokens leads to their keys, at the name others know the server by.
func TestTokenIssuerIsFound(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1": "https://127.0.0.1:7443/openid/v1/jwks", "fd00:0:0:0:0:0:0:1": "https://[fd00:0:0:0:0:0:0:1]:7443/openid/v1/jwks",
		"api.example.com": "https://api.example.com:7443/openid/v1/jwks", "api.example.com:444": "https://api.example.com:444/openid/v1/jwks",
		"": "https://192.0.2.1:7443/openid/v1/jwks",
	} {
		s := newServer(t, func(c *apiserver.Config) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.ServiceAccounts, err = serviceaccount.New(serviceaccount.Config{SigningKey: key, Getter: source{reader}}); err != nil {
				t.Fatal(err)
			}
			c.ExternalHost, c.AdvertiseAddress, c.AdvertisePort = host, netip.MustParseAddr("192.0.2.1"), 7443
		})
		if code, body := newRaw(s).do(t, "GET", "/.well-known/openid-configuration", "", nil); code != 200 || !strings.Contains(body, `"jwks_uri":"`+want+`"`) {
			t.Errorf("known as %q: %d %s, want %s", host, code, body, want)
		}
	}
}
