// Package audit records who did what, when and with what outcome, as
// upstream's audit.k8s.io/v1 events. A policy says of each request how much is
// recorded; the events go to a file, to a webhook, or to both. What is in the
// events is up to the policy, but for the bodies of Secrets, of token requests
// and of token reviews: these are recorded at level Metadata at most, where
// upstream would log them if told to. None is recorded by default.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/skiff-project/skiff/auth"
)

// Event is audit.k8s.io/v1 Event.
type Event struct {
	metav1.TypeMeta          `json:",inline"`
	Level                    Level                      `json:"level"`
	AuditID                  types.UID                  `json:"auditID"`
	Stage                    Stage                      `json:"stage"`
	RequestURI               string                     `json:"requestURI"`
	Verb                     string                     `json:"verb"`
	User                     authenticationv1.UserInfo  `json:"user"`
	ImpersonatedUser         *authenticationv1.UserInfo `json:"impersonatedUser,omitempty"`
	AuthenticationMetadata   *AuthenticationMetadata    `json:"authenticationMetadata,omitempty"`
	SourceIPs                []string                   `json:"sourceIPs,omitempty"`
	UserAgent                string                     `json:"userAgent,omitempty"`
	ObjectRef                *ObjectReference           `json:"objectRef,omitempty"`
	ResponseStatus           *metav1.Status             `json:"responseStatus,omitempty"`
	RequestObject            json.RawMessage            `json:"requestObject,omitempty"`
	ResponseObject           json.RawMessage            `json:"responseObject,omitempty"`
	RequestReceivedTimestamp metav1.MicroTime           `json:"requestReceivedTimestamp"`
	StageTimestamp           metav1.MicroTime           `json:"stageTimestamp"`
	Annotations              map[string]string          `json:"annotations,omitempty"`
}

// AuthenticationMetadata is how the user was found.
type AuthenticationMetadata struct {
	ImpersonationConstraint string `json:"impersonationConstraint,omitempty"` // the verb of the constrained mode
}

// ObjectReference is what a request is about.
type ObjectReference struct {
	Resource        string    `json:"resource,omitempty"`
	Namespace       string    `json:"namespace,omitempty"`
	Name            string    `json:"name,omitempty"`
	UID             types.UID `json:"uid,omitempty"`
	APIGroup        string    `json:"apiGroup,omitempty"`
	APIVersion      string    `json:"apiVersion,omitempty"`
	ResourceVersion string    `json:"resourceVersion,omitempty"`
	Subresource     string    `json:"subresource,omitempty"`
}

// Config makes an Auditor.
type Config struct {
	Policy *Policy // nil: nothing is recorded
	Log    *LogConfig
	// Webhook, when set, is sent the events.
	Webhook *WebhookConfig
	Logger  *slog.Logger // default: discard
}

// Auditor records requests. The nil Auditor records none, at no cost.
type Auditor struct {
	policy   *Policy
	sinks    []sink
	events   prometheus.Counter
	errors   *prometheus.CounterVec
	levels   *prometheus.CounterVec
	rejected prometheus.Counter
	log      *slog.Logger
}

// sink is where events go. A batching one returns at once.
type sink interface {
	name() string
	// put is handed an event it must not keep, and the event as JSON, which it may.
	put(e *Event, text []byte) error
	strict() bool // a request whose first event is not recorded is refused
	close()
}

// New returns an Auditor; nil where nothing would be recorded.
func New(c Config) (*Auditor, error) {
	if c.Policy == nil || c.Log == nil && c.Webhook == nil {
		return nil, nil
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Auditor{
		policy: c.Policy, log: c.Logger,
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_audit_event_total",
			Help: "Counter of audit events generated and sent to the audit backend."}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_error_total",
			Help: "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error."}, []string{"plugin"}),
		levels: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_level_total",
			Help: "Counter of policy levels for audit events (1 per request)."}, []string{"level"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_audit_requests_rejected_total",
			Help: "Counter of apiserver requests rejected due to an error in audit logging backend."}),
	}
	if c.Log != nil {
		s, err := newLog(*c.Log, a.lost)
		if err != nil {
			return nil, err
		}
		a.sinks = append(a.sinks, c.Log.Truncate.within(s, a.lost))
	}
	if c.Webhook != nil {
		s, err := newWebhook(*c.Webhook, a.lost)
		if err != nil {
			a.Close()
			return nil, err
		}
		a.sinks = append(a.sinks, c.Webhook.Truncate.within(s, a.lost))
	}
	return a, nil
}

