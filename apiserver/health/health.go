// Package health answers /healthz, /livez and /readyz from named checks, and
// /metrics/slis from what they said.
package health

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one condition of health.
type Check struct {
	Name string
	OK   func() error
}

// Fine is a check that is passed by whoever answers at all.
func Fine() error { return nil }

// Once is a check that fails until done says true.
func Once(done func() bool) func() error {
	return func() error {
		if !done() {
			return errors.New("not finished")
		}
		return nil
	}
}

// Health is what a server says of itself. Safe for concurrent use.
type Health struct {
	checks, ready []Check
	starting      func() bool
	is            *prometheus.GaugeVec
	asked         *prometheus.CounterVec
	slis          http.Handler
}

// New returns a Health of checks, and of more that only /readyz asks. While starting says so,
// /livez takes for granted that what a start does will be done.
func New(checks, ready []Check, starting func() bool) *Health {
	h := &Health{
		checks: checks, ready: ready, starting: starting,
		is: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_healthcheck",
			Help: "This metric records the result of a single healthcheck."}, []string{"name", "type"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubernetes_healthchecks_total",
			Help: "This metric records the results of all healthcheck."}, []string{"name", "type", "status"}),
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(h.is, h.asked)
	h.slis = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return h
}

// Serve answers a request for one of the paths, or for one check below it, and
// reports whether there is one. ?exclude=name leaves checks out, ?verbose names them.
func (h *Health) Serve(w http.ResponseWriter, req *http.Request, query url.Values) bool {
	path := strings.TrimSuffix(req.URL.Path, "/")
	if path == "/metrics/slis" {
		h.slis.ServeHTTP(w, req)
		return true
	}
	endpoint, one, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	checks := h.checks
	switch endpoint {
	case "healthz", "livez":
	case "readyz":
		checks = slices.Concat(h.checks, h.ready)
	default:
		return false
	}
	var text strings.Builder
	failed, found := false, one == ""
	for _, check := range checks {
		if one != "" && check.Name != one {
			continue
		}
		found = true
		err := check.OK()
		if endpoint == "livez" && strings.HasPrefix(check.Name, "poststarthook/") && h.starting() {
			err = nil
		}
		h.count(check.Name, endpoint, err)
		switch {
		case slices.Contains(query["exclude"], check.Name):
			fmt.Fprintf(&text, "[+]%s excluded: ok\n", check.Name)
		case err != nil:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", check.Name)
		default:
			fmt.Fprintf(&text, "[+]%s ok\n", check.Name)
		}
	}
	if !found {
		return false
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch {
	case failed:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s%s check failed\n", text.String(), endpoint)
	case query.Has("verbose"):
		fmt.Fprintf(w, "%s%s check passed\n", text.String(), endpoint)
	default:
		fmt.Fprint(w, "ok")
	}
	return true
}

func (h *Health) count(name, endpoint string, err error) {
	value, status := 1.0, "success"
	if err != nil {
		value, status = 0, "error"
	}
	h.is.WithLabelValues(name, endpoint).Set(value)
	h.asked.WithLabelValues(name, endpoint, status).Inc()
}
