package certificates_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"

	"github.com/skiff-project/skiff/controller/certificates"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// authority lives for that long from the epoch on.
func authority(t *testing.T, life time.Duration) (certificates.Authority, *x509.Certificate) {
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: enginetest.Epoch.Add(-time.Hour), NotAfter: enginetest.Epoch.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return func() (*x509.Certificate, crypto.Signer, error) { return cert, key, nil }, cert
}

// request asks signer, for comma-separated usages; the conditions are already there.
func request(t *testing.T, name, signer, usages string, q x509.CertificateRequest, conditions ...certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequest {
	der, err := x509.CreateCertificateRequest(rand.Reader, &q, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", CreationTimestamp: metav1.NewTime(enginetest.Epoch)},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Username: "someone",
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
	for _, u := range strings.Split(usages, ",") {
		r.Spec.Usages = append(r.Spec.Usages, certificatesv1.KeyUsage(u))
	}
	for _, c := range conditions {
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: c, Status: corev1.ConditionTrue,
			LastUpdateTime: metav1.NewTime(enginetest.Epoch)})
	}
	return r
}

func get(t *testing.T, w *enginetest.World, name string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	r, err := w.Client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	client        = "kubernetes.io/kube-apiserver-client"
	kubeletClient = "kubernetes.io/kube-apiserver-client-kubelet"
	serving       = "kubernetes.io/kubelet-serving"
	approved      = certificatesv1.CertificateApproved
	denied        = certificatesv1.CertificateDenied
	failed        = certificatesv1.CertificateFailed
)

var node = pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes"}}