// Collectors are the Auditor's metrics; none for a nil one.
func (a *Auditor) Collectors() []prometheus.Collector {
	if a == nil {
		return nil
	}
	return []prometheus.Collector{a.events, a.errors, a.levels, a.rejected}
}

// Close writes what is still buffered. No request may be under way.
func (a *Auditor) Close() {
	if a == nil {
		return
	}
	for _, s := range a.sinks {
		s.close()
	}
}

// lost counts events that a sink did not record.
func (a *Auditor) lost(plugin string, n int, err error) {
	a.errors.WithLabelValues(plugin).Add(float64(n))
	a.log.Error("audit events are lost", "backend", plugin, "events", n, "error", err)
}

// Trail records one request, whose handler is its only user. The nil Trail
// records nothing.
type Trail struct {
	a       *Auditor
	verdict verdict
	event   Event
}

// ErrNotRecorded: in mode blocking-strict the beginning of a request could not be recorded.
var ErrNotRecorded = errors.New("failed to store audit event")

// maxUserAgent bounds what a client may put into each event.
const maxUserAgent = 1024

// Begin decides what is recorded of a request and records that it came; nil:
// nothing. Its only error is ErrNotRecorded.
func (a *Auditor) Begin(req *http.Request, at auth.Attributes, id string, received time.Time) (*Trail, error) {
	if a == nil {
		return nil, nil
	}
	v := a.policy.decide(at)
	a.levels.WithLabelValues(string(v.level)).Inc()
	if v.level == LevelNone {
		return nil, nil
	}
	t := &Trail{a: a, verdict: v, event: Event{
		TypeMeta: metav1.TypeMeta{Kind: "Event", APIVersion: "audit.k8s.io/v1"}, Level: v.level, AuditID: types.UID(id),
		RequestURI: req.URL.RequestURI(), Verb: at.Verb, User: userInfo(at.User), UserAgent: req.UserAgent(),
		RequestReceivedTimestamp: metav1.NewMicroTime(received),
	}}
	e := &t.event
	if len(e.UserAgent) > maxUserAgent {
		e.UserAgent = e.UserAgent[:maxUserAgent] + "...TRUNCATED"
	}
	for _, ip := range utilnet.SourceIPs(req) {
		e.SourceIPs = append(e.SourceIPs, ip.String())
	}
	if at.ResourceRequest {
		e.ObjectRef = &ObjectReference{Namespace: at.Namespace, Name: at.Name, Resource: at.Resource, Subresource: at.Subresource,
			APIGroup: at.APIGroup, APIVersion: at.APIVersion}
	}
	if !t.record(StageRequestReceived, received) {
		a.rejected.Inc()
		return nil, ErrNotRecorded
	}
	return t, nil
}

func userInfo(u auth.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: slices.Clone(u.Groups)}
	for k, v := range u.Extra {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = authenticationv1.ExtraValue(v)
	}
	return info
}

// Failed is a request nobody could be found for.
func (t *Trail) Failed(req *http.Request) {
	if t == nil {
		return
	}
	var tried []string
	if _, _, ok := req.BasicAuth(); ok {
		tried = append(tried, "basic")
	}
	if scheme, _, ok := strings.Cut(strings.TrimSpace(req.Header.Get("Authorization")), " "); ok && strings.EqualFold(scheme, "bearer") {
		tried = append(tried, "bearer")
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		tried = append(tried, "x509")
	}
	msg := "Authentication failed, no credentials provided"
	if len(tried) > 0 {
		msg = "Authentication failed, attempted: " + strings.Join(tried, ", ")
	}
	t.event.ResponseStatus = &metav1.Status{Message: msg, Code: http.StatusUnauthorized}
	t.record(StageResponseStarted, time.Now())
}

