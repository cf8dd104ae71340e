package componentstatus

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
)

func TestHealthEndpoints(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/well":
			w.Write([]byte("ok")) //nolint:errcheck // the client looks
		case "/moved":
			http.Redirect(w, req, "/well", http.StatusFound)
		case "/choice":
			w.WriteHeader(http.StatusMultipleChoices)
		default:
			http.Error(w, "secret details", http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	for path, want := range map[string]struct {
		status  corev1.ConditionStatus
		message string
	}{
		"/well": {"True", "ok"}, "/moved": {"True", "ok"}, "/choice": {"Unknown", "Probe terminated redirects, Response body: "},
		"/ill": {"False", "HTTP probe failed with statuscode: 500"},
	} {
		if got, message := HTTPS(srv.URL + path)(t.Context()); got != want.status || message != want.message {
			t.Errorf("%s: %s %q", path, got, message)
		}
	}
	srv.Close()
	if got, message := HTTPS(srv.URL)(t.Context()); got != "False" || !strings.Contains(message, "connection refused") {
		t.Errorf("nobody listens: %s %q", got, message)
	}
}

func TestComponents(t *testing.T) {
	own := map[string]string{"controllers": "ok", "scheduler": "it ended"}
	c := Of(func(name string) (string, bool) { h, ok := own[name]; return h, ok }, func(context.Context) error { return errors.New("no disk") })
	text := func(label, field string) string {
		list, err := c.List(t.Context(), label, fields.ParseSelectorOrDie(field))
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, o := range list {
			s := o.(*corev1.ComponentStatus)
			out = append(out, s.Name+" "+string(s.Conditions[0].Status)+" "+s.Conditions[0].Message)
		}
		return strings.Join(out, "; ")
	}
	for _, c := range []struct{ label, field, want string }{
		{"", "", "controller-manager True ok; etcd-0 False no disk; scheduler False it ended"},
		{"a=b", "", ""},
		{"a=(", "", "unable to parse requirement: found '(', expected: identifier"},
		{"", "metadata.name=scheduler", "scheduler False it ended"},
	} {
		if got := text(c.label, c.field); got != c.want {
			t.Errorf("%q %q: %s", c.label, c.field, got)
		}
	}
	if _, err := c.Get(t.Context(), "x"); !apierrors.IsNotFound(err) || err.Error() != `componentstatus "x" not found` {
		t.Error(err)
	}
	if o, err := c.Get(t.Context(), "controller-manager"); err != nil || o.GetName() != "controller-manager" {
		t.Error(o, err)
	}
}
