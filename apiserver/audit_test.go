package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/auth"
)

type onlyMasters struct{}

func (onlyMasters) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	if a.User.Name == "eve" {
		return auth.NoOpinion, "no rule for eve", nil
	}
	return auth.Allow, "a rule", nil
}

// What an audit log says of requests, one line an event.
func TestAuditLog(t *testing.T) {
	policy, err := audit.ParsePolicy([]byte(`
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, users: ["system:apiserver"]}
- {level: None, nonResourceURLs: ["*"]}
- {level: RequestResponse, resources: [{group: "", resources: [secrets, serviceaccounts/token]}, {group: authentication.k8s.io}]}
- {level: Request, resources: [{group: "", resources: [configmaps]}]}
- {level: RequestResponse, resources: [{group: "", resources: [services, pods]}], omitManagedFields: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := audit.New(audit.Config{Policy: policy, Log: &audit.LogConfig{Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s := newServer(t, func(c *apiserver.Config) { c.Audit, c.Authorizer = a, onlyMasters{} })
	read := 0
	expect := func(want ...string) {
		t.Helper()
		var got []audit.Event
		deadline := time.Now().Add(5 * time.Second)
		for { // the last event follows the answer
			got = nil
			data, _ := os.ReadFile(path)
			for line := range strings.Lines(string(data)) {
				var e audit.Event
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(line, err)
				}
				got = append(got, e)
			}
			if len(got)-read >= len(want) || time.Now().After(deadline) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		got = got[min(read, len(got)):]
		read += len(got)
		for i, e := range got {
			status := "-"
			if e.ResponseStatus != nil {
				status = fmt.Sprint(e.ResponseStatus.Code, e.ResponseStatus.Reason)
			}
			as := ""
			if e.ImpersonatedUser != nil {
				as = " as " + e.ImpersonatedUser.Username
			}
			line := fmt.Sprintf("%s %s%s %s %s %s %s", e.Stage, e.User.Username, as, e.Verb, e.ObjectRef.Resource, e.ObjectRef.Name, status)
			if i >= len(want) || line != want[i] {
				t.Errorf("event %d: %s", i, line)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d events, want %d", len(got), len(want))
		}
	}
	last := func() (e audit.Event) {
		t.Helper()
		data, _ := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	client := typed(t, s).CoreV1()
	ctx := t.Context()

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"k": "hush"}}
	if _, err := client.Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("RequestReceived admin create secrets  -", "ResponseComplete admin create secrets s 201")
	if e := last(); e.RequestObject != nil || e.ResponseObject != nil || e.Annotations["authorization.k8s.io/decision"] != "allow" || e.Annotations["authorization.k8s.io/reason"] != "a rule" {
		t.Errorf("metadata of a Secret: %+v", e)
	}

	raw := newRaw(s)
	raw.do(t, "PATCH", "/api/v1/namespaces/default/secrets/s", "application/merge-patch+json", []byte(`{"stringData":{"k":"whisper"}}`))
	expect("RequestReceived admin patch secrets s -", "ResponseComplete admin patch secrets s 200")
	raw.do(t, "GET", "/api/v1/namespaces/default/secrets", "", nil)
	expect("RequestReceived admin list secrets  -", "ResponseComplete admin list secrets  200")
	raw.do(t, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", "application/json", []byte(`{"spec":{"token":"whisper"}}`))
	expect("RequestReceived admin create tokenreviews  -", "ResponseComplete admin create tokenreviews  201")
	if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), "Object\":{") || !strings.Contains(string(data), `"level":"Metadata"`) {
		t.Errorf("bodies of Secrets and tokens: %s %v", data, err)
	}

	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"a": "b"}}
	if _, err := client.ConfigMaps("default").Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("RequestReceived admin create configmaps  -", "ResponseComplete admin create configmaps c 201")
	if e := last(); !strings.Contains(string(e.RequestObject), `"data":{"a":"b"}`) || e.ResponseObject != nil {
		t.Errorf("request of a ConfigMap: %s %s", e.RequestObject, e.ResponseObject)
	}

	cfg := s.InProcess(admin)
	cfg.ContentConfig = rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf"}
	proto, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := proto.CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("RequestReceived admin create services  -", "ResponseComplete admin create services v 201")
	if e := last(); !strings.Contains(string(e.RequestObject), `"protocol":"TCP"`) || !strings.Contains(string(e.ResponseObject), `"clusterIP":"10.`) || strings.Contains(string(e.ResponseObject), "managedFields") {
		t.Errorf("request and response of a Service: %s %s", e.RequestObject, e.ResponseObject)
	}

	w, err := client.Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect("RequestReceived admin watch pods  -", "ResponseStarted admin watch pods  200")
	w.Stop()
	expect("ResponseComplete admin watch pods  200")

	raw.do(t, "GET", "/api/v1/namespaces/default/configmaps/c", "", nil, "Impersonate-User", "eve")
	expect("RequestReceived admin get configmaps c -", "ResponseComplete admin as eve get configmaps c 403Forbidden")
	if e := last(); e.Annotations["authorization.k8s.io/decision"] != "forbid" || e.Annotations["authorization.k8s.io/reason"] != "no rule for eve" || !strings.Contains(e.ResponseStatus.Message, `User "eve" cannot get`) ||
		e.AuthenticationMetadata == nil || e.AuthenticationMetadata.ImpersonationConstraint != "impersonate:user-info" {
		t.Errorf("%+v", e)
	}
	raw.do(t, "PATCH", "/api/v1/namespaces/default/configmaps/c", "application/apply-patch+yaml", nil)
	read += 2
	raw.do(t, "PATCH", "/api/v1/namespaces/default/configmaps/c?fieldManager=m", "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ConfigMap\ndata: {x: z}\n"))
	time.Sleep(50 * time.Millisecond)
	if e := last(); string(e.RequestObject) != `{"apiVersion":"v1","data":{"x":"z"},"kind":"ConfigMap"}` {
		t.Errorf("a patch: %s", e.RequestObject)
	}
}