// Impersonated names whom the request is done as, and the verb of the constrained mode that allowed that, if one did.
func (t *Trail) Impersonated(u auth.User, constraint string) {
	if t == nil {
		return
	}
	info := userInfo(u)
	t.event.ImpersonatedUser = &info
	if constraint != "" {
		t.event.AuthenticationMetadata = &AuthenticationMetadata{ImpersonationConstraint: constraint}
	}
}

// Annotate adds an annotation; the first of a key stays.
func (t *Trail) Annotate(key, value string) {
	if t == nil {
		return
	}
	if t.event.Annotations == nil {
		t.event.Annotations = map[string]string{}
	}
	if _, ok := t.event.Annotations[key]; !ok {
		t.event.Annotations[key] = value
	}
}

// Admitted adds an annotation of an admission plugin; one that shows a part of
// the body only where the event shows bodies.
func (t *Trail) Admitted(key, value string, body bool) {
	if t != nil && (!body || t.verdict.level.atLeast(LevelRequest)) {
		t.Annotate(key, value)
	}
}

// Authorized notes the authorizer's decision.
func (t *Trail) Authorized(d auth.Decision, reason string, err error) {
	if t == nil {
		return
	}
	switch {
	case d == auth.Allow:
		t.Annotate("authorization.k8s.io/decision", "allow")
	case err != nil:
		t.Annotate("authorization.k8s.io/reason", "internal error")
		return
	default:
		t.Annotate("authorization.k8s.io/decision", "forbid")
	}
	t.Annotate("authorization.k8s.io/reason", reason)
}

// Request notes the object in the request: obj, and what makes its JSON.
func (t *Trail) Request(obj any, encode func() ([]byte, error)) {
	if t == nil {
		return
	}
	if m, ok := obj.(metav1.Object); ok && t.event.ObjectRef != nil {
		ref := t.event.ObjectRef
		first(&ref.Namespace, m.GetNamespace())
		first(&ref.Name, m.GetName())
		first(&ref.UID, m.GetUID())
		first(&ref.ResourceVersion, m.GetResourceVersion())
	}
	if t.verdict.level.atLeast(LevelRequest) {
		t.event.RequestObject = t.body(encode)
	}
}

func first[T ~string](dst *T, value T) {
	if *dst == "" {
		*dst = value
	}
}

// Patch notes a patch, as JSON.
func (t *Trail) Patch(encode func() ([]byte, error)) {
	if t != nil && t.verdict.level.atLeast(LevelRequest) {
		t.event.RequestObject = t.body(encode)
	}
}

// Status notes a Status that is the answer.
func (t *Trail) Status(st *metav1.Status) {
	if t != nil {
		t.event.ResponseStatus = &metav1.Status{Status: st.Status, Message: st.Message, Reason: st.Reason, Details: st.Details, Code: st.Code}
	}
}

// WantsResponse tells whether Response does anything.
func (t *Trail) WantsResponse() bool {
	return t != nil && t.verdict.level.atLeast(LevelRequestResponse)
}

// Response notes the object in the answer.
func (t *Trail) Response(encode func() ([]byte, error)) {
	if t.WantsResponse() {
		t.event.ResponseObject = t.body(encode)
	}
}

func (t *Trail) body(encode func() ([]byte, error)) json.RawMessage {
	data, err := encode()
	if err == nil && t.verdict.omitManagedFields {
		data, err = withoutManagedFields(data)
	}
	var out bytes.Buffer
	if err == nil {
		err = json.Compact(&out, data)
	}
	if err != nil {
		t.a.log.Error("an object has no form for the audit log", "auditID", t.event.AuditID, "error", err)
		return nil
	}
	return out.Bytes()
}

