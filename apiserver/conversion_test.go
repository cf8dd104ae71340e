package apiserver_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skiff-project/skiff/apiserver"
)

// hookServer is a conversion webhook; answer makes of a request's first object
// what the webhook gives back.
func hookServer(t *testing.T, answer func(review map[string]any, object map[string]any) any) (url, bundle string, calls *atomic.Int32) {
	calls = &atomic.Int32{}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var review map[string]any
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Errorf("the server sent %v", err)
		}
		objects := review["request"].(map[string]any)["objects"].([]any)
		out := answer(review, objects[0].(map[string]any))
		for _, more := range objects[1:] {
			again := map[string]any{"request": map[string]any{"desiredAPIVersion": objects[0].(map[string]any)["apiVersion"]}}
			r := response(out.(map[string]any))
			r["convertedObjects"] = append(r["convertedObjects"].([]any), response(converted(again, more.(map[string]any)))["convertedObjects"].([]any)...)
		}
		json.NewEncoder(w).Encode(out)
	}))
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return srv.URL + "/convert", base64.StdEncoding.EncodeToString(ca), calls
}

// converted is the answer of an honest webhook, which moves spec.host to spec.hostPort and back.
func converted(review, object map[string]any) map[string]any {
	req := review["request"].(map[string]any)
	object["apiVersion"] = req["desiredAPIVersion"]
	if spec, ok := object["spec"].(map[string]any); ok {
		if strings.HasSuffix(object["apiVersion"].(string), "/v2") {
			spec["hostPort"] = fmt.Sprint(spec["host"], ":", 80)
			delete(spec, "host")
		} else {
			host, _, _ := strings.Cut(fmt.Sprint(spec["hostPort"]), ":")
			spec["host"] = host
			delete(spec, "hostPort")
		}
	}
	review["response"] = map[string]any{"uid": req["uid"], "convertedObjects": []any{object}, "result": map[string]any{"status": "Success"}}
	delete(review, "request")
	return review
}

func response(review map[string]any) map[string]any { return review["response"].(map[string]any) }

func createHooked(t *testing.T, s *apiserver.Server, url, bundle string) raw {
	t.Helper()
	c := newRaw(s)
	def := `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: hosts.example.com},
spec: {group: example.com, scope: Namespaced, names: {plural: hosts, kind: Host},
 conversion: {strategy: Webhook, webhook: {conversionReviewVersions: [v1], clientConfig: {url: "` + url + `", caBundle: "` + bundle + `"}}},
 versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {host: {type: string}}}}}}},
  {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {hostPort: {type: string}}}}}}}]}}`
	if code, body := c.do(t, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/yaml", []byte(def)); code != 201 {
		t.Fatalf("%d %s", code, body)
	}
	replay(t, s, "established hosts.example.com\n")
	return c
}

const hosts = "/apis/example.com/%s/namespaces/default/hosts"

func TestConversionWebhook(t *testing.T) {
	url, bundle, calls := hookServer(t, func(review, object map[string]any) any { return converted(review, object) })
	s := newServer(t, nil)
	c := createHooked(t, s, url, bundle)
	v1, v2 := fmt.Sprintf(hosts, "v1"), fmt.Sprintf(hosts, "v2")
	code, body := c.do(t, "POST", v2, "application/json", []byte(`{"apiVersion":"example.com/v2","kind":"Host","metadata":{"name":"a","labels":{"k":"v"}},"spec":{"hostPort":"h:80"}}`))
	if code != 201 || !strings.Contains(body, `"hostPort":"h:80"`) {
		t.Fatalf("create in v2: %d %s", code, body)
	}
	if calls.Load() == 0 {
		t.Error("stored in v1 without asking the webhook")
	}
	before := calls.Load()
	if code, body := c.do(t, "GET", v1+"/a", "", nil); code != 200 || !strings.Contains(body, `"host":"h"`) {
		t.Errorf("get in v1: %d %s", code, body)
	}
	if calls.Load() != before {
		t.Error("reading the storage version asked the webhook")
	}
	if code, body := c.do(t, "GET", v2, "", nil); code != 200 || !strings.Contains(body, `"hostPort":"h:80"`) || !strings.Contains(body, `"k":"v"`) {
		t.Errorf("list in v2: %d %s", code, body)
	}
	code, body = c.do(t, "PATCH", v2+"/a", "application/merge-patch+json", []byte(`{"spec":{"hostPort":"g:80"}}`))
	if code != 200 || !strings.Contains(body, `"hostPort":"g:80"`) || !strings.Contains(body, `"generation":2`) {
		t.Errorf("patch in v2: %d %s", code, body)
	}
	code, body = c.do(t, "PATCH", v2+"/a?fieldManager=m&force=true", "application/apply-patch+yaml", []byte(`{"apiVersion":"example.com/v2","kind":"Host","metadata":{"name":"a"},"spec":{"hostPort":"f:80"}}`))
	if code != 200 || !strings.Contains(body, `"hostPort":"f:80"`) {
		t.Errorf("apply in v2: %d %s", code, body)
	}
	if code, body := c.do(t, "GET", v1+"/a", "", nil); code != 200 || !strings.Contains(body, `"host":"f"`) {
		t.Errorf("get in v1: %d %s", code, body)
	}
}

