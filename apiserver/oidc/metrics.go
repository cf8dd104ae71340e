package oidc

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count what issuers do, under upstream's names. nil counts nothing.
type Metrics struct {
	server         string // hash of the server's identity
	latency        *prometheus.HistogramVec
	fetches, known *prometheus.GaugeVec
}

// NewMetrics returns metrics that are not registered yet; server is the hash of the server's identity.
func NewMetrics(server string) *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_authentication_jwt_authenticator_" + name, Help: help}, labels)
	}
	return &Metrics{
		server: server,
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_authentication_jwt_authenticator_latency_seconds",
			Help: "Latency of jwt authentication operations in seconds. This is the time spent authenticating a token for cache miss only " +
				"(i.e. when the token is not found in the cache).",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result", "jwt_issuer_hash"}),
		fetches: gauge("jwks_fetch_last_timestamp_seconds",
			"Timestamp of the last successful or failed JWKS fetch split by result, api server identity and jwt issuer for the JWT authenticator.",
			"result", "jwt_issuer_hash", "apiserver_id_hash"),
		known: gauge("jwks_fetch_last_key_set_info",
			"Information about the last JWKS fetched by the JWT authenticator with hash as label, split by api server identity and jwt issuer.",
			"jwt_issuer_hash", "apiserver_id_hash", "hash"),
	}
}

// Collectors are what is to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.latency, m.fetches, m.known}
}

// Hash is how upstream's metrics name issuers, servers and files.
func Hash(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func (m *Metrics) authenticated(issuer string, err error, took time.Duration) {
	if m == nil {
		return
	}
	result := "success"
	if err != nil {
		result = "failure"
	}
	m.latency.WithLabelValues(result, Hash([]byte(issuer))).Observe(took.Seconds())
}

// fetched returns what is told of each answer to a question for an issuer's keys.
func (m *Metrics) fetched(issuer string) func([]byte, error) {
	if m == nil {
		return nil
	}
	of := Hash([]byte(issuer))
	return func(body []byte, err error) {
		result := "success"
		if err == nil {
			err = json.Unmarshal(body, &jose.JSONWebKeySet{})
		}
		if err != nil {
			result = "failure"
		} else {
			m.known.DeletePartialMatch(prometheus.Labels{"jwt_issuer_hash": of})
			m.known.WithLabelValues(of, m.server, Hash(body)).Set(1)
		}
		m.fetches.WithLabelValues(result, of, m.server).SetToCurrentTime()
	}
}

// Forget drops what is counted of the keys of an issuer that is no longer configured.
func (m *Metrics) Forget(issuer string) {
	of := prometheus.Labels{"jwt_issuer_hash": Hash([]byte(issuer))}
	m.known.DeletePartialMatch(of)
	m.fetches.DeletePartialMatch(of)
}
