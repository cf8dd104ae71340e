package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
)

// admitted is a server with the plugins that are on by default and one more.
func admitted(t testing.TB, more ...admission.Plugin) *apiserver.Server {
	return newServer(t, func(c *apiserver.Config) {
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Admission = append(admission.New(admission.Config{Reader: reader}), more...)
	})
}

func as(t *testing.T, s *apiserver.Server, u auth.User) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(s.InProcess(u))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// deletes records the deletes admission sees, by half.
type deletes struct{ admit, validate []string }

func (*deletes) Name() string { return "Deletes" }

func (d *deletes) Admit(_ context.Context, r *admission.Request) error {
	d.admit = append(d.admit, d.describe(r)...)
	return nil
}

func (d *deletes) Validate(_ context.Context, r *admission.Request) error {
	d.validate = append(d.validate, d.describe(r)...)
	return nil
}

func (*deletes) describe(r *admission.Request) []string {
	if r.Operation() != admission.Delete || r.Resource != "configmaps" {
		return nil
	}
	if _, ok := r.Options.(*metav1.DeleteOptions); !ok || r.Object != nil || r.Old == nil {
		return []string{"bad request"}
	}
	return []string{r.Verb + " " + r.Name + " " + r.Old.GetLabels()["n"]}
}

func TestAdmissionOfDeletes(t *testing.T) {
	seen := &deletes{}
	s := admitted(t, seen)
	cms := typed(t, s).CoreV1().ConfigMaps("default")
	for _, name := range []string{"a", "b", "c"} {
		if _, err := cms.Create(t.Context(), configMap(name, nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := cms.Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cms.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"delete b b", "deletecollection a a", "deletecollection c c"}
	if !slices.Equal(seen.admit, want) || !slices.Equal(seen.validate, want) {
		t.Errorf("admit saw %q, validate saw %q, want %q", seen.admit, seen.validate, want)
	}
}

func TestNamespacesThatStay(t *testing.T) {
	s := admitted(t)
	for _, name := range []string{"default", "kube-system", "kube-public"} {
		err := typed(t, s).CoreV1().Namespaces().Delete(t.Context(), name, metav1.DeleteOptions{})
		if want := `namespaces "` + name + `" is forbidden: this namespace may not be deleted`; !apierrors.IsForbidden(err) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestNodeDeletesItsOwnPodsOnly(t *testing.T) {
	s := admitted(t)
	ctx, pods := t.Context(), typed(t, s).CoreV1().Pods("kube-node-lease")
	if _, err := typed(t, s).CoreV1().ServiceAccounts("kube-node-lease").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "n2"} {
		p := pod(name)
		p.Spec.NodeName = name
		if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mine := as(t, s, auth.User{Name: "system:node:n1", Groups: []string{"system:nodes"}}).CoreV1().Pods("kube-node-lease")
	now := *metav1.NewDeleteOptions(0)
	if err := mine.Delete(ctx, "n2", now); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `node "n1" can only delete pods with spec.nodeName set to itself`) {
		t.Errorf("another node's pod: %v", err)
	}
	if err := mine.Delete(ctx, "n1", now); err != nil {
		t.Errorf("the node's own pod: %v", err)
	}
	if err := mine.DeleteCollection(ctx, now, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("all pods: %v", err)
	}
	if _, err := pods.Get(ctx, "n2", metav1.GetOptions{}); err != nil {
		t.Errorf("another node's pod is gone: %v", err)
	}
}

type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.texts = append(w.texts, text) }

func TestPluginWarningsReachClients(t *testing.T) {
	s := admitted(t)
	ctx := t.Context()
	got := &warnings{}
	cfg := s.InProcess(admin)
	cfg.WarningHandler = got
	c := kubernetes.NewForConfigOrDie(cfg)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "careful", Labels: map[string]string{"pod-security.kubernetes.io/warn": "restricted"}}}
	if _, err := c.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().ServiceAccounts("careful").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().Pods("careful").Create(ctx, pod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(got.texts) != 1 || !strings.HasPrefix(got.texts[0], `would violate PodSecurity "restricted:latest"`) {
		t.Errorf("warnings: %q", got.texts)
	}
}

func TestSigningRequestsRecordTheirAuthor(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "bob"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	bob := auth.User{Name: "bob", UID: "7", Groups: []string{"crew", auth.GroupAuthenticated}, Extra: map[string][]string{"ship": {"skiff"}}}
	c := as(t, admitted(t), bob)
	csr, err := c.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "bob"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: "example.com/s", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Username: "mallory",
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sp := csr.Spec
	if sp.Username != "bob" || sp.UID != "7" || !slices.Equal(sp.Groups, bob.Groups) || !slices.Equal(sp.Extra["ship"], certificatesv1.ExtraValue{"skiff"}) {
		t.Errorf("author: %+v", sp)
	}
}

var _ rest.WarningHandler = (*warnings)(nil)
