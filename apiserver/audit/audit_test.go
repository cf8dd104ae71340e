package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/auth"
)

const policyText = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [system:kube-proxy], verbs: [watch]}
- {level: None, userGroups: [system:nodes]}
- {level: Metadata, resources: [{group: "", resources: [secrets, configmaps, serviceaccounts/token]}]}
- {level: Request, resources: [{group: "", resources: ["pods/*"]}], omitStages: [ResponseStarted]}
- {level: RequestResponse, namespaces: [shop], resources: [{group: apps}], omitManagedFields: true}
- {level: Metadata, resources: [{group: "*", resources: ["*/scale"]}]}
- {level: Metadata, resources: [{group: "", resources: [nodes], resourceNames: [n1]}]}
- {level: None, nonResourceURLs: ["/healthz*", /version]}
- {level: Metadata, nonResourceURLs: ["*"]}
`

func policy(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	p := policy(t, policyText)
	at := func(user, verb, ns, group, resource string) auth.Attributes {
		res, sub, _ := strings.Cut(resource, "/")
		res, name, _ := strings.Cut(res, ":")
		return auth.Attributes{User: auth.User{Name: user, Groups: []string{"of-" + user}}, Verb: verb, Namespace: ns, APIGroup: group, Resource: res, Subresource: sub, Name: name, ResourceRequest: true}
	}
	node := at("n", "get", "", "", "secrets")
	node.User.Groups = append(node.User.Groups, auth.GroupNodes)
	path := func(p string) auth.Attributes { return auth.Attributes{Verb: "get", Path: p} }
	for _, c := range []struct {
		what string
		a    auth.Attributes
		want Level
	}{
		{"user and verb", at("system:kube-proxy", "watch", "", "", "secrets"), LevelNone},
		{"the user, another verb", at("system:kube-proxy", "get", "", "", "secrets"), LevelMetadata},
		{"group of the user", node, LevelNone},
		{"a subresource named", at("u", "create", "a", "", "serviceaccounts/token"), LevelMetadata},
		{"the resource itself is not", at("u", "create", "a", "", "serviceaccounts"), LevelNone},
		{"any subresource", at("u", "create", "a", "", "pods/exec"), LevelRequest},
		{"any subresource means the resource too", at("u", "create", "a", "", "pods"), LevelRequest},
		{"a whole group in a namespace", at("u", "create", "shop", "apps", "deployments"), LevelRequestResponse},
		{"the group elsewhere", at("u", "create", "a", "apps", "deployments"), LevelNone},
		{"a subresource of anything", at("u", "update", "a", "apps", "deployments/scale"), LevelMetadata},
		{"a name", at("u", "get", "", "", "nodes:n1"), LevelMetadata},
		{"another name", at("u", "get", "", "", "nodes:n2"), LevelNone},
		{"a path", path("/version"), LevelNone},
		{"paths below", path("/healthz/etcd"), LevelNone},
		{"every path", path("/api"), LevelMetadata},
	} {
		if got := p.decide(c.a).level; got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if v := p.decide(at("u", "create", "shop", "apps", "deployments")); !v.omitManagedFields || !v.omits(StageRequestReceived) || v.omits(StageResponseStarted) {
		t.Errorf("%+v", v)
	}
}

func TestBadPolicies(t *testing.T) {
	head := "apiVersion: audit.k8s.io/v1\nkind: Policy\n"
	for want, text := range map[string]string{
		"0 rules":                      head,
		"not an audit.k8s.io/v1":       "apiVersion: v1\nkind: Pod\n",
		"unknown field":                head + "rules: [{level: None}]\nmore: 1\n",
		"level: Required value":        head + "rules: [{}]\n",
		"Unsupported value":            head + "rules: [{level: All}]\n",
		"allowed stages":               head + "rules: [{level: None, omitStages: [Never]}]\n",
		"must begin with a '/'":        head + "rules: [{level: None, nonResourceURLs: [x]}]\n",
		"must be the final":            head + "rules: [{level: None, nonResourceURLs: ['/*/x']}]\n",
		"both regular resources":       head + "rules: [{level: None, nonResourceURLs: ['*'], namespaces: [a]}]\n",
		"requires at least one":        head + "rules: [{level: None, resources: [{resourceNames: [a]}]}]\n",
		"lower case alphanumeric char": head + "rules: [{level: None, resources: [{group: 'a/v1'}]}]\n",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func auditor(t *testing.T, c Config) *Auditor {
	t.Helper()
	if c.Policy == nil {
		c.Policy = policy(t, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
	}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func request(a *Auditor, name string) error {
	req := httptest.NewRequest("GET", "/api/v1/namespaces/a/pods/"+name, nil)
	tr, err := a.Begin(req, auth.Attributes{User: auth.User{Name: "u", Groups: []string{"g", "h"}}, Verb: "get", Resource: "pods", Namespace: "a", Name: name, ResourceRequest: true}, name, time.Unix(0, 0).UTC())
	if err == nil {
		tr.End(200, nil)
	}
	return err
}

func TestTheFormsOfAnEvent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "audit.log")
	a := auditor(t, Config{Log: &LogConfig{Path: path}})
	if err := request(a, "p"); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	want := `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"p","stage":"RequestReceived","requestURI":"/api/v1/namespaces/a/pods/p",` +
		`"verb":"get","user":{"username":"u","groups":["g","h"]},"sourceIPs":["192.0.2.1"],"objectRef":{"resource":"pods","namespace":"a","name":"p"},` +
		`"requestReceivedTimestamp":"1970-01-01T00:00:00.000000Z","stageTimestamp":"1970-01-01T00:00:00.000000Z"}`
	if len(lines) != 2 || lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	if !strings.Contains(lines[1], `"stage":"ResponseComplete"`) || !strings.Contains(lines[1], `"responseStatus":{"metadata":{},"code":200}`) {
		t.Error(lines[1])
	}
	path += ".legacy"
	if err := request(auditor(t, Config{Log: &LogConfig{Path: path, Format: "legacy"}}), "p"); err != nil {
		t.Fatal(err)
	}
	data, _ = os.ReadFile(path)
	want = `1970-01-01T00:00:00Z AUDIT: id="p" stage="RequestReceived" ip="192.0.2.1" method="get" user="u" groups="\"g\",\"h\"" as="<self>" asgroups="<lookup>" ` +
		`user-agent="" namespace="a" uri="/api/v1/namespaces/a/pods/p" response="<deferred>"`
	if line, _, _ := strings.Cut(string(data), "\n"); line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
}

func TestAFullFileIsRotated(t *testing.T) {
	for _, compress := range []bool{false, true} {
		dir := t.TempDir()
		r, err := openRotated(LogConfig{Path: filepath.Join(dir, "audit.log"), MaxSizeMB: 1, MaxBackups: 2, Compress: compress})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "audit-other.log"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		line := []byte(strings.Repeat("x", 700<<10))
		for range 6 {
			if _, err := r.Write(line); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond) // the name has milliseconds
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		end := ".log"
		if compress {
			end += ".gz"
		}
		old, _ := filepath.Glob(filepath.Join(dir, "audit-2*"+end))
		all, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(old) != 2 || len(all) != 4 {
			t.Errorf("compress %v: %v", compress, all)
		}
	}
}

func TestWhatDoesNotFitIsDroppedAndCounted(t *testing.T) {
	gate := make(chan struct{})
	var got []string
	q := newQueue(2, 1, 0, 0, func(b [][]byte) { <-gate; got = append(got, string(b[0])) })
	lost := 0
	for i := range 10 {
		if err := q.put([]byte(fmt.Sprint(i))); errors.Is(err, errFull) {
			lost++
		}
		if i == 0 {
			time.Sleep(20 * time.Millisecond) // until it is being sent
		}
	}
	close(gate)
	q.close()
	if len(got)+lost != 10 || len(got) < 2 || len(got) > 3 || got[0] != "0" {
		t.Errorf("sent %v, lost %d", got, lost)
	}
	if err := q.put(nil); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// In mode blocking-strict what cannot be recorded does not happen; else it is counted.
func TestAFileThatCannotBeWritten(t *testing.T) {
	for mode, want := range map[Mode]error{ModeBlocking: nil, ModeBlockingStrict: ErrNotRecorded} {
		a := auditor(t, Config{Log: &LogConfig{Path: filepath.Join(t.TempDir(), "a.log"), Mode: mode}})
		a.sinks[0].(*logFile).out = broken{}
		if err := request(a, "p"); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", mode, err, want)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("disk full") }
func (broken) Close() error              { return nil }

func TestAWebhookIsSentBatches(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	fail := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if fail { // the first try
			fail = false
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		var list struct {
			Kind  string
			Items []Event
		}
		data, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(data, &list); err != nil || list.Kind != "EventList" {
			t.Errorf("%s: %v", data, err)
		}
		for _, e := range list.Items {
			seen = append(seen, string(e.AuditID)+"/"+string(e.Stage))
		}
	}))
	defer srv.Close()
	conf := filepath.Join(t.TempDir(), "conf")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"s","user":"u"}}],` +
		`"users":[{"name":"u","user":{}}],"clusters":[{"name":"s","cluster":{"server":"` + srv.URL + `/events"}}]}`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := auditor(t, Config{Webhook: &WebhookConfig{Kubeconfig: conf, BatchSize: 4, BatchWait: time.Minute, InitialBackoff: time.Millisecond}})
	for _, n := range []string{"a", "b"} { // two events each: a batch
		if err := request(a, n); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		mu.Lock()
		got := strings.Join(seen, " ")
		mu.Unlock()
		if got == "a/RequestReceived a/ResponseComplete b/RequestReceived b/ResponseComplete" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(got)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestManagedFieldsCanBeLeftOut(t *testing.T) {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}}
	for what, obj := range map[string]any{"object": pod, "list": corev1.PodList{Items: []corev1.Pod{pod}},
		"table": map[string]any{"rows": []any{map[string]any{"object": pod}}}} {
		data, _ := json.Marshal(obj)
		got, err := withoutManagedFields(data)
		if err != nil || strings.Contains(string(got), "managedFields") || !strings.Contains(string(got), `"name":"p"`) {
			t.Errorf("%s: %s, %v", what, got, err)
		}
	}
}

func TestNothingIsRecordedWithoutAPolicy(t *testing.T) {
	a, err := New(Config{Log: &LogConfig{Path: "-"}})
	if a != nil || err != nil {
		t.Fatal(a, err)
	}
	if n := testing.AllocsPerRun(100, func() {
		tr, _ := a.Begin(nil, auth.Attributes{}, "", time.Time{})
		tr.Annotate("a", "b")
		tr.Authorized(auth.Allow, "", nil)
		tr.End(200, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
