package apiserver_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-project/skiff/object/wire"
)

const (
	cmPath    = "/api/v1/namespaces/default/configmaps"
	quotaPath = "/api/v1/namespaces/default/resourcequotas"
)

// TestBadInput: whatever a client sends, the answer is a 4xx Status of the
// right kind, and the server lives. Among it are the YAML bombs of CVE-2019-11253
// and the copies of CVE-2019-1002100.
func TestBadInput(t *testing.T) {
	c := newRaw(newServer(t, nil))
	if code, body := c.do(t, "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"a"}}`)); code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	token := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	big := []byte(`{"metadata":{"name":"b"},"data":{"x":"` + strings.Repeat("a", 3<<20) + `"}}`)
	deep := []byte(`{"metadata":{"name":"b"},"data":` + strings.Repeat(`{"x":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}")
	quota := func(q string) []byte { return []byte(`{"metadata":{"name":"q"},"spec":{"hard":{"cpu":"` + q + `"}}}`) }
	// metadata {name: "r"}, spec {hard: {cpu: {string: "1e9999999"}}}
	quotaRaw := []byte("\x0a\x03\x0a\x01r\x12\x14\x0a\x12\x0a\x03cpu\x12\x0b\x0a\x091e9999999")
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i < 'k'; i++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	copies := `[{"op":"add","path":"/data","value":{"x":"` + strings.Repeat("a", 1000) + `"}}` + strings.Repeat(`,{"op":"copy","from":"/data","path":"/data/y"}`, 40) + `]`
	ops := "[" + strings.Repeat(`{"op":"test","path":"/kind","value":"ConfigMap"},`, 10_000) + `{"op":"test","path":"/kind","value":"ConfigMap"}]`
	cpu, mem := spent(t), obtained()
	for _, tc := range []struct {
		name, method, path, media string
		body                      []byte
		code                      int
		text                      string
	}{
		{"empty body", "POST", cmPath, "application/json", nil, 400, "unexpected end of JSON input"},
		{"not JSON", "POST", cmPath, "application/json", []byte("hello"), 400, "invalid character"},
		{"truncated", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":`), 400, "unexpected end of JSON input"},
		{"wrong type", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"b"},"data":5}`), 400, "cannot unmarshal"},
		{"wrong kind", "POST", cmPath, "application/json", []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"b"}}`), 400, ""},
		{"wrong version", "POST", cmPath, "application/json", []byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"b"}}`), 400, "the API version in the data (apps/v1) does not match the expected API version (v1)"},
		{"unknown kind", "POST", cmPath, "application/json", []byte(`{"apiVersion":"v9","kind":"Foo"}`), 400, ""},
		{"unknown media type", "POST", cmPath, "text/plain", []byte("x"), 415, "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"too large", "POST", cmPath, "application/json", big, 413, "Request entity too large: limit is 3145728"},
		{"too deep", "POST", cmPath, "application/json", deep, 400, ""},
		{"YAML bomb", "POST", cmPath, "application/yaml", []byte(bomb), 400, ""},
		{"no name", "POST", cmPath, "application/json", []byte(`{}`), 422, "name or generateName is required"},
		{"bad name", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"A/b"}}`), 422, "metadata.name"},
		{"bad label", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"b","labels":{"a b":"c"}}}`), 422, "metadata.labels"},
		{"resourceVersion on create", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"b","resourceVersion":"5"}}`), 400, "resourceVersion should not be set on objects to be created"},
		{"other namespace", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"b","namespace":"other"}}`), 400, "the namespace of the provided object does not match the namespace sent on the request"},
		{"strict", "POST", cmPath + "?fieldValidation=Strict", "application/json", []byte(`{"metadata":{"name":"b"},"x":1,"data":{"a":"1","a":"2"}}`), 400, `strict decoding error: unknown field \"x\", duplicate field \"data.a\"`},
		{"strict YAML", "POST", cmPath + "?fieldValidation=Strict", "application/yaml", []byte("metadata: {name: b}\ndata:\n  a: b\n  a: c\n"), 400, `key \"a\" already set in map`},
		{"bad fieldValidation", "POST", cmPath + "?fieldValidation=Maybe", "application/json", []byte(`{"metadata":{"name":"b"}}`), 422, "fieldValidation"},
		{"protobuf garbage", "POST", cmPath, "application/vnd.kubernetes.protobuf", []byte("k8s\x00\xff\xff\xff"), 400, ""},
		{"protobuf without prefix", "POST", cmPath, "application/vnd.kubernetes.protobuf", []byte("hello"), 400, ""},
		{"protobuf bad object", "POST", cmPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ConfigMap", []byte("\x0a\xff\xff\xff\xff\x0f"), 0), 400, ""},
		{"not acceptable", "GET", cmPath + "/a", "", nil, 406, "406: Not Acceptable"},
		{"forged resourceVersion", "PUT", cmPath + "/a", "application/json", []byte(`{"metadata":{"name":"a","resourceVersion":"-5"}}`), 422, "metadata.resourceVersion"},
		{"text resourceVersion", "PUT", cmPath + "/a", "application/json", []byte(`{"metadata":{"name":"a","resourceVersion":"abc"}}`), 422, "metadata.resourceVersion"},
		{"stale resourceVersion", "PUT", cmPath + "/a", "application/json", []byte(`{"metadata":{"name":"a","resourceVersion":"1"}}`), 409, "the object has been modified"},
		{"wrong uid", "PUT", cmPath + "/a", "application/json", []byte(`{"metadata":{"name":"a","uid":"x"}}`), 409, "UID in precondition"},
		{"other name", "PUT", cmPath + "/a", "application/json", []byte(`{"metadata":{"name":"b"}}`), 400, "the name of the object (b) does not match the name on the URL (a)"},
		{"list rv", "GET", cmPath + "?resourceVersion=-1", "", nil, 400, `invalid resource version: resourceVersion: Invalid value: \"-1\": strconv.ParseUint: parsing \"-1\": invalid syntax`},
		{"list rv text", "GET", cmPath + "?resourceVersion=forged", "", nil, 400, `"message":"invalid resource version: resourceVersion: Invalid value: \"forged\": strconv.ParseUint: parsing \"forged\": invalid syntax","reason":"BadRequest","code":400`},
		{"watch rv text", "GET", cmPath + "?watch=1&resourceVersion=forged", "", nil, 400, `parsing \"forged\": invalid syntax`},
		{"get rv text", "GET", cmPath + "/a?resourceVersion=forged", "", nil, 400, `parsing \"forged\": invalid syntax`},
		{"list rv future", "GET", cmPath + "?resourceVersion=99999", "", nil, 504, "Too large resource version"},
		{"rv match without rv", "GET", cmPath + "?resourceVersionMatch=Exact", "", nil, 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		{"bad match", "GET", cmPath + "?resourceVersionMatch=Foo&resourceVersion=1", "", nil, 422, "Unsupported value"},
		{"continue garbage", "GET", cmPath + "?limit=1&continue=%21%21", "", nil, 400, "continue key is not valid"},
		{"continue no JSON", "GET", cmPath + "?limit=1&continue=" + token("xx"), "", nil, 400, "continue key is not valid"},
		{"continue version", "GET", cmPath + "?limit=1&continue=" + token(`{"v":"v2","rv":1,"start":"a"}`), "", nil, 400, "does not recognize this encoded version"},
		{"continue future", "GET", cmPath + "?limit=1&continue=" + token(`{"v":"meta.k8s.io/v1","rv":99999,"start":"default/a\u0000"}`), "", nil, 400, "continue"},
		{"continue traversal", "GET", cmPath + "?limit=1&continue=" + token(`{"v":"meta.k8s.io/v1","rv":2,"start":"../secrets/x"}`), "", nil, 400, "continue key is not valid"},
		{"bad label selector", "GET", cmPath + "?labelSelector=a%3D%3D%3Db", "", nil, 400, "unable to parse requirement"},
		{"bad field selector", "GET", cmPath + "?fieldSelector=spec.foo%3Dx", "", nil, 400, "spec.foo"},
		{"bad limit", "GET", cmPath + "?limit=x", "", nil, 400, `parsing \"x\": invalid syntax`},
		{"sendInitialEvents on list", "GET", cmPath + "?sendInitialEvents=true", "", nil, 422, "sendInitialEvents is forbidden for list"},
		{"watch in YAML", "GET", cmPath + "?watch=1", "application/yaml", nil, 406, "application/json;stream=watch"},
		{"table in protobuf", "GET", cmPath + "", "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", nil, 406, "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"create in text", "POST", cmPath, "text/plain", []byte("x"), 415, "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"patch media type", "PATCH", cmPath + "/a", "application/json", []byte(`{}`), 415, "415: Unsupported Media Type"},
		{"patch not JSON", "PATCH", cmPath + "/a", "application/merge-patch+json", []byte(`{`), 400, ""},
		{"patch copy bomb", "PATCH", cmPath + "/a", "application/json-patch+json", []byte(copies), 422, ""},
		{"patch too many operations", "PATCH", cmPath + "/a", "application/json-patch+json", []byte(ops), 413, "The allowed maximum operations in a JSON patch is 10000, got 10001"},
		{"patch to bad type", "PATCH", cmPath + "/a", "application/merge-patch+json", []byte(`{"data":[1]}`), 422, ""},
		{"apply without manager", "PATCH", cmPath + "/a", "application/apply-patch+yaml", []byte(`{"apiVersion":"v1","kind":"ConfigMap"}`), 422, "fieldManager"},
		{"apply unknown field", "PATCH", cmPath + "/a?fieldManager=x", "application/apply-patch+yaml", []byte(`{"apiVersion":"v1","kind":"ConfigMap","unknownField":1}`), 400, "failed to create typed patch object (/; /v1, Kind=ConfigMap): .unknownField: field not declared in schema"},
		{"apply garbage", "PATCH", cmPath + "/a?fieldManager=x", "application/apply-patch+yaml", []byte("\t\x00"), 400, "error decoding patch"},
		{"delete options", "DELETE", cmPath + "/a", "application/json", []byte(`{"kind":"Pod","apiVersion":"v1"}`), 400, ""},
		{"delete policy", "DELETE", cmPath + "/a?propagationPolicy=Maybe", "", nil, 422, "propagationPolicy"},
		{"both policies", "DELETE", cmPath + "/a", "application/json", []byte(`{"propagationPolicy":"Orphan","orphanDependents":true}`), 422, ""},
		{"no such resource", "GET", "/api/v1/namespaces/default/foos", "", nil, 404, ""},
		{"no such version", "GET", "/apis/apps/v9/deployments", "", nil, 404, ""},
		{"cluster resource in a namespace", "GET", "/api/v1/namespaces/default/nodes", "", nil, 404, ""},
		{"no such subresource", "GET", cmPath + "/a/status", "", nil, 404, ""},
		{"method", "POST", cmPath + "/a", "application/json", []byte(`{}`), 405, "the server does not allow this method on the requested resource"},
		{"dots", "GET", cmPath + "/..", "", nil, 400, "Name parameter invalid"},
		{"encoded slash", "GET", "/api/v1/namespaces/default/configmaps/a%2Fb", "", nil, 404, ""},
		{"encoded dots", "GET", cmPath + "/%2e%2e", "", nil, 400, "Name parameter invalid"},
		{"dots in the body", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":".."}}`), 422, "metadata.name"},
		{"slash in the body", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"../secrets/a"}}`), 422, "metadata.name"},
		{"encoded traversal", "DELETE", cmPath + "/..%2fsecrets%2fa", "", nil, 404, ""},
		{"zero byte in the path", "GET", cmPath + "/a%00b", "", nil, 404, ""},
		{"zero byte in a namespace", "GET", "/api/v1/namespaces/a%00/configmaps/a", "", nil, 404, ""},
		{"zero byte in the body", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"a\u0000b"}}`), 422, "metadata.name"},
		{"bad UTF-8 in a name", "POST", cmPath, "application/json", []byte("{\"metadata\":{\"name\":\"a\xff\"}}"), 422, "metadata.name"},
		{"bad UTF-8 in YAML", "POST", cmPath, "application/yaml", []byte("metadata: {name: \"a\xff\"}\n"), 400, "invalid"},
		{"bad UTF-8 in protobuf", "POST", cmPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ConfigMap", []byte("\x0a\x04\x0a\x02a\xff"), 0), 422, "metadata.name"},
		{"bad UTF-8 in the path", "GET", cmPath + "/%ff", "", nil, 404, ""},
		// Upstream takes them, too; what they cost is what counts.
		{"large quantity", "POST", quotaPath, "application/json", quota("1e999"), 201, "1e999"},
		{"huge quantity", "POST", quotaPath, "application/json", quota("1e9999999"), 400, "spec.hard.cpu: a quantity with the exponent 9999999"},
		{"huge quantity of another kind", "POST", cmPath, "application/json", []byte(`{"apiVersion":"v1","kind":"ResourceQuota","spec":{"hard":{"cpu":"1e9999999"}}}`), 400, "spec.hard.cpu"},
		{"huge quantity in YAML", "POST", quotaPath, "application/yaml", []byte("metadata: {name: q}\nspec: {hard: {cpu: \"1\\x659999999\"}}\n"), 400, "spec.hard.cpu"},
		{"huge quantity in protobuf", "POST", quotaPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ResourceQuota", quotaRaw, 0), 400, "spec.hard.cpu"},
		{"long quantity", "POST", quotaPath, "application/json", quota(strings.Repeat("9", 1<<20)), 400, "a quantity of 1048576 characters"},
		{"huge quantity merged", "PATCH", quotaPath + "/q", "application/merge-patch+json", []byte(`{"spec":{"hard":{"cpu":"1e9999999"}}}`), 400, "spec.hard.cpu"},
		{"huge quantity merged by strategy", "PATCH", quotaPath + "/q", "application/strategic-merge-patch+json", []byte(`{"spec":{"hard":{"cpu":1e9999999}}}`), 400, "spec.hard.cpu"},
		{"huge quantity in a patch", "PATCH", quotaPath + "/q", "application/json-patch+json", []byte(`[{"op":"add","path":"/spec/hard/cpu","value":"1e9999999"}]`), 400, "exponent 9999999"},
		{"huge quantity applied", "PATCH", quotaPath + "/q?fieldManager=m", "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ResourceQuota\nspec: {hard: {cpu: '1e9999999'}}\n"), 400, "spec.hard.cpu"},
		{"quantity without end", "POST", quotaPath, "application/json", quota("1e"), 400, "unable to parse quantity's suffix"},
		{"quantity beyond any", "POST", quotaPath, "application/json", quota("1e9999999999999999999"), 400, ""},
		{"huge number", "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"b","generation":1e999999}}`), 400, ""},
		{"10,000 label terms", "GET", cmPath + "?labelSelector=" + strings.Repeat("a%3Db,", 9_999) + "a%3D%3D%3Db", "", nil, 400, "unable to parse requirement"},
		{"10,000 values", "GET", cmPath + "?labelSelector=a+in+(" + strings.Repeat("b,", 9_999) + "-b)", "", nil, 400, ""},
		{"10,000 field terms", "GET", cmPath + "?fieldSelector=" + strings.Repeat("metadata.name%3Da,", 9_999) + "spec.foo%3Db", "", nil, 400, "spec.foo"},
		{"10,000 terms in a body", "DELETE", cmPath + "?fieldSelector=" + strings.Repeat("metadata.name%21%3Da,", 10_000) + "spec.foo%3Db", "application/json", nil, 400, "spec.foo"},
		{"duplicate metadata", "POST", cmPath + "?fieldValidation=Strict", "application/json", []byte(`{"metadata":{"name":"b"},"metadata":{"name":"c"}}`), 400, `duplicate field \"metadata\"`},
		{"duplicate kinds", "POST", cmPath, "application/json", []byte(`{"kind":"ConfigMap","apiVersion":"v1","kind":"Secret","metadata":{"name":"b"}}`), 400, ""},
		{"protobuf of another type", "POST", cmPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ConfigMap", []byte("\x08\x01"), 0), 400, "wrong wireType = 0 for field ObjectMeta"},
		{"protobuf group", "POST", cmPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ConfigMap", []byte("\x0b\x0c"), 0), 400, ""},
		{"protobuf varint without end", "POST", cmPath, "application/vnd.kubernetes.protobuf", wire.AppendObject(nil, "v1", "ConfigMap", bytes.Repeat([]byte{0xff}, 1000), 0), 400, ""},
		{"too large in protobuf", "POST", cmPath, "application/vnd.kubernetes.protobuf", big, 413, "limit is 3145728"},
		{"too large a patch", "PATCH", cmPath + "/a", "application/merge-patch+json", big, 413, "limit is 3145728"},
		{"too large an apply", "PATCH", cmPath + "/a?fieldManager=x", "application/apply-patch+yaml", big, 413, "limit is 3145728"},
		{"too large options", "DELETE", cmPath + "/a", "application/json", big, 413, "limit is 3145728"},
		{"percent", "GET", cmPath + "/a%25b", "", nil, 400, "may not contain '%'"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headers := []string{}
			if tc.name == "not acceptable" {
				headers = append(headers, "Accept", "application/xml")
			}
			if tc.method == "GET" && tc.media != "" {
				headers = append(headers, "Accept", tc.media)
			}
			before := spent(t)
			code, body := c.do(t, tc.method, tc.path, tc.media, tc.body, headers...)
			if took := spent(t) - before; took > time.Second {
				t.Errorf("the request cost %v of CPU", took)
			}
			if code != tc.code || !strings.Contains(body, tc.text) {
				if len(body) > 600 {
					body = body[:600]
				}
				t.Errorf("got %d %s\nwant %d %s", code, body, tc.code, tc.text)
			}
		})
	}
	if more := obtained() - mem; more > 64<<20 {
		t.Errorf("all that took %d MiB of memory", more>>20)
	}
	t.Logf("in all %v of CPU, %d MiB of memory", spent(t)-cpu, (obtained()-mem)>>20)
	if code, _ := c.do(t, "GET", cmPath+"/a", "", nil); code != 200 {
		t.Errorf("the object is gone or the server ill: %d", code)
	}
}

// spent is the CPU time this process has had.
func spent(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// obtained is what this process has got of the system at most.
func obtained() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}
