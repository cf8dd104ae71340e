package apiserver_test

import (
	"encoding/json"
	"testing"
)

// A CSINode has a status of its own path. What could be in it is behind a gate that is off, so a write
// changes nothing: neither there nor, from there, in the spec.
func TestStatusOfCSINode(t *testing.T) {
	raw := newRaw(newServer(t, nil))
	const path = "/apis/storage.k8s.io/v1/csinodes"
	health := `"status":{"storageHealth":[{"name":"d","healthy":false}]}`
	if code, body := raw.do(t, "POST", path, "application/json", []byte(`{"metadata":{"name":"n"},"spec":{"drivers":[{"name":"d","nodeID":"x"}]},`+health+`}`)); code != 201 {
		t.Fatal(code, body)
	}
	for _, sub := range []string{"", "/status"} {
		code, body := raw.do(t, "PATCH", path+"/n"+sub, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}},"spec":{"drivers":[]},`+health+`}`))
		var n struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct{ Drivers []any }
			Status   map[string]any
		}
		if err := json.Unmarshal([]byte(body), &n); code != 200 || err != nil {
			t.Fatal(sub, code, body)
		}
		changed := len(n.Metadata.Labels) == 1 && len(n.Spec.Drivers) == 0
		if changed != (sub == "") || len(n.Status) > 0 {
			t.Errorf("PATCH %q: %s", sub, body)
		}
		raw.do(t, "PATCH", path+"/n", "application/merge-patch+json", []byte(`{"metadata":{"labels":null},"spec":{"drivers":[{"name":"d","nodeID":"x"}]}}`))
	}
}
