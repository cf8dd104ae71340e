package clientmetrics_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"github.com/skiff-project/skiff/internal/clientmetrics"
)

// installed is for all runs of the test: only the first call in a process counts.
var installed = sync.OnceValue(func() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	clientmetrics.Install(registry)
	return registry
})

func TestInstall(t *testing.T) {
	registry := installed()
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	client := kubernetes.NewForConfigOrDie(&rest.Config{Host: srv.URL})
	if _, err := client.CoreV1().Pods("default").Get(t.Context(), "x", metav1.GetOptions{}); err == nil {
		t.Fatal("there is a pod")
	}
	host := strings.TrimPrefix(srv.URL, "http://")
	name := "of " + host // no other run's
	q := workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[string](), workqueue.TypedRateLimitingQueueConfig[string]{Name: name})
	defer q.ShutDown()
	q.Add("a")
	q.Add("b")
	key, _ := q.Get()
	q.Done(key)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`rest_client_requests_total{code="404",host="` + host + `",method="GET"} 1`,
		`rest_client_request_duration_seconds_count{host="` + host + `",verb="GET"} 1`,
		`rest_client_rate_limiter_duration_seconds_count{host="` + host + `",verb="GET"} 1`,
		`workqueue_adds_total{name="` + name + `"} 2`,
		`workqueue_depth{name="` + name + `"} 1`,
		`workqueue_queue_duration_seconds_count{name="` + name + `"} 1`,
		`workqueue_work_duration_seconds_bucket{name="` + name + `",le="10"} 1`,
		`workqueue_retries_total{name="` + name + `"} 0`,
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, rec.Body)
		}
	}
}
