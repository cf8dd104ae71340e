package metrics

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

func TestMetrics(t *testing.T) {
	st, err := embedded.Open(embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	m := New([]store.Store{st})
	pods := Request{Group: "", Version: "v1", Resource: "pods", Namespaced: true}
	with := func(edit func(*Request)) Request { r := pods; edit(&r); return r }
	m.Observe(with(func(r *Request) { r.Verb = "list" }), 200, 300*time.Millisecond, 280*time.Millisecond, 12_345)
	m.Observe(with(func(r *Request) { r.Verb, r.DryRun = "create", true }), 201, time.Millisecond, 0, 100)
	m.Observe(with(func(r *Request) { r.Verb, r.Named, r.Apply, r.Subresource = "patch", true, true, "status" }), 409, time.Millisecond, 0, 100)
	m.Observe(with(func(r *Request) { r.Verb = "watch" }), 200, time.Hour, 0, 1<<30)
	m.Observe(Request{}, 404, time.Millisecond, 0, 1)
	ended := m.Stream(with(func(r *Request) { r.Verb = "watch" }))
	m.Stream(with(func(r *Request) { r.Verb = "watch" }))
	ended()
	m.Deprecated(Request{Version: "v1", Resource: "endpoints"})

	req := httptest.NewRequest("GET", "/", nil)
	req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{NotAfter: time.Now().Add(90 * time.Minute)}}}
	byCertificate := map[string][]string{auth.CredentialIDKey: {"X509SHA256=1"}}
	m.Authenticated(req, auth.User{Name: "jane@example.com", Extra: byCertificate}, true, nil, time.Millisecond)
	m.Authenticated(req, auth.User{Name: "kubelet"}, true, nil, time.Millisecond)
	m.Authenticated(req, auth.User{}, false, nil, time.Millisecond)
	m.Authenticated(req, auth.User{}, false, errors.New("expired"), 3*time.Millisecond)
	req.Header.Set("Authorization", "Bearer x")
	m.Authenticated(req, auth.User{Name: "system:serviceaccount:a:b", Extra: map[string][]string{auth.CredentialIDKey: {"JTI=1"}}}, true, nil, time.Millisecond)
	m.Authenticated(req, auth.User{Name: "system:serviceaccount:a:b"}, true, nil, time.Millisecond)
	m.Authorized(auth.Allow, nil, time.Millisecond)
	m.Authorized(auth.NoOpinion, errors.New("no answer"), time.Millisecond)
	m.Terminated(with(func(r *Request) { r.Verb = "list" }), 429)
	m.Aborted(with(func(r *Request) { r.Verb, r.Named = "get", true }))
	log := m.ErrorLog(slog.DiscardHandler)
	log.Print("http: TLS handshake error from 192.0.2.1:1: EOF")
	log.Print("http: something else")

	rec := httptest.NewRecorder()
	m.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	body, _ := io.ReadAll(rec.Body)
	for _, want := range []string{
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_total{code="201",component="apiserver",dry_run="All",group="",resource="pods",scope="resource",subresource="",verb="POST",version="v1"} 1`,
		`apiserver_request_total{code="409",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="status",verb="APPLY",version="v1"} 1`,
		`apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="",scope="",subresource="",verb="other",version=""} 1`,
		`apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1",le="0.4"} 1`,
		`apiserver_request_sli_duration_seconds_bucket{component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1",le="0.05"} 1`,
		`apiserver_response_sizes_sum{component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 12345`,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="WATCH",version="v1"} 1`,
		`apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1`,
		`apiserver_client_certificate_expiration_seconds_bucket{le="3600"} 0`,
		`apiserver_client_certificate_expiration_seconds_bucket{le="7200"} 1`,
		`apiserver_client_certificate_expiration_seconds_count 1`,
		`authenticated_user_requests{username="email_id"} 1`,
		`authenticated_user_requests{username="kubelet"} 1`,
		`authentication_attempts{result="success"} 4`,
		`serviceaccount_valid_tokens_total 1`,
		`serviceaccount_legacy_tokens_total 1`,
		`authentication_attempts{result="failure"} 1`,
		`authentication_duration_seconds_bucket{result="error",le="0.002"} 0`,
		`authentication_duration_seconds_bucket{result="error",le="0.004"} 1`,
		`authorization_attempts_total{result="allowed"} 1`,
		`authorization_attempts_total{result="error"} 1`,
		`apiserver_request_terminations_total{code="429",component="apiserver",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_aborts_total{group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 1`,
		`apiserver_tls_handshake_errors_total 1`,
		`apiserver_storage_size_bytes{storage_cluster_id="etcd-0"}`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(string(body), `duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="WATCH"`) {
		t.Error("how long a watch was open is no latency")
	}
}

func TestStorage(t *testing.T) {
	s := NewStorage()
	pods := schema.GroupResource{Resource: "pods"}
	s.Of(pods).Asked(Create, time.Now(), nil)
	s.Of(pods).Asked(Create, time.Now().Add(-3*time.Second), errors.New("no space"))
	s.Of(pods).Asked(Delete, time.Now(), nil)
	s.Of(pods).Listed(10, 3)
	s.Of(pods).Listed(10, 4)
	(*Storage)(nil).Of(pods).Listed(1, 1)
	events := s.Events(pods.WithVersion("v1"))
	for _, size := range []int{1, 1024, 1025, 1 << 17, 1<<17 + 1} {
		events.Sent(size)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`etcd_requests_total{group="",operation="create",resource="pods"} 2`,
		`etcd_request_errors_total{group="",operation="create",resource="pods"} 1`,
		`etcd_request_duration_seconds_bucket{group="",operation="create",resource="pods",le="2"} 1`,
		`etcd_request_duration_seconds_count{group="",operation="delete",resource="pods"} 1`,
		`apiserver_storage_list_total{group="",index="",resource="pods",storage="watchcache"} 2`,
		`apiserver_storage_list_fetched_objects_total{group="",index="",resource="pods",storage="watchcache"} 20`,
		`apiserver_storage_list_evaluated_objects_total{group="",resource="pods",storage="watchcache"} 20`,
		`apiserver_storage_list_returned_objects_total{group="",resource="pods",storage="watchcache"} 7`,
		`apiserver_watch_events_total{group="",resource="pods",version="v1"} 5`,
		`apiserver_watch_events_sizes_bucket{group="",resource="pods",version="v1",le="1024"} 2`,
		`apiserver_watch_events_sizes_bucket{group="",resource="pods",version="v1",le="2048"} 3`,
		`apiserver_watch_events_sizes_bucket{group="",resource="pods",version="v1",le="131072"} 4`,
		`apiserver_watch_events_sizes_bucket{group="",resource="pods",version="v1",le="+Inf"} 5`,
		`apiserver_watch_events_sizes_sum{group="",resource="pods",version="v1"} 264195`,
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, rec.Body)
		}
	}
}