func TestApprovedRequestsAreSigned(t *testing.T) {
	ca, cert := authority(t, 1000*time.Hour)
	person := x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane", Organization: []string{"devs"}}}
	w := enginetest.New(t,
		request(t, "year", client, "client auth,digital signature", person, approved),
		request(t, "waits", client, "client auth", person),
		request(t, "refused", client, "client auth", person, approved, denied),
		request(t, "other", "example.com/signer", "client auth", person, approved),
		request(t, "node", serving, "server auth,digital signature", x509.CertificateRequest{Subject: node, DNSNames: []string{"n"},
			IPAddresses: []net.IP{{10, 0, 0, 1}}}, approved))
	hour := request(t, "hour", client, "client auth", person, approved)
	seconds := int32(3600)
	hour.Spec.ExpirationSeconds = &seconds
	w.Put(hour)
	w.Build(certificates.NewSigning(w.Env, certificates.ForAll(ca), 100*time.Hour)).Settle()
	for name, life := range map[string]time.Duration{"year": 100*time.Hour - 5*time.Minute, "hour": time.Hour, "node": 100*time.Hour - 5*time.Minute} {
		block, _ := pem.Decode(get(t, w, name).Status.Certificate)
		if block == nil {
			t.Fatalf("%s is not signed", name)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckSignatureFrom(cert); err != nil || c.IsCA {
			t.Errorf("%s: signature %v, authority %v", name, err, c.IsCA)
		}
		if !c.NotBefore.Equal(enginetest.Epoch.Add(-5*time.Minute)) || !c.NotAfter.Equal(enginetest.Epoch.Add(life)) {
			t.Errorf("%s lives from %v to %v, want %v", name, c.NotBefore, c.NotAfter, life)
		}
		if name == "node" && (c.Subject.CommonName != "system:node:n" || !slices.Equal(c.DNSNames, []string{"n"}) || len(c.IPAddresses) != 1 ||
			!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || c.KeyUsage != x509.KeyUsageDigitalSignature) {
			t.Errorf("the node's certificate is not what it asked for: %+v", c)
		}
	}
	for _, name := range []string{"waits", "refused", "other"} {
		if len(get(t, w, name).Status.Certificate) > 0 {
			t.Errorf("%s is signed", name)
		}
	}
}

func TestACertificateEndsWithItsAuthority(t *testing.T) {
	ca, _ := authority(t, 2*time.Hour)
	w := enginetest.New(t, request(t, "r", client, "client auth", x509.CertificateRequest{}, approved))
	w.Build(certificates.NewSigning(w.Env, certificates.ForAll(ca), 100*time.Hour)).Settle()
	block, _ := pem.Decode(get(t, w, "r").Status.Certificate)
	if c, err := x509.ParseCertificate(block.Bytes); err != nil || !c.NotAfter.Equal(enginetest.Epoch.Add(2*time.Hour)) {
		t.Errorf("%v, ends %v", err, c.NotAfter)
	}
}

func TestASignerSaysWhatItDoesNotSign(t *testing.T) {
	ca, _ := authority(t, time.Hour)
	for _, c := range []struct {
		signer, usages string
		q              x509.CertificateRequest
		want           string
	}{
		{client, "server auth", x509.CertificateRequest{}, "invalid usage for client certificate: server auth"},
		{client, "digital signature", x509.CertificateRequest{}, "missing required usage for client certificate: client auth"},
		{kubeletClient, "client auth", x509.CertificateRequest{}, "subject organization is not system:nodes"},
		{kubeletClient, "client auth,digital signature", x509.CertificateRequest{Subject: node, DNSNames: []string{"x"}}, "DNS subjectAltNames are not allowed"},
		{kubeletClient, "client auth", x509.CertificateRequest{Subject: node}, "usages did not match [client auth digital signature key encipherment]"},
		{kubeletClient, "client auth,digital signature", x509.CertificateRequest{Subject: pkix.Name{CommonName: "x", Organization: node.Organization}},
			"subject common name does not begin with system:node:"},
		{serving, "server auth,digital signature", x509.CertificateRequest{Subject: node}, "DNS or IP subjectAltName is required"},
	} {
		w := enginetest.New(t, request(t, "r", c.signer, c.usages, c.q, approved))
		w.Build(certificates.NewSigning(w.Env, certificates.ForAll(ca), time.Hour)).Settle()
		r := get(t, w, "r")
		last := r.Status.Conditions[len(r.Status.Conditions)-1]
		if last.Type != failed || last.Reason != "SignerValidationFailure" || last.Message != c.want || len(r.Status.Certificate) > 0 {
			t.Errorf("%s %s: %+v, want %q", c.signer, c.usages, last, c.want)
		}
	}
}

func TestKubeletsAreApprovedByTheirRight(t *testing.T) {
	q := x509.CertificateRequest{Subject: node}
	const usages = "client auth,digital signature"
	for right, want := range map[string]string{
		"selfnodeclient": "own:self ",
		"nodeclient":     "new:other own:other ",
		"":               "",
	} {
		own := request(t, "own", kubeletClient, usages, q)
		own.Spec.Username = node.CommonName
		w := enginetest.New(t, own, request(t, "new", kubeletClient, usages, q),
			request(t, "odd", kubeletClient, "server auth", q), request(t, "person", client, usages, q))
		w.Client.PrependReactor("create", "subjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
			r := a.(ktesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
			at := r.Spec.ResourceAttributes
			r.Status.Allowed = at.Subresource == right && at.Verb == "create" && at.Resource == "certificatesigningrequests"
			return true, r, nil
		})
		w.Build(certificates.NewApproving(w.Env)).Observe()
		got := ""
		for _, name := range []string{"new", "odd", "own", "person"} {
			// A right that is not there may come: that is asked again.
			if err := w.Reconcile(name); err != nil && !strings.Contains(err.Error(), "subject access review was not approved") {
				t.Error(err)
			}
			for _, c := range get(t, w, name).Status.Conditions {
				by := "other"
				if strings.Contains(c.Message, " self ") {
					by = "self"
				}
				got += name + ":" + by + " "
			}
		}
		if got != want {
			t.Errorf("right %q approved %q, want %q", right, got, want)
		}
	}
}

func TestRequestsGo(t *testing.T) {
	ca, _ := authority(t, 1000*time.Hour)
	issued := request(t, "issued", client, "client auth", x509.CertificateRequest{}, approved)
	brief := request(t, "brief", client, "client auth", x509.CertificateRequest{}, approved)
	seconds := int32(600)
	brief.Spec.ExpirationSeconds = &seconds
	w := enginetest.New(t, issued, brief)
	w.Build(certificates.NewSigning(w.Env, certificates.ForAll(ca), 100*time.Hour)).Settle()
	w2 := enginetest.New(t, get(t, w, "issued"), get(t, w, "brief"),
		request(t, "denied", client, "client auth", x509.CertificateRequest{}, denied),
		request(t, "failed", client, "client auth", x509.CertificateRequest{}, approved, failed),
		request(t, "pending", client, "client auth", x509.CertificateRequest{}),
		request(t, "approved", client, "client auth", x509.CertificateRequest{}, approved))
	w2.Build(certificates.NewCleaning(w2.Env)).Settle()
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{0, "approved brief denied failed issued pending"},
		{11 * time.Minute, "approved denied failed issued pending"},
		{50 * time.Minute, "approved pending"},
		{22 * time.Hour, "approved pending"},
		{2 * time.Hour, ""},
	} {
		w2.Step(step.after).Settle()
		l, err := w2.Client.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range l.Items {
			names = append(names, r.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != step.want {
			t.Errorf("%v later: %q, want %q", step.after, got, step.want)
		}
	}
}
