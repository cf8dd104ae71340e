package connect

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

func TestPagesLeadThroughTheProxy(t *testing.T) {
	const base = "/api/v1/namespaces/ns/services/web/proxy/"
	for _, tc := range []struct{ name, media, encoding, in, want string }{
		{"absolute path", "text/html", "", `<a href="/x/">x</a>`, `<a href="` + base + `x/">x</a>`},
		{"own address", "text/html; charset=utf-8", "", `<img src="http://10.0.0.9:80/i.png?a=1">`, `<img src="` + base + `i.png?a=1">`},
		{"the client's name for us", "text/html", "", `<form action="http://127.0.0.1:8001/do">`, `<form action="` + base + `do">`},
		{"relative, elsewhere, prefixed and unknown", "text/html", "",
			`<a href="x"><a href="https://example.com/y"><a href="` + base + `z"><p title="/t">&lt;</p><!-- "/c" -->`,
			`<a href="x"><a href="https://example.com/y"><a href="` + base + `z"><p title="/t">&lt;</p><!-- "/c" -->`},
		{"compressed", "text/html", "gzip", `<script src="/s.js"></script>`, `<script src="` + base + `s.js"></script>`},
		{"no page", "text/plain", "", `<a href="/x">`, `<a href="/x">`},
		{"unknown encoding", "text/html", "br", `<a href="/x">`, `<a href="/x">`},
	} {
		body := []byte(tc.in)
		if tc.encoding == "gzip" {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Write(body) //nolint:errcheck // a buffer
			w.Close()     //nolint:errcheck // a buffer
			body = b.Bytes()
		}
		resp := &http.Response{
			Header:  http.Header{"Content-Type": {tc.media}},
			Body:    io.NopCloser(bytes.NewReader(body)),
			Request: httptest.NewRequest("GET", "http://10.0.0.9:80/", nil),
		}
		if tc.encoding != "" {
			resp.Header.Set("Content-Encoding", tc.encoding)
		}
		if err := (mount{base, []string{"10.0.0.9:80", "127.0.0.1:8001"}}).rewrite(resp); err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s (%v)", tc.name, got, tc.want, err)
		}
	}
}

func TestRedirectsLeadThroughTheProxy(t *testing.T) {
	m := mount{"/api/v1/nodes/n/proxy/", []string{"10.0.0.9:80"}}
	for in, want := range map[string]string{
		"/login?x=1":               "/api/v1/nodes/n/proxy/login?x=1",
		"http://10.0.0.9:80/a/":    "/api/v1/nodes/n/proxy/a/",
		"http://example.com/a":     "http://example.com/a",
		"next":                     "next",
		"/api/v1/nodes/n/proxy/a":  "/api/v1/nodes/n/proxy/a",
		"/api/v1/nodes/n/proxyish": "/api/v1/nodes/n/proxy/api/v1/nodes/n/proxyish",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.through(u); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
