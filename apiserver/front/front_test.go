package front

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestOriginsAndTransport(t *testing.T) {
	origins, err := ParseOrigins([]string{`^https://app\.example\.com$`})
	if err != nil {
		t.Fatal(err)
	}
	h := Options{Origins: origins, Transport: []string{"max-age=60", "preload"}}.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, c := range []struct {
		method, origin string
		code           int
		allowed        string
	}{
		{"GET", "", 418, ""},
		{"GET", "https://app.example.com", 418, "https://app.example.com"},
		{"OPTIONS", "https://app.example.com", 204, "https://app.example.com"},
		{"OPTIONS", "https://app.example.com.evil.com", 418, ""},
	} {
		req := httptest.NewRequest(c.method, "/api", nil)
		req.Header.Set("Origin", c.origin)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != c.code || w.Header().Get("Access-Control-Allow-Origin") != c.allowed || (w.Header().Get("Access-Control-Allow-Credentials") == "true") != (c.allowed != "") ||
			w.Header().Get("Strict-Transport-Security") != "max-age=60; preload" {
			t.Errorf("%s from %q: %d %v", c.method, c.origin, w.Code, w.Header())
		}
	}
	for _, bad := range []string{"example.com", "^example", "https://("} {
		if _, err := ParseOrigins([]string{bad}); err == nil {
			t.Errorf("origin %q is taken", bad)
		}
	}
	for text, ok := range map[string]bool{"max-age=1": true, "includeSubDomains": true, "preload": true, "": false, "max-age": false, "max-age=1=2": false, "x=1": false} {
		if err := CheckTransport([]string{text}); (err == nil) != ok {
			t.Errorf("directive %q: %v", text, err)
		}
	}
}

func certificate(t *testing.T, cn string, ip net.IP, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Who shakes hands with a server that has several certificates is shown the one for the name they ask for.
func TestCertificatesByName(t *testing.T) {
	choose, err := Choose([]Named{
		{Certificate: certificate(t, "own", nil, "a.example.com", "*.example.com")},
		{Certificate: certificate(t, "given", nil, "unused.example.org"), Names: []string{"b.example.com", "*.example.net"}},
		{Certificate: certificate(t, "second", nil, "a.example.com", "c.example.org")},
		{Certificate: certificate(t, "address", net.IPv4(127, 0, 0, 1))},
		{Certificate: certificate(t, "old.example.org", nil)},
	}, certificate(t, "default", nil))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	ln := tls.NewListener(srv.Listener, &tls.Config{GetCertificate: choose})
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	for name, want := range map[string]string{
		"a.example.com": "own", "x.example.com": "own", "b.example.com": "given", "y.example.net": "given", "B.Example.COM": "given",
		"c.example.org": "second", "unused.example.org": "default", "x.y.example.com": "default", "old.example.org": "old.example.org", "": "address",
	} {
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
		conn.Close()
	}
}

// Now and then a request over HTTP/2 ends its connection.
func TestGoAway(t *testing.T) {
	closed := map[int]int{}
	h := Options{GoAway: 0.02}.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 10_000 {
		for _, major := range []int{1, 2} {
			req := httptest.NewRequest("GET", "/api", http.NoBody)
			req.ProtoMajor = major
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, req); w.Header().Get("Connection") == "close" {
				closed[major]++
			}
		}
	}
	if closed[1] != 0 || closed[2] < 100 || closed[2] > 400 {
		t.Errorf("of 10,000 requests %d over HTTP/1.1 and %d over HTTP/2 end their connection, want 0 and about 200", closed[1], closed[2])
	}
}
