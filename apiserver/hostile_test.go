package apiserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// hostile is a definition whose objects' spec has the schema given.
func hostile(plural, schema string) []byte {
	return []byte(strings.Replace(string(definition(plural, "Namespaced")), `"x-kubernetes-preserve-unknown-fields":true`, `"properties":{"spec":`+schema+`}`, 1))
}

// TestHostileDefinitions: what a schema can cost has bounds, and the server
// answers others meanwhile and afterwards.
func TestHostileDefinitions(t *testing.T) {
	c := newRaw(newServer(t, nil))
	const objects = "/apis/cve.example.com/v1/namespaces/default/"
	deep := strings.Repeat(`{"type":"object","properties":{"a":`, 12_000) + `{"type":"string"}` + strings.Repeat(`}}`, 12_000)
	wide := `{"type":"object","properties":{` + strings.TrimSuffix(strings.Repeat(`"aaaaaaaaaa":{"type":"string","description":"`+strings.Repeat("x", 1000)+`"},`, 3500), ",") + `}}`
	for name, body := range map[string][]byte{
		"nested 12,000 deep": hostile("deeps", deep),
		"larger than 3 MiB":  hostile("wides", wide),
		"costly rule": hostile("costlies", `{"type":"object","properties":{"l":{"type":"array","items":{"type":"array","items":{"type":"string"}}}},
			"x-kubernetes-validations":[{"rule":"self.l.all(a, self.l.all(b, a.all(x, b.all(y, x.contains(y)))))"}]}`),
		"rule without end": hostile("endlesses", `{"type":"object","x-kubernetes-validations":[{"rule":"`+strings.Repeat("(", 5000)+"true"+strings.Repeat(")", 5000)+`"}]}`),
	} {
		began := time.Now()
		code, answer := c.do(t, "POST", definitions, "application/json", body)
		if code < 400 || code > 499 || !strings.Contains(answer, `"kind":"Status"`) {
			t.Errorf("%s: %d %.300s", name, code, answer)
		}
		t.Logf("%s: %d in %v: %.200s", name, code, time.Since(began).Round(time.Millisecond), answer)
	}
	// A pattern that backtracking takes years to refuse.
	define(t, c, hostile("redos", `{"type":"object","properties":{"a":{"type":"string","pattern":"^(([a-z])+.)+[A-Z]([a-z])+$"}}}`), objects+"redos")
	object := fmt.Sprintf(`{"apiVersion":"cve.example.com/v1","kind":"Redos","metadata":{"name":"a"},"spec":{"a":%q}}`, strings.Repeat("a", 100_000))
	if code, answer := c.do(t, "POST", objects+"redos", "application/json", []byte(object)); code != 422 || !strings.Contains(answer, "should match") {
		t.Errorf("an object against the pattern: %d %.300s", code, answer)
	}
	if code, body := c.do(t, "GET", "/readyz", "", nil); code != 200 {
		t.Errorf("afterwards: %d %s", code, body)
	}
}
