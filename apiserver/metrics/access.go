package metrics

import (
	"bytes"
	"log"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/auth"
)

// access counts who comes, and how many are turned away.
type access struct {
	attempts, users, decisions *prometheus.CounterVec
	asking, deciding           *prometheus.HistogramVec
	authenticated, authorized  map[string]outcome
	known                      map[string]prometheus.Counter // of users
	left                       prometheus.Histogram
	handshakes                 prometheus.Counter
	bound, legacy, stale       prometheus.Counter // tokens of service accounts
	manual, auto, invalid      prometheus.Counter // of the legacy ones
	terminations, aborts       *prometheus.CounterVec
}

// outcome are the counters of one result.
type outcome struct {
	count prometheus.Counter
	took  prometheus.Observer
}

func newAccess() *access {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	took := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"result"})
	}
	hours := []float64{0, 0.5, 1, 2, 6, 12, 24, 2 * 24, 4 * 24, 7 * 24, 30 * 24, 90 * 24, 180 * 24, 360 * 24}
	for i := range hours {
		hours[i] *= 3600
	}
	const request = " for each group, version, verb, resource, subresource and scope"
	tokens := func(kind, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "serviceaccount_" + kind + "_total", Help: "Cumulative " + help + " used"})
	}
	a := &access{
		bound:        tokens("valid_tokens", "valid projected service account tokens"),
		stale:        tokens("stale_tokens", "stale projected service account tokens"),
		legacy:       tokens("legacy_tokens", "legacy service account tokens"),
		manual:       tokens("legacy_manual_token_uses", "manually created legacy tokens"),
		auto:         tokens("legacy_auto_token_uses", "auto-generated legacy tokens"),
		invalid:      tokens("invalid_legacy_auto_token_uses", "invalid auto-generated legacy tokens"),
		attempts:     count("authentication_attempts", "Counter of authenticated attempts.", "result"),
		users:        count("authenticated_user_requests", "Counter of authenticated requests broken out by username.", "username"),
		decisions:    count("authorization_attempts_total", "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.", "result"),
		asking:       took("authentication_duration_seconds", "Authentication duration in seconds broken out by result."),
		deciding:     took("authorization_duration_seconds", "Authorization duration in seconds broken out by result."),
		terminations: count("apiserver_request_terminations_total", "Number of requests which apiserver terminated in self-defense.", "code", "component", "group", "resource", "scope", "subresource", "verb", "version"),
		aborts:       count("apiserver_request_aborts_total", "Number of requests which apiserver aborted possibly due to a timeout,"+request, "group", "resource", "scope", "subresource", "verb", "version"),
		handshakes:   prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_tls_handshake_errors_total", Help: "Number of requests dropped with 'TLS handshake error from' error"}),
		left: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "apiserver_client_certificate_expiration_seconds",
			Help: "Distribution of the remaining lifetime on the certificate used to authenticate a request.", Buckets: hours}),
		authenticated: map[string]outcome{}, authorized: map[string]outcome{}, known: map[string]prometheus.Counter{},
	}
	for _, r := range []string{"success", "failure", "error"} {
		a.authenticated[r] = outcome{a.attempts.WithLabelValues(r), a.asking.WithLabelValues(r)}
	}
	for _, r := range []string{"allowed", "denied", "no-opinion", "error"} {
		a.authorized[r] = outcome{a.decisions.WithLabelValues(r), a.deciding.WithLabelValues(r)}
	}
	for _, name := range knownUsers {
		a.known[name] = a.users.WithLabelValues(name)
	}
	return a
}

var knownUsers = []string{"admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default", "email_id", "other"}

func (a *access) collectors() []prometheus.Collector {
	return []prometheus.Collector{a.attempts, a.users, a.decisions, a.asking, a.deciding, a.terminations, a.aborts, a.handshakes, a.left,
		a.bound, a.legacy, a.stale, a.manual, a.auto, a.invalid}
}

func (o outcome) observe(took time.Duration) {
	o.count.Inc()
	o.took.Observe(took.Seconds())
}

// Authenticated counts an answer to who asks: a user, nobody, or an error.
func (m *Metrics) Authenticated(req *http.Request, who auth.Identity, ok bool, err error, took time.Duration) {
	u := who.User
	switch {
	case err != nil:
		if auth.RemarksOf(err).Says("authentication.k8s.io/legacy-token-invalidated") {
			m.access.legacy.Inc()
			m.access.invalid.Inc()
		}
		m.access.authenticated["error"].observe(took)
		return
	case !ok:
		m.access.authenticated["failure"].observe(took)
		return
	}
	m.access.authenticated["success"].observe(took)
	c := m.access.known[u.Name]
	switch {
	case c != nil:
	case strings.Contains(u.Name, "@"):
		c = m.access.known["email_id"]
	default:
		c = m.access.known["other"]
	}
	c.Inc()
	id := ""
	if list := u.Extra[auth.CredentialIDKey]; len(list) > 0 {
		id = list[0]
	}
	switch {
	case strings.HasPrefix(id, "X509") && req.TLS != nil && len(req.TLS.PeerCertificates) > 0:
		m.access.left.Observe(time.Until(req.TLS.PeerCertificates[0].NotAfter).Seconds())
	case !strings.HasPrefix(u.Name, "system:serviceaccount:") || req.Header.Get("Authorization") == "":
	case who.Remarks.Says("authentication.k8s.io/stale-token"):
		m.access.stale.Inc()
	case strings.HasPrefix(id, "JTI"):
		m.access.bound.Inc()
	default: // those kept in Secrets have no identity of their own
		m.access.legacy.Inc()
		if who.Remarks.Says("authentication.k8s.io/legacy-token-autogenerated-secret") {
			m.access.auto.Inc()
		} else {
			m.access.manual.Inc()
		}
	}
}

// Authorized counts a decision.
func (m *Metrics) Authorized(d auth.Decision, err error, took time.Duration) {
	result := "no-opinion"
	switch {
	case d == auth.Allow:
		result = "allowed"
	case err != nil:
		result = "error"
	case d == auth.Deny:
		result = "denied"
	}
	m.access.authorized[result].observe(took)
}

// Terminated counts a request that the server does not finish, because it has too many or that one takes too long.
func (m *Metrics) Terminated(r Request, code int) {
	m.access.terminations.WithLabelValues(strconv.Itoa(code), "apiserver", r.Group, r.Resource, r.scope(), r.Subresource, r.verb(), r.Version).Inc()
}

// Aborted counts a request whose answer was cut off.
func (m *Metrics) Aborted(r Request) {
	m.access.aborts.WithLabelValues(r.Group, r.Resource, r.scope(), r.Subresource, r.verb(), r.Version).Inc()
}

// ErrorLog is for an http.Server, whose failed handshakes it counts; what it is told goes to a debug log.
func (m *Metrics) ErrorLog(h slog.Handler) *log.Logger {
	return log.New(&serverLog{m.access.handshakes, slog.NewLogLogger(h, slog.LevelDebug)}, "", 0)
}

type serverLog struct {
	handshakes prometheus.Counter
	to         *log.Logger
}

// Write implements io.Writer.
func (l *serverLog) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("TLS handshake error from")) {
		l.handshakes.Inc()
	}
	l.to.Print(string(p))
	return len(p), nil
}
