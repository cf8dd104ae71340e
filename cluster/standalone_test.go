package cluster

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-project/skiff/internal/zpages"
)

// apart starts an API server by itself and returns a kubeconfig to it.
func apart(t *testing.T) (*kubernetes.Clientset, string) {
	t.Helper()
	c := Start(t, TestOptions{APIOnly: true})
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, c.Kubeconfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubernetes.NewForConfigOrDie(c.Config()), path
}

// One of two controller managers works, as the service accounts of its
// controllers; a leader whose lease is taken away ends, and the lease of one
// that is asked to end is free at once.
func TestControllerManagersElectALeader(t *testing.T) {
	client, kubeconfig := apart(t)
	start := func() (stop func(), ended chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		ended = make(chan error, 1)
		go func() {
			ended <- ControllerManager{AccountCredentials: true, Component: Component{
				Connection: Connection{Kubeconfig: kubeconfig, QPS: -1},
				Election:   Election{LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 200 * time.Millisecond},
			}}.Run(ctx)
		}()
		return cancel, ended
	}
	leases := client.CoordinationV1().Leases(metav1.NamespaceSystem)
	holder := func(is func(string) bool) string {
		t.Helper()
		var got string
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for {
			if l, err := leases.Get(ctx, "kube-controller-manager", metav1.GetOptions{}); err == nil && l.Spec.HolderIdentity != nil {
				if got = *l.Spec.HolderIdentity; is(got) {
					return got
				}
			}
			select {
			case <-ctx.Done():
				t.Fatalf("the lease is still held by %q", got)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	stop, ended := start()
	first := holder(func(h string) bool { return h != "" })
	err := poll(t.Context(), "the default service account", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Get(t.Context(), "service-account-controller", metav1.GetOptions{}); err != nil {
		t.Errorf("the ServiceAccount controller works as somebody else: %v", err)
	}
	stop2, ended2 := start()
	defer stop2()
	stop()
	if err := <-ended; err != nil {
		t.Errorf("asked to end: %v", err)
	}
	holder(func(h string) bool { return h != "" && h != first })
	patch := []byte(`{"spec":{"holderIdentity":"somebody-else","leaseDurationSeconds":600}}`)
	if _, err := leases.Patch(t.Context(), "kube-controller-manager", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended2:
		if err == nil || !strings.Contains(err.Error(), "leader election lost") {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it goes on without the lease")
	}
}

// Health is for everybody, the rest for whom the API server lets.
func TestSecurePort(t *testing.T) {
	client, kubeconfig := apart(t)
	o := Component{}
	d, err := newDelegate(Serving{Authentication: kubeconfig, Authorization: kubeconfig}, o.local("test").log)
	if err != nil {
		t.Fatal(err)
	}
	w := newWatched()
	w.check("bad", func() error { return os.ErrDeadlineExceeded })
	w.pages = zpages.New("test", gitVersion(), map[string]string{"kube-api-qps": "20"}, "/metrics")
	h := d.guard(w.mux())
	get := func(path, token string) (int, string) {
		req := httptest.NewRequest(http.MethodGet, path, nil)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		return rec.Code, rec.Body.String()
	}
	if _, err := client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "scraper"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	res, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "scraper", &authnv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := res.Status.Token
	for _, tt := range []struct {
		path, token string
		code        int
		text        string
	}{
		{"/healthz", "", 500, "[+]ping ok\n[-]bad failed: i/o timeout\nhealthz check failed\n"},
		{"/metrics", "", 403, `User \"system:anonymous\" cannot get path \"/metrics\"`},
		{"/flagz", token, 403, `cannot get path \"/flagz\"`},
		{"/metrics", "forged", 401, `"Unauthorized"`},
		{"/metrics", token, 403, `User \"system:serviceaccount:default:scraper\" cannot get path`},
	} {
		if code, text := get(tt.path, tt.token); code != tt.code || !strings.Contains(text, tt.text) {
			t.Errorf("%s as %.10s: %d %s", tt.path, tt.token, code, text)
		}
	}
	_, err = client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "scraper"},
		RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "system:monitoring"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "scraper"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/metrics": "kubernetes_build_info", "/statusz": "/flagz /metrics /statusz\n", "/flagz": "kube-api-qps"} {
		if code, text := get(path, token); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s with the right to: %d %s", path, code, text)
		}
	}
}
