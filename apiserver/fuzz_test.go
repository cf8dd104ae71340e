package apiserver_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
)

// FuzzRequest: whatever the method, path and body, the server answers, and
// never with a 5xx other than a timeout for a resource version from the future.
func FuzzRequest(f *testing.F) {
	s := newServer(f, nil)
	rt := s.InProcess(admin).Transport
	f.Add(0, "/api/v1/namespaces/default/configmaps?limit=1&continue=x", 0, []byte(nil))
	f.Add(1, "/api/v1/namespaces/default/pods", 0, []byte(`{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}]}}`))
	f.Add(1, "/api/v1/namespaces/default/services", 1, []byte("metadata: {name: s}\nspec: {ports: [{port: 80}], type: NodePort}\n"))
	f.Add(2, "/apis/apps/v1/namespaces/default/deployments/d", 2, []byte("k8s\x00\x0a\x00\x12\x00"))
	f.Add(3, "/api/v1/namespaces/default/configmaps/a?fieldManager=x&force=true", 3, []byte(`{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"b"}}`))
	f.Add(3, "/api/v1/nodes/n/status", 4, []byte(`[{"op":"add","path":"/metadata/labels","value":{}}]`))
	f.Add(4, "/api/v1/namespaces/default/pods?labelSelector=a", 0, []byte(`{"propagationPolicy":"Foreground"}`))
	f.Add(1, "/apis/authorization.k8s.io/v1/subjectaccessreviews", 0, []byte(`{"spec":{"user":"a","nonResourceAttributes":{}}}`))
	methods := []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	media := []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"}
	f.Fuzz(func(t *testing.T, method int, path string, kind int, body []byte) {
		req, err := http.NewRequestWithContext(context.Background(), methods[uint(method)%uint(len(methods))], "http://x"+path, bytes.NewReader(body))
		if err != nil || req.URL.Query().Has("watch") || req.URL.Path == "" {
			return
		}
		req.Header.Set("Content-Type", media[uint(kind)%uint(len(media))])
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if resp.StatusCode >= 500 && resp.StatusCode != http.StatusGatewayTimeout && resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusNotImplemented {
			t.Errorf("%s %s: %d %s", req.Method, path, resp.StatusCode, data)
		}
	})
}
