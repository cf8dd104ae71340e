package x509_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/requestheader"
	authx509 "github.com/skiff-project/skiff/auth/x509"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	a := authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), start, start.Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a authority) client(name pkix.Name, usage ...x509.ExtKeyUsage) *x509.Certificate {
	c, _ := a.sign(&x509.Certificate{Subject: name, ExtKeyUsage: usage})
	return c
}

func (a authority) pool() authx509.Pool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return authx509.Static(p)
}

const client = x509.ExtKeyUsageClientAuth

func TestAuthenticate(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	uid := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: "u-1"}
	for _, c := range []struct {
		name   string
		cert   *x509.Certificate
		user   string
		groups []string
		uid    string
		err    string
	}{
		{"no certificate", nil, "", nil, "", ""},
		{"name and groups", ca.client(pkix.Name{CommonName: "alice", Organization: []string{"a", "b"}}, client), "alice", []string{"a", "b"}, "", ""},
		{"with a uid", ca.client(pkix.Name{CommonName: "bob", ExtraNames: []pkix.AttributeTypeAndValue{uid}}, client), "bob", nil, "u-1", ""},
		{"two uids", ca.client(pkix.Name{CommonName: "bob", ExtraNames: []pkix.AttributeTypeAndValue{uid, uid}}, client), "", nil, "", "expected 1 UID, but found multiple"},
		{"no name", ca.client(pkix.Name{Organization: []string{"a"}}, client), "", nil, "", ""},
		{"another CA", stranger.client(pkix.Name{CommonName: "eve"}, client), "", nil, "", "certificate signed by unknown authority"},
		{"a server's certificate", ca.client(pkix.Name{CommonName: "eve"}, x509.ExtKeyUsageServerAuth), "", nil, "", "incompatible key usage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := authx509.New(ca.pool(), clocktesting.NewFakePassiveClock(start.Add(time.Minute)))
			req := httptest.NewRequest("GET", "/", nil)
			if c.cert != nil {
				req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.cert}}
			}
			for range 2 { // the second time it may be remembered
				id, ok, err := z.Authenticate(req)
				if c.err != "" {
					if err == nil || ok || !strings.Contains(err.Error(), c.err) {
						t.Fatalf("got %v %v", ok, err)
					}
					continue
				}
				if err != nil || ok != (c.user != "") || id.User.Name != c.user || id.User.UID != c.uid || !reflect.DeepEqual(id.User.Groups, c.groups) {
					t.Fatalf("got %+v %v %v", id, ok, err)
				}
				if ok && !strings.HasPrefix(id.User.Extra[auth.CredentialIDKey][0], "X509SHA256=") {
					t.Errorf("extra %v", id.User.Extra)
				}
			}
		})
	}
}

// A remembered certificate must not outlive its validity or its CA.
func TestRememberedIsCheckedAgain(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	clock := clocktesting.NewFakePassiveClock(start.Add(time.Minute))
	pool := ca.pool()
	z := authx509.New(func() *x509.CertPool { return pool() }, clock)
	req := httptest.NewRequest("GET", "/", nil)
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.client(pkix.Name{CommonName: "alice"}, client)}}
	expect := func(want bool) {
		t.Helper()
		if _, ok, _ := z.Authenticate(req); ok != want {
			t.Fatalf("authenticated: %v, want %v", ok, want)
		}
	}
	expect(true)
	clock.SetTime(start.Add(2 * time.Hour))
	expect(false)
	clock.SetTime(start.Add(time.Minute))
	expect(true)
	pool = next.pool()
	expect(false)
}

func TestRequestHeader(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	z, err := requestheader.New(requestheader.Config{Pool: ca.pool(), AllowedNames: []string{"front-proxy-client"}, Clock: clocktesting.NewFakePassiveClock(start.Add(time.Minute))})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		user string
		err  string
	}{
		{"the proxy", ca.client(pkix.Name{CommonName: "front-proxy-client"}, client), "alice", ""},
		{"another client", ca.client(pkix.Name{CommonName: "mallory"}, client), "", "x509: subject with cn=mallory is not in the allowed list"},
		{"another CA", stranger.client(pkix.Name{CommonName: "front-proxy-client"}, client), "", "unknown authority"},
		{"no certificate", nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest("GET", "/", nil)
			req.Header.Set("X-Remote-User", "alice")
			req.Header["X-Remote-Group"] = []string{"a", "b"}
			req.Header.Set("X-Remote-Extra-Acme%2fScopes", "x")
			if c.cert != nil {
				req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.cert}}
			}
			id, ok, err := z.Authenticate(req)
			if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) || ok != (c.user != "") || id.User.Name != c.user {
				t.Fatalf("got %+v %v %v", id, ok, err)
			}
			if ok && (!reflect.DeepEqual(id.User.Groups, []string{"a", "b"}) || !reflect.DeepEqual(id.User.Extra, map[string][]string{"acme/scopes": {"x"}}) || len(req.Header) != 0) {
				t.Errorf("got %+v, headers left %v", id.User, req.Header)
			}
		})
	}
	if _, err := requestheader.New(requestheader.Config{Pool: ca.pool(), UserHeaders: []string{" "}}); err == nil {
		t.Error("an empty header name is accepted")
	}
}