// withoutManagedFields takes them off an object, the items of a list and the rows of a table.
func withoutManagedFields(data []byte) ([]byte, error) {
	if !bytes.Contains(data, []byte(`"managedFields"`)) {
		return data, nil
	}
	var obj map[string]any
	if err := json.Unmarshal(data, &obj); err != nil {
		return nil, err
	}
	strip := func(o any) {
		if m, ok := o.(map[string]any); ok {
			if meta, ok := m["metadata"].(map[string]any); ok {
				delete(meta, "managedFields")
			}
		}
	}
	strip(obj)
	for _, list := range []string{"items", "rows"} {
		items, _ := obj[list].([]any)
		for _, it := range items {
			strip(it)
			if row, ok := it.(map[string]any); ok && list == "rows" {
				strip(row["object"])
			}
		}
	}
	return json.Marshal(obj)
}

// Started records that a long-running answer begins.
func (t *Trail) Started(code int) {
	if t == nil {
		return
	}
	t.code(code)
	t.record(StageResponseStarted, time.Now())
}

func (t *Trail) code(code int) {
	if t.event.ResponseStatus == nil {
		t.event.ResponseStatus = &metav1.Status{}
	}
	t.event.ResponseStatus.Code = int32(code)
}

// End records the outcome: the answer's code (0: nothing was sent), or what the
// handler panicked with.
func (t *Trail) End(code int, panicked any) {
	if t == nil {
		return
	}
	if panicked != nil {
		t.event.ResponseStatus = &metav1.Status{Code: http.StatusInternalServerError, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonInternalError, Message: fmt.Sprintf("APIServer panic'd: %v", panicked)}
		t.record(StagePanic, time.Now())
		return
	}
	if code == 0 {
		t.event.ResponseStatus = &metav1.Status{Code: http.StatusOK, Status: metav1.StatusSuccess, Message: "Connection closed early"}
	} else {
		t.code(code)
	}
	t.record(StageResponseComplete, time.Now())
}

// record sends the event as it is now. It is false where the request must not go on.
func (t *Trail) record(stage Stage, at time.Time) bool {
	if t.verdict.omits(stage) {
		return true
	}
	t.event.Stage, t.event.StageTimestamp = stage, metav1.NewMicroTime(at)
	t.a.events.Inc()
	text, err := json.Marshal(&t.event)
	good := true
	for _, s := range t.a.sinks {
		serr := err
		if serr == nil {
			serr = s.put(&t.event, text)
		}
		if serr != nil {
			t.a.lost(s.name(), 1, serr)
			good = good && !(s.strict() && stage == StageRequestReceived)
		}
	}
	return good
}

// legacy is the event as one line of text, upstream's format "legacy".
func (e *Event) legacy() string {
	username, groups, as, asGroups, namespace, response := "<none>", "<none>", "<self>", "<lookup>", "<none>", "<deferred>"
	or := func(dst *string, value string) {
		if value != "" {
			*dst = value
		}
	}
	quoted := func(list []string) string {
		var out []string
		for _, g := range list {
			out = append(out, fmt.Sprintf("%q", g))
		}
		return strings.Join(out, ",")
	}
	or(&username, e.User.Username)
	or(&groups, quoted(e.User.Groups))
	if e.ImpersonatedUser != nil {
		or(&as, e.ImpersonatedUser.Username)
		or(&asGroups, quoted(e.ImpersonatedUser.Groups))
	}
	if e.ObjectRef != nil {
		or(&namespace, e.ObjectRef.Namespace)
	}
	if e.ResponseStatus != nil {
		response = fmt.Sprint(e.ResponseStatus.Code)
	}
	ip := "<unknown>"
	if len(e.SourceIPs) > 0 {
		ip = e.SourceIPs[0]
	}
	return fmt.Sprintf("%s AUDIT: id=%q stage=%q ip=%q method=%q user=%q groups=%q as=%q asgroups=%q user-agent=%q namespace=%q uri=%q response=\"%s\"\n",
		e.RequestReceivedTimestamp.Format(time.RFC3339Nano), e.AuditID, e.Stage, ip, e.Verb, username, groups, as, asGroups, e.UserAgent, namespace, e.RequestURI, response)
}

// AnnotateAll adds annotations whose keys begin with prefix.
func (t *Trail) AnnotateAll(prefix string, values map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		t.Annotate(prefix+k, values[k])
	}
}
