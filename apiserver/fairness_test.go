package apiserver_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
)

func until(t *testing.T, what string, good func() bool) {
	t.Helper()
	for range 500 {
		if good() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited for ", what)
}

// The stored objects are what is enforced: an answer names those it was
// matched with, a schema says whether its level exists, and the mandatory ones
// come back.
func TestFlowSchemasAreFollowed(t *testing.T) {
	s := newServer(t, nil)
	flows := typed(t, s).FlowcontrolV1()
	exempt, err := flows.FlowSchemas().Get(t.Context(), "exempt", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	matched := func(user string) string {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://x/api/v1/namespaces", nil)
		resp, err := s.InProcess(auth.User{Name: user, Groups: append([]string{auth.GroupAuthenticated}, map[string]string{"admin": auth.GroupMasters}[user])}).Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.Header.Get("X-Kubernetes-PF-FlowSchema-UID")
	}
	until(t, "the header", func() bool { return matched("admin") == string(exempt.UID) })

	fs := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "new"}, MatchingPrecedence: 50,
		Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
			Subjects:      []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: "bob"}}},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, ClusterScope: true}},
		}},
	}}
	if fs, err = flows.FlowSchemas().Create(t.Context(), fs, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dangling := func(status flowcontrolv1.ConditionStatus, text string) {
		t.Helper()
		until(t, "Dangling "+string(status), func() bool {
			got, err := flows.FlowSchemas().Get(t.Context(), "mine", metav1.GetOptions{})
			return err == nil && len(got.Status.Conditions) == 1 && got.Status.Conditions[0].Status == status && strings.Contains(got.Status.Conditions[0].Message, text)
		})
	}
	dangling(flowcontrolv1.ConditionTrue, `named "new" but there is no such object`)
	if matched("bob") == string(fs.UID) {
		t.Error("a schema without a level matched a request")
	}
	pl := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
		Type:    flowcontrolv1.PriorityLevelEnablementLimited,
		Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}},
	}}
	if _, err := flows.PriorityLevelConfigurations().Create(t.Context(), pl, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dangling(flowcontrolv1.ConditionFalse, `named "new" and it exists`)
	until(t, "the new schema to match", func() bool { return matched("bob") == string(fs.UID) })

	if err := flows.FlowSchemas().Delete(t.Context(), "exempt", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the mandatory schema to come back", func() bool {
		got, err := flows.FlowSchemas().Get(t.Context(), "exempt", metav1.GetOptions{})
		return err == nil && got.UID != exempt.UID && matched("admin") == string(got.UID)
	})
	_, text := newRaw(s).do(t, "GET", "/metrics", "", nil)
	for _, want := range []string{
		`apiserver_flowcontrol_nominal_limit_seats{priority_level="workload-low"} `, `apiserver_flowcontrol_dispatched_requests_total{flow_schema="exempt",priority_level="exempt"} `,
		`apiserver_flowcontrol_request_wait_duration_seconds_count{execute="true",flow_schema="global-default",priority_level="global-default"} `, `apiserver_current_inflight_requests{request_kind="readOnly"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// With two seats and a catch-all level that has one of them, a user's second
// request is refused: its level has no queues. An administrator's is not.
func TestALevelWithoutSeatsRefuses(t *testing.T) {
	block := make(chan struct{})
	s := newServer(t, func(c *apiserver.Config) {
		c.Limits = apiserver.Limits{ReadOnly: 1, Mutating: 1}
		c.Admission = []admission.Plugin{blocking{block}}
	})
	create := func(u auth.User, name string) *http.Response {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://x"+cmPath, strings.NewReader(`{"metadata":{"name":"`+name+`"}}`))
		req.Header.Set("Content-Type", "application/json")
		resp, err := s.InProcess(u).Transport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return nil
		}
		resp.Body.Close()
		return resp
	}
	nobody := auth.User{Name: "x"} // in no group any schema names: catch-all
	until(t, "the levels to be known", func() bool {
		return create(nobody, "before").Header.Get("X-Kubernetes-PF-PriorityLevel-UID") != ""
	})
	first := make(chan *http.Response, 1)
	go func() { first <- create(nobody, "block") }()
	<-block
	resp := create(nobody, "b")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" || resp.Header.Get("X-Kubernetes-PF-PriorityLevel-UID") == "" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	if resp := create(admin, "c"); resp.StatusCode != 201 {
		t.Error(resp.Status)
	}
	block <- struct{}{}
	if resp := <-first; resp.StatusCode != 201 {
		t.Error(resp.Status)
	}
	_, counted := newRaw(s).do(t, "GET", "/metrics", "", nil)
	const refused = `apiserver_request_terminations_total{code="429",component="apiserver",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1`
	if !strings.Contains(counted, refused) {
		t.Error("the request that was refused is not counted:", counted)
	}
}
