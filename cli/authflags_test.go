package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver/oidc/oidctest"
)

// freePort finds a port nobody listens on, below those the kernel gives to connections.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// apiServer runs kube-apiserver with flags until the test ends, and returns a client for a token.
func apiServer(t *testing.T, flags ...string) func(token string) *kubernetes.Clientset {
	t.Helper()
	port := freePort(t)
	args := append([]string{"--bind-address=127.0.0.1", fmt.Sprint("--secure-port=", port)}, flags...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- newAPIServer().execute(ctx, args, io.Discard, io.Discard) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client := func(token string) *kubernetes.Clientset {
		return kubernetes.NewForConfigOrDie(&rest.Config{Host: fmt.Sprint("https://127.0.0.1:", port), BearerToken: token, QPS: -1,
			TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	}
	eventually(t, "the server is ready", func() error {
		select {
		case err := <-ended:
			ended <- nil
			t.Fatal(err)
		default:
		}
		return client("").Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
	return client
}

// eventually waits until what is so.
func eventually(t *testing.T, what string, is func() error) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("not so: %s: %v", what, err)
		}
	}
}

// who is the user of a token, as the server says.
func who(t *testing.T, c *kubernetes.Clientset) (string, []string, error) {
	r, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authnv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", nil, err
	}
	return r.Status.UserInfo.Username, r.Status.UserInfo.Groups, nil
}

// An issuer's tokens, by the flags of it: its keys change, and roles are for the groups its tokens name.
func TestIssuerByFlags(t *testing.T) {
	issuer := oidctest.Start(t)
	client := apiServer(t, "--oidc-issuer-url="+issuer.URL, "--oidc-client-id=api", "--oidc-ca-file="+write(t, "ca", issuer.CA), "--oidc-signing-algs=ES256",
		"--oidc-groups-claim=groups", "--oidc-groups-prefix=system:", "--oidc-required-claim=team=a,b")
	token := func(more map[string]any) string {
		claims := issuer.Claims("api", map[string]any{"team": "a,b", "groups": "masters"})
		for k, v := range more {
			claims[k] = v
		}
		return issuer.Sign(claims)
	}
	eventually(t, "the token is good", func() error {
		name, groups, err := who(t, client(token(nil)))
		if err == nil && (name != issuer.URL+"#jane" || strings.Join(groups, " ") != "system:masters system:authenticated") {
			t.Fatal(name, groups)
		}
		return err
	})
	if _, err := client(token(nil)).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("a master may not: %v", err)
	}
	if _, err := client(token(map[string]any{"groups": "x"})).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), `User "`+issuer.URL+`#jane" cannot list`) {
		t.Errorf("somebody may: %v", err)
	}
	if _, _, err := who(t, client(token(map[string]any{"team": "c"}))); err == nil || err.Error() != "Unauthorized" {
		t.Errorf("another team: %v", err)
	}
	old := token(nil)
	issuer.Rotate()
	if _, _, err := who(t, client(token(nil))); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	admin := token(nil)
	review := func(token string, audiences ...string) authnv1.TokenReviewStatus {
		t.Helper()
		r, err := client(admin).AuthenticationV1().TokenReviews().Create(t.Context(),
			&authnv1.TokenReview{Spec: authnv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if s := review(old); s.Authenticated || !strings.Contains(s.Error, "failed to verify id token signature") {
		t.Errorf("a token of the old key: %+v", s)
	}
	if s := review(token(nil)); !s.Authenticated || len(s.Audiences) != 1 {
		t.Errorf("%+v", s)
	}
	if s := review(token(nil), "vault"); s.Authenticated {
		t.Errorf("for another audience: %+v", s)
	}
}

// Both configuration files, followed while the server runs.
func TestConfigurationFilesAreFollowed(t *testing.T) {
	issuer := oidctest.Start(t)
	ca, _ := json.Marshal(issuer.CA)
	dir := t.TempDir()
	put := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	authn := func(expression string) string {
		return fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1beta1
kind: AuthenticationConfiguration
anonymous: {enabled: true, conditions: [{path: /readyz}, {path: /version}]}
jwt:
- issuer: {url: %s, audiences: [api, other], audienceMatchPolicy: MatchAny, certificateAuthority: %s}
  claimMappings:
    username: {expression: %q}
    groups: {expression: 'claims.?groups.orValue([])'}
  userValidationRules: [{expression: "!user.username.startsWith('system:')", message: that is reserved}]
`, issuer.URL, ca, expression)
	}
	const authz = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {type: RBAC, name: rbac}\n"
	client := apiServer(t, "--authentication-config="+put("authn", authn("'a:' + claims.sub")), "--authorization-config="+put("authz", authz))
	is := func(want string) func() error {
		return func() error {
			name, _, err := who(t, client(issuer.Sign(issuer.Claims("other", map[string]any{"groups": []string{"dev"}}))))
			if err == nil && name != want {
				err = fmt.Errorf("it is %s", name)
			}
			return err
		}
	}
	eventually(t, "a:jane", is("a:jane"))
	if _, _, err := who(t, client(issuer.Sign(issuer.Claims("other", map[string]any{"sub": "x", "aud": "third"})))); err == nil {
		t.Error("a token for somebody else is good")
	}
	for path, want := range map[string]string{"/version": "", "/livez": "Unauthorized"} {
		if err := client("").Discovery().RESTClient().Get().AbsPath(path).Do(t.Context()).Error(); want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("anonymous %s: %v", path, err)
		}
	}
	put("authn", authn("'b:' + claims.sub"))
	eventually(t, "b:jane", is("b:jane"))

	nodes := func() error {
		_, err := client(issuer.Sign(issuer.Claims("api", nil))).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err
	}
	if err := nodes(); err == nil || !strings.Contains(err.Error(), "cannot list resource") {
		t.Errorf("before: %v", err)
	}
	put("authz", authz+"- {type: AlwaysAllow, name: alwaysallow}\n")
	eventually(t, "everything is allowed", nodes)
}
