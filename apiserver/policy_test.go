package apiserver_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/apiserver/policy"
)

// withPolicies adds the admission plugins of policies.
func withPolicies(t testing.TB) func(*apiserver.Config) {
	return func(c *apiserver.Config) {
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		mutate, validate := policy.New(policy.Config{Reader: reader, Authorizer: c.Authorizer})
		c.Admission = []admission.Plugin{mutate, validate}
	}
}

// TestPolicies replays testdata/policy/*.txt as TestCustomResources does. The
// answers in cases, mutations and refused are those of kube-apiserver 1.37.
func TestPolicies(t *testing.T) { replayFiles(t, "testdata/policy/*.txt", withPolicies(t)) }

// What policies have to say goes into the audit log, whatever else they do.
func TestPoliciesAnnotateTheAuditLog(t *testing.T) {
	rules, err := audit.ParsePolicy([]byte("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [create], resources: [{group: '', resources: [configmaps]}]}]}"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := audit.New(audit.Config{Policy: rules, Log: &audit.LogConfig{Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s := newServer(t, func(c *apiserver.Config) {
		withPolicies(t)(c)
		c.Audit = a
	})
	post := func(resource, body string) {
		t.Helper()
		if code, answer := newRaw(s).do(t, "POST", resource, "application/yaml", []byte(body)); code != 201 {
			t.Fatalf("%d %s", code, answer)
		}
	}
	post("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: p}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}]}
  validations: [{expression: "true"}, {expression: "object.data.a == 'x'", message: not x}]
  auditAnnotations: [{key: was, valueExpression: "' ' + object.data.a"}, {key: nothing, valueExpression: "null"}]`)
	for _, name := range []string{"one", "two"} {
		post("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: `+name+`}
spec: {policyName: p, validationActions: [Audit]}`)
	}
	post("/api/v1/namespaces/default/configmaps", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: b}}")
	want := map[string]string{
		"p/was": "b",
		"validation.policy.admission.k8s.io/validation_failure": `[{"message":"not x","policy":"p","binding":"one","expressionIndex":1,"validationActions":["Audit"]},` +
			`{"message":"not x","policy":"p","binding":"two","expressionIndex":1,"validationActions":["Audit"]}]`,
		"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "",
	}
	for range 500 { // the event follows the answer
		data, _ := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		var e audit.Event
		if json.Unmarshal([]byte(lines[len(lines)-1]), &e) == nil && e.Stage == audit.StageResponseComplete {
			if !maps.Equal(e.Annotations, want) {
				t.Errorf("annotations %q", e.Annotations)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("no event")
}
