package request

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct{ method, url, want string }{
		{"GET", "/api/v1/namespaces/a/pods", "list /v1 a pods// "},
		{"GET", "/api/v1/namespaces/a/pods?watch=true", "watch /v1 a pods// "},
		{"GET", "/api/v1/namespaces/a/pods?watch=0", "list /v1 a pods// "},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list /v1  pods/x/ "},
		{"GET", "/api/v1/namespaces/a/pods/x", "get /v1 a pods/x/ "},
		{"HEAD", "/api/v1/namespaces/a/pods/x", "get /v1 a pods/x/ "},
		{"POST", "/api/v1/namespaces/a/pods/x/binding", "create /v1 a pods/x/binding "},
		{"GET", "/api/v1/namespaces/a/pods/x/proxy/b/c/", "get /v1 a pods/x/proxy b/c/"},
		{"GET", "/api/v1/namespaces/a", "get /v1 a namespaces/a/ "},
		{"PUT", "/api/v1/namespaces/a/finalize", "update /v1 a namespaces/a/finalize "},
		{"PUT", "/api/v1/namespaces/a/status", "update /v1 a namespaces/a/status "},
		{"DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps/v1 a deployments// "},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch apps/v1 a deployments/d/scale "},
		{"GET", "/api/v1/watch/namespaces/a/pods/x", "watch /v1 a pods/x/ "},
		{"GET", "/apis/apps/v1", "get"},
		{"GET", "/api", "get"},
		{"POST", "/healthz", "post"},
	} {
		req := httptest.NewRequest(tc.method, tc.url, http.NoBody)
		i := Parse(req, req.URL.Query())
		got := i.Verb
		if i.IsResource {
			got = fmt.Sprintf("%s %s/%s %s %s/%s/%s %s", i.Verb, i.Group, i.Version, i.Namespace, i.Resource, i.Name, i.Subresource, i.Rest)
		}
		if got != tc.want {
			t.Errorf("%s %s: got %q, want %q", tc.method, tc.url, got, tc.want)
		}
	}
}

func TestTimeout(t *testing.T) {
	for query, want := range map[string]string{
		"": "1m0s", "timeout=3s": "3s", "timeout=0s": "1m0s", "timeout=-1s": "1m0s", "timeout=3m": "1m0s",
		"timeout=x":            `invalid timeout specified in the request URL - time: invalid duration "x"`,
		"timeout=x&watch=true": "1m0s",
	} {
		req := httptest.NewRequest("GET", "/api/v1/pods?"+query, nil)
		q := req.URL.Query()
		d, err := Parse(req, q).Timeout(q, time.Minute)
		got := d.String()
		if err != nil {
			got = err.Error()
			if !apierrors.IsBadRequest(err) {
				t.Errorf("%s: %v is no bad request", query, err)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}
