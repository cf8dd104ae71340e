package v2

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/store/embedded"
)

// FuzzRequest sends arbitrary requests, three times over, to a key space with
// something in it. Every answer is one of the protocol's, none a failure of
// the server, and the space can be loaded again.
func FuzzRequest(f *testing.F) {
	for _, seed := range []struct{ method, path, query, body string }{
		{"PUT", "/v2/keys/a", "", "value=1&ttl=5"},
		{"PUT", "/v2/keys/a/b", "prevExist=false", "value=x"},
		{"PUT", "/v2/keys/a", "", "prevValue=1&value=2"},
		{"PUT", "/v2/keys/a", "prevIndex=3", "value=2"},
		{"PUT", "/v2/keys/d/e/f", "dir=true", "ttl=1"},
		{"PUT", "/v2/keys/a", "", "refresh=true&ttl=9&noValueOnSuccess=1"},
		{"POST", "/v2/keys/queue", "", "value=job"},
		{"DELETE", "/v2/keys/dir", "recursive=true&dir=true", ""},
		{"DELETE", "/v2/keys/file", "prevValue=v", ""},
		{"GET", "/v2/keys/", "recursive=true&sorted=true&quorum=1", ""},
		{"GET", "/v2/keys/dir", "wait=true&waitIndex=1&recursive=1", ""},
		{"GET", "/v2/keys/dir", "wait=true&stream=true", ""},
		{"HEAD", "/v2/keys/_hidden/../dir//x", "", ""},
		{"GET", "/v2/stats/store", "", ""}, {"GET", "/v2/members", "", ""}, {"DELETE", "/v2/members/1", "", ""},
	} {
		f.Add(seed.method, seed.path, seed.query, seed.body)
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		target := (&url.URL{Path: path, RawQuery: query}).RequestURI()
		req, err := http.NewRequest(method, "http://h"+target, nil)
		if err != nil || !strings.HasPrefix(req.URL.Path, "/v2") {
			return
		}
		db, err := embedded.Open(embedded.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		cfg := Config{Store: db, Clock: clock.RealClock{}, MaxRequestBytes: 4096,
			Member: Member{ClientURLs: func() []string { return nil }}}
		k, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		k.Register(mux)
		send := func(method, target, body string) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond) // for waits
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, req)
			if rec.Code >= 500 && ctx.Err() == nil {
				t.Fatalf("%s %s %q: %d %s", method, target, body, rec.Code, rec.Body)
			}
		}
		send("PUT", "http://h/v2/keys/dir/file", "value=v")
		send("PUT", "http://h/v2/keys/file", "value=v")
		for range 3 {
			send(method, "http://h"+target, body)
		}
		if _, err := New(cfg); err != nil {
			t.Fatalf("what was stored does not load: %v", err)
		}
	})
}