// A list asks the webhook once for all that is not in its version.
func TestConversionOfLists(t *testing.T) {
	url, bundle, calls := hookServer(t, func(review, object map[string]any) any { return converted(review, object) })
	s := newServer(t, nil)
	c := createHooked(t, s, url, bundle)
	var want []string
	for i := range 20 {
		name := fmt.Sprintf("h%02d", i)
		body := fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Host","metadata":{"name":%q},"spec":{"host":%q}}`, name, name)
		if code, body := c.do(t, "POST", fmt.Sprintf(hosts, "v1"), "application/json", []byte(body)); code != 201 {
			t.Fatalf("%d %s", code, body)
		}
		want = append(want, name+":80")
	}
	for _, accept := range []string{"application/json", "application/yaml"} {
		before := calls.Load()
		code, body := c.do(t, "GET", fmt.Sprintf(hosts, "v2"), "", nil, "Accept", accept)
		var got []string
		for _, m := range regexp.MustCompile(`hostPort"?: ?"?([^"\n]*)`).FindAllStringSubmatch(body, -1) {
			got = append(got, m[1])
		}
		if code != 200 || !slices.Equal(got, want) || calls.Load() != before+1 {
			t.Errorf("%s: %d after %d calls: %s, want %s", accept, code, calls.Load()-before, got, want)
		}
	}
}

// A webhook that lies changes nothing, and is named in the error.
func TestConversionWebhookIsNotBelieved(t *testing.T) {
	for name, tc := range map[string]struct {
		lie  func(review, object map[string]any) any
		want string
	}{
		"another UID in the answer": {func(review, object map[string]any) any {
			out := converted(review, object)
			response(out)["uid"] = "x"
			return out
		}, `expected response.uid=`},
		"another object": {func(review, object map[string]any) any {
			object["metadata"].(map[string]any)["uid"] = "x"
			return converted(review, object)
		}, "must have the same UID"},
		"another name": {func(review, object map[string]any) any {
			object["metadata"].(map[string]any)["name"] = "x"
			return converted(review, object)
		}, "must have the same name: a != x"},
		"no objects": {func(review, object map[string]any) any {
			out := converted(review, object)
			response(out)["convertedObjects"] = []any{}
			return out
		}, "returned 0 objects, expected 1"},
		"the wrong version": {func(review, object map[string]any) any {
			out := converted(review, object)
			object["apiVersion"] = "example.com/v1"
			return out
		}, "invalid groupVersion (expected example.com/v2, received example.com/v1)"},
		"bad labels": {func(review, object map[string]any) any {
			object["metadata"].(map[string]any)["labels"] = map[string]any{"a b": "c"}
			return converted(review, object)
		}, "returned invalid metadata"},
		"failure": {func(review, object map[string]any) any {
			out := converted(review, object)
			response(out)["result"] = map[string]any{"status": "Failure", "message": "I will not"}
			return out
		}, "failed: I will not"},
		"no response": {func(review, _ map[string]any) any { return review }, "no response provided"},
		"nonsense":    {func(map[string]any, map[string]any) any { return "hello" }, "conversion webhook for example.com/v1, Kind=Host failed"},
	} {
		t.Run(name, func(t *testing.T) {
			url, bundle, _ := hookServer(t, tc.lie)
			s := newServer(t, nil)
			c := createHooked(t, s, url, bundle)
			v1, v2 := fmt.Sprintf(hosts, "v1"), fmt.Sprintf(hosts, "v2")
			if code, body := c.do(t, "POST", v1, "application/json", []byte(`{"apiVersion":"example.com/v1","kind":"Host","metadata":{"name":"a"},"spec":{"host":"h"}}`)); code != 201 {
				t.Fatalf("%d %s", code, body)
			}
			if code, body := c.do(t, "GET", v2+"/a", "", nil); code != 500 || !strings.Contains(strings.ReplaceAll(body, `\"`, `"`), tc.want) {
				t.Errorf("%d %s, want %q", code, body, tc.want)
			}
			if code, _ := c.do(t, "GET", v1+"/a", "", nil); code != 200 {
				t.Errorf("the stored version cannot be read: %d", code)
			}
		})
	}
}

// Trust: a webhook whose certificate the bundle does not vouch for is not used.
func TestConversionWebhookCertificate(t *testing.T) {
	url, _, calls := hookServer(t, func(review, object map[string]any) any { return converted(review, object) })
	s := newServer(t, nil)
	c := createHooked(t, s, url, "")
	code, body := c.do(t, "POST", fmt.Sprintf(hosts, "v2"), "application/json", []byte(`{"apiVersion":"example.com/v2","kind":"Host","metadata":{"name":"a"}}`))
	if code != 500 || !strings.Contains(body, "certificate") || calls.Load() != 0 {
		t.Errorf("%d %s after %d calls", code, body, calls.Load())
	}
}
