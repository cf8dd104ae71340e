package health

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	var bad error
	done := false
	h := New([]Check{{"ping", Fine}, {"etcd", func() error { return bad }}},
		[]Check{{"poststarthook/rbac/bootstrap-roles", Once(func() bool { return done })}}, func() bool { return false })
	get := func(path string) (int, string) {
		t.Helper()
		req := httptest.NewRequest("GET", path, nil)
		w := httptest.NewRecorder()
		if !h.Serve(w, req, req.URL.Query()) {
			return 404, ""
		}
		return w.Code, w.Body.String()
	}
	for _, step := range []struct {
		path string
		code int
		want string
	}{
		{"/livez", 200, "ok"},
		{"/healthz?verbose", 200, "[+]ping ok\n[+]etcd ok\nhealthz check passed\n"},
		{"/readyz", 500, "[+]ping ok\n[+]etcd ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\nreadyz check failed\n"},
		{"/readyz/poststarthook/rbac/bootstrap-roles", 500, "failed"},
		{"/readyz?exclude=poststarthook/rbac/bootstrap-roles", 200, "ok"},
		{"/livez/poststarthook/rbac/bootstrap-roles", 404, ""},
		{"/readyz/ping", 200, "ok"},
		{"/readyzz", 404, ""},
		{"/metrics/slis", 200, `kubernetes_healthcheck{name="poststarthook/rbac/bootstrap-roles",type="readyz"} 0`},
		{"/metrics/slis", 200, `kubernetes_healthchecks_total{name="etcd",status="success",type="livez"} 1`},
	} {
		if code, body := get(step.path); code != step.code || !strings.Contains(body, step.want) {
			t.Errorf("%s: %d %s, want %d %s", step.path, code, body, step.code, step.want)
		}
	}
	done, bad = true, errors.New("secret")
	if code, body := get("/readyz"); code != 500 || !strings.Contains(body, "[-]etcd failed: reason withheld") || strings.Contains(body, "secret") {
		t.Errorf("%d %s", code, body)
	}
	bad = nil
	if code, _ := get("/readyz/"); code != 200 {
		t.Errorf("in the end: %d", code)
	}
}

// For a while after its start a server lives although it is not ready.
func TestGrace(t *testing.T) {
	starting := true
	h := New([]Check{{"poststarthook/a", Once(func() bool { return false })}}, nil, func() bool { return starting })
	code := func(path string) int {
		w := httptest.NewRecorder()
		h.Serve(w, httptest.NewRequest("GET", path, nil), nil)
		return w.Code
	}
	if live, ready := code("/livez"), code("/readyz"); live != 200 || ready != 500 {
		t.Errorf("at first: /livez %d, /readyz %d", live, ready)
	}
	if starting = false; code("/livez") != 500 {
		t.Error("/livez passes after the grace")
	}
}
