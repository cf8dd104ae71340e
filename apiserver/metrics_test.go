package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/authconfig"
	"github.com/skiff-project/skiff/apiserver/fairness"
	"github.com/skiff-project/skiff/apiserver/initial"
	"github.com/skiff-project/skiff/apiserver/webhook"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac"
	"github.com/skiff-project/skiff/auth/serviceaccount"
)

// family is one metric as it is served.
type family struct {
	kind   string
	labels map[string]bool
}

func (f *family) String() string {
	if len(f.labels) == 0 {
		return f.kind + " -"
	}
	return f.kind + " " + strings.Join(slices.Sorted(maps.Keys(f.labels)), ",")
}

// families reads what is served at /metrics.
func families(text string) map[string]*family {
	out, label := map[string]*family{}, regexp.MustCompile(`(\w+)="`)
	var f *family
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "# TYPE "):
			f = &family{words[3], map[string]bool{}}
			out[words[2]] = f
		case !strings.HasPrefix(line, "#"):
			for _, m := range label.FindAllStringSubmatch(line, -1) {
				if m[1] != "le" {
					f.labels[m[1]] = true
				}
			}
		}
	}
	return out
}

// Upstream's metrics of the API server that are stable or beta are served, under their names, types and labels, or
// testdata/metrics.txt says why not.
func TestStableMetrics(t *testing.T) {
	s := newServer(t, func(c *apiserver.Config) {
		withPolicies(t)(c)
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		mutate, validate := webhook.New(webhook.Config{Reader: reader, Authorizer: c.Authorizer})
		c.Admission = append(c.Admission, mutate, validate)
	})
	do := func(want int, path, body string) {
		t.Helper()
		method := "POST"
		if body == "" {
			method = "GET"
		}
		if code, answer := newRaw(s).do(t, method, path, "application/yaml", []byte(body)); code != want {
			t.Fatalf("%s: %d %s", path, code, answer)
		}
	}
	const group, secrets, rules = "/apis/admissionregistration.k8s.io/v1/", "/api/v1/namespaces/default/secrets", `[{apiGroups: [""], apiVersions: [v1], resources: [secrets], operations: [CREATE]}]`
	do(201, group+"validatingadmissionpolicies", `
kind: ValidatingAdmissionPolicy
apiVersion: admissionregistration.k8s.io/v1
metadata: {name: p}
spec: {matchConstraints: {resourceRules: `+rules+`}, matchConditions: [{name: c, expression: object.metadata.name != 'x'}], validations: [{expression: "false"}]}`)
	do(201, group+"validatingadmissionpolicybindings", `
kind: ValidatingAdmissionPolicyBinding
apiVersion: admissionregistration.k8s.io/v1
metadata: {name: b}
spec: {policyName: p, validationActions: [Deny]}`)
	do(201, group+"mutatingadmissionpolicies", `
kind: MutatingAdmissionPolicy
apiVersion: admissionregistration.k8s.io/v1
metadata: {name: m}
spec:
  matchConstraints: {resourceRules: `+rules+`}
  reinvocationPolicy: Never
  failurePolicy: Ignore
  mutations:
  - {patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}
  - {patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: {'a': object.data.none}}}"}}`)
	do(201, group+"mutatingadmissionpolicybindings", "{kind: MutatingAdmissionPolicyBinding, apiVersion: admissionregistration.k8s.io/v1, metadata: {name: mb}, spec: {policyName: m}}")
	do(201, group+"validatingwebhookconfigurations", `
kind: ValidatingWebhookConfiguration
apiVersion: admissionregistration.k8s.io/v1
metadata: {name: w}
webhooks:
- {name: w.example.com, clientConfig: {url: "https://127.0.0.1:1/"}, rules: `+rules+`, failurePolicy: Ignore,
   matchConditions: [{name: c, expression: object.metadata.name != 'y'}, {name: odd, expression: object.metadata.name.startsWith(object.data.none)}],
   sideEffects: None, admissionReviewVersions: [v1]}
- {name: v.example.com, clientConfig: {url: "https://127.0.0.1:1/"}, rules: `+rules+`, failurePolicy: Ignore, sideEffects: None, admissionReviewVersions: [v1]}`)
	do(422, secrets, "{kind: Secret, apiVersion: v1, metadata: {name: z}}")
	do(201, secrets, "{kind: Secret, apiVersion: v1, metadata: {name: x}}") // which the policy leaves out
	do(200, "/api/v1/configmaps?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1", "")
	do(200, "/api/v1/endpoints", "")
	do(200, "/api/v1/configmaps", "")
	_, text := newRaw(s).do(t, "GET", "/metrics", "", nil)
	for _, want := range []string{
		`apiserver_validating_admission_policy_check_total{enforcement_action="deny",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_validating_admission_policy_check_duration_seconds_count{enforcement_action="deny",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_mutating_admission_policy_check_total{error_type="no_error",policy="m",policy_binding="mb"} 2`,
		`apiserver_mutating_admission_policy_check_total{error_type="invalid_error",policy="m",policy_binding="mb"} 2`,
		`apiserver_admission_match_condition_evaluation_seconds_count{kind="policy",name="p",operation="CREATE",type="validate"} 2`,
		`apiserver_admission_match_condition_evaluation_errors_total{kind="webhook",name="w.example.com",operation="CREATE",type="validating"} 1`,
		`apiserver_admission_match_condition_exclusions_total{kind="webhook",name="w.example.com",operation="CREATE",type="validating"} 1`,
		`apiserver_watch_list_duration_seconds_count{group="",resource="configmaps",scope="cluster",version="v1"} 1`,
		`apiserver_resource_size_estimate_bytes{group="",resource="pods"} 0`,
		`version_info{binary="1.37.2",component="kube",emulation="1.37",min_compat="1.36"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	_, slis := newRaw(s).do(t, "GET", "/metrics/slis", "", nil)
	served := families(text + slis + metricsOfARefusal(t) + metricsOfAReload(t))
	list, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(list)), "\n")[1:] {
		f := strings.SplitN(line, " ", 5) // level, name, type, labels, why not
		got, want := served[f[1]], f[2]+" "+f[3]
		switch {
		case len(f) > 4 && got != nil:
			t.Errorf("%s is served, and testdata/metrics.txt says why not", f[1])
		case len(f) == 4 && got == nil:
			t.Errorf("%s is not served", f[1])
		case got != nil && got.String() != want:
			t.Errorf("%s is a %s, upstream's a %s", f[1], got, want)
		}
	}
}

// metricsOfARefusal are those of priority and fairness when a second request finds no seat.
func metricsOfARefusal(t *testing.T) string {
	l := fairness.New(1, clock.RealClock{})
	l.Configure(initial.PriorityLevels(), initial.FlowSchemas())
	enter := func() error {
		who := &auth.Attributes{User: auth.User{Name: "x"}, Verb: "get", Path: "/"}
		_, err := l.Enter(t.Context(), who, time.Minute, func(int) fairness.Work { return fairness.Work{Seats: 1} })
		return err
	}
	if err := enter(); err != nil {
		t.Fatal(err)
	}
	if err := enter(); err == nil {
		t.Fatal("there was a second seat")
	}
	return collected(l)
}

// metricsOfAReload are those of authentication and authorization when both files have changed.
func metricsOfAReload(t *testing.T) (text string) {
	head, dir := "apiVersion: apiserver.config.k8s.io/v1\nkind: ", t.TempDir()
	who, what := filepath.Join(dir, "authentication"), filepath.Join(dir, "authorization")
	write := func(authentication, authorization string) {
		for path, text := range map[string]string{who: authentication, what: authorization} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(head+"AuthenticationConfiguration\n", head+"AuthorizationConfiguration\nauthorizers: [{type: RBAC, name: rbac}]\n")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := serviceaccount.New(serviceaccount.Config{SigningKey: key, Getter: source{}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := authconfig.New(authconfig.Options{AuthenticationFile: who, AuthorizationFile: what},
		authconfig.Own{Accounts: accounts, Bootstrap: oneToken{}, Node: allowAll{}, RBAC: rbac.New(source{})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { a.Run(ctx) })
	defer done.Wait()
	defer cancel()
	write("wrong", "wrong")
	for deadline := time.Now().Add(time.Minute); strings.Count(text, `automatic_reloads_total{`) < 2; time.Sleep(5 * time.Millisecond) {
		if text = collected(a); time.Now().After(deadline) {
			t.Fatal("the files were not read again")
		}
	}
	return text
}

// collected is what a collector tells, as /metrics has it.
func collected(c prometheus.Collector) string {
	registry, rec := prometheus.NewRegistry(), httptest.NewRecorder()
	registry.MustRegister(c)
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}
