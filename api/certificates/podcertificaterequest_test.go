package certificates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func stub(t *testing.T, key crypto.Signer, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func podRequest(stub []byte) *certificatesv1.PodCertificateRequest {
	return &certificatesv1.PodCertificateRequest{Spec: certificatesv1.PodCertificateRequestSpec{SignerName: "example.com/mtls", PodName: "web", PodUID: "p",
		ServiceAccountName: "app", ServiceAccountUID: "s", NodeName: "n1", NodeUID: "n", MaxExpirationSeconds: new(int32(7200)), StubPKCS10Request: stub}}
}

func TestPodCertificateRequestIsChecked(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	good := stub(t, ed, err)
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p224 := stub(t, small, err)
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	rsa2048 := stub(t, weak, err)
	forged := append([]byte{}, good...)
	forged[len(forged)-1] ^= 1
	type spec = certificatesv1.PodCertificateRequestSpec
	for _, c := range []struct {
		name   string
		change func(*spec)
		want   string
	}{
		{"as the kubelet makes it", func(*spec) {}, ""},
		{"no proof", func(s *spec) { s.StubPKCS10Request = nil }, "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"},
		{"no request", func(s *spec) { s.StubPKCS10Request = []byte("x") }, "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR"},
		{"a forged proof", func(s *spec) { s.StubPKCS10Request = forged }, "spec.stubPKCS10Request: Invalid value: invalid signature"},
		{"a large request", func(s *spec) { s.StubPKCS10Request = make([]byte, 10241) }, "spec.stubPKCS10Request: Too long: may not be more than 10240 bytes"},
		{"a weak curve", func(s *spec) { s.StubPKCS10Request = p224 }, `spec.stubPKCS10Request: Invalid value: "curve P-224": elliptic public keys must use curve P256, P384, or P521`},
		{"a weak modulus", func(s *spec) { s.StubPKCS10Request = rsa2048 }, `spec.stubPKCS10Request: Invalid value: "2048-bit modulus": RSA keys must have modulus size 3072 or 4096`},
		{"an annotation without a domain", func(s *spec) { s.UnverifiedUserAnnotations = map[string]string{"foo": "x"} }, `spec.unverifiedUserAnnotations: Invalid value: "foo": must be a domain-prefixed key (such as "acme.io/foo")`},
		{"large annotations", func(s *spec) { s.UnverifiedUserAnnotations = map[string]string{"a.io/b": strings.Repeat("x", 256<<10)} }, "spec.unverifiedUserAnnotations: Too long: may not be more than 262144 bytes"},
		{"no pod", func(s *spec) { s.PodUID = "" }, `spec.podUID: Invalid value: "": must not be empty`},
		{"too short", func(s *spec) { s.MaxExpirationSeconds = new(int32(3599)) }, "spec.maxExpirationSeconds: Invalid value: 3599: must be in the range [3600, 7862400]"},
		{"Kubernetes' own signers give a day", func(s *spec) { s.SignerName, s.MaxExpirationSeconds = "kubernetes.io/x", new(int32(86401)) }, "spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]"},
	} {
		r := podRequest(good)
		c.change(&r.Spec)
		if got := said(validatePodRequest(r)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func said[E interface{ Error() string }](errs []E) string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return strings.Join(out, "\n")
}

func TestPodCertificateRequestIsDecidedOnce(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	old := podRequest(stub(t, key, err))
	now := time.Now().Truncate(time.Second)
	issue := func(to crypto.PublicKey, life time.Duration) string {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(life)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, to, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, theirs, short, long := issue(key.Public(), time.Hour), issue(other.Public(), time.Hour), issue(key.Public(), time.Minute), issue(key.Public(), 3*time.Hour)
	at := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(d)} }
	condition := func(kind string, status metav1.ConditionStatus) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: "Because", LastTransitionTime: metav1.NewTime(now)}
	}
	type status = certificatesv1.PodCertificateRequestStatus
	issued := func(change func(*status)) status {
		s := status{Conditions: []metav1.Condition{condition("Issued", "True")}, CertificateChain: good, NotBefore: at(0), NotAfter: at(time.Hour), BeginRefreshAt: at(30 * time.Minute)}
		if change != nil {
			change(&s)
		}
		return s
	}
	chain := func(c string, d time.Duration) status {
		return issued(func(s *status) { s.CertificateChain, s.NotAfter = c, at(d) })
	}
	denied := status{Conditions: []metav1.Condition{condition("Denied", "True")}}
	for _, c := range []struct {
		name     string
		was, now status
		want     string // how the text ends
	}{
		{"issued", status{}, issued(nil), ""},
		{"denied", status{}, denied, ""},
		{"denied with a certificate", status{}, issued(func(s *status) { s.Conditions = denied.Conditions }), "non-condition status fields must be empty when denying or failing the PodCertificateRequest"},
		{"issued after denied", denied, issued(nil), "immutable after PodCertificateRequest is issued, denied, or failed"},
		{"nothing decided", status{}, status{CertificateChain: good}, `status is immutable unless transitioning to "Issued", "Denied", or "Failed"`},
		{"two verdicts", status{}, issued(func(s *status) { s.Conditions = append(s.Conditions, denied.Conditions...) }),
			`status.conditions.[1].type: Invalid value: "Denied": There may be at most one condition with type "Issued", "Denied", or "Failed"`},
		{"a verdict of no", status{}, status{Conditions: []metav1.Condition{condition("Failed", "False")}}, `status.conditions.[0].status: Unsupported value: "False": supported values: "True"`},
		{"another condition", status{}, status{Conditions: []metav1.Condition{condition("Seen", "True")}}, `status.conditions.[0].type: Unsupported value: "Seen": supported values: "Issued", "Denied", "Failed"`},
		{"no chain", status{}, chain("", time.Hour), "issued certificate chain must contain at least one certificate"},
		{"another key", status{}, chain(theirs, time.Hour), "leaf certificate was not issued to the requested public key"},
		{"too short", status{}, chain(short, time.Minute), "leaf certificate lifetime must be >= 1 hour"},
		{"too long", status{}, chain(long, 3*time.Hour), "leaf certificate lifetime must be <= spec.maxExpirationSeconds (7200)"},
		{"another end", status{}, chain(good, 2*time.Hour), "must be set to the NotAfter time encoded in the leaf certificate"},
		{"a chain with a key", status{}, chain(good+string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})), time.Hour), "issued certificate chain must consist entirely of CERTFICATE PEM blocks"},
		{"no refresh", status{}, issued(func(s *status) { s.BeginRefreshAt = nil }), "status.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]"},
		{"refresh too early", status{}, issued(func(s *status) { s.BeginRefreshAt = at(time.Minute) }), "must be at least 10 minutes after status.notBefore"},
		{"refresh too late", status{}, issued(func(s *status) { s.BeginRefreshAt = at(51 * time.Minute) }), "must be at least 10 minutes before status.notAfter"},
	} {
		was, is := old.DeepCopy(), old.DeepCopy()
		was.Status, is.Status = c.was, c.now
		if got := said(validatePodRequestStatus(is, was)); !strings.HasSuffix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
