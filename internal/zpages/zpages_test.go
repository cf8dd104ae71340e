package zpages_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/internal/zpages"
)

func pages() *zpages.Pages {
	return zpages.New("kube-x", "v1.37.2+build", map[string]string{"v": "2", "bind-address": "::"}, "/metrics", "/healthz")
}

func get(h http.Handler, path, accept, agent string) *httptest.ResponseRecorder {
	req, w := httptest.NewRequest("GET", path, http.NoBody), httptest.NewRecorder()
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	req.Header.Set("User-Agent", agent)
	h.ServeHTTP(w, req)
	return w
}

// What is text reads as upstream's, which never has the same separator for long.
func TestText(t *testing.T) {
	const warning = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only."
	for page, want := range map[string]string{
		"/statusz": "\nkube-x statusz\n" + warning + "\n\nStarted§ \\w+ \\w+ +\\d+ [\\d:]+ UTC \\d+\nUp§ 0 hr 00 min \\d\\d sec\nGo version§ " + regexp.QuoteMeta(runtime.Version()) +
			"\nBinary version§ 1\\.37\\.2\nEmulation version§ 1\\.37\nPaths§ /flagz /healthz /metrics /statusz\n",
		"/flagz": "\nkube-x flagz\n" + warning + "\nbind-address§::\nv§2\n",
	} {
		exp := regexp.MustCompile("^" + strings.ReplaceAll(want, "§", "(:|: |=| )") + "$")
		for _, accept := range []string{"", "*/*", "text/*", "text/plain", "application/json, text/plain"} {
			w := get(pages(), page, accept, "curl/8")
			if w.Code != 200 || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || !exp.MatchString(w.Body.String()) {
				t.Errorf("%s as %q: %d %v\n%s\nwant %s", page, accept, w.Code, w.Header(), w.Body, exp)
			}
		}
	}
}

func TestObjects(t *testing.T) {
	for _, c := range []struct{ page, accept, agent, contentType, want string }{
		{"/flagz", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io", "go", "application/json;g=config.k8s.io;v=v1beta1;as=Flagz",
			`{"kind":"Flagz","apiVersion":"config.k8s.io/v1beta1","metadata":{"name":"kube-x"},"flags":{"bind-address":"::","v":"2"}}` + "\n"},
		{"/flagz", "application/yaml;as=Flagz;v=v1alpha1;g=config.k8s.io", "go", "application/yaml;g=config.k8s.io;v=v1alpha1;as=Flagz",
			"apiVersion: config.k8s.io/v1alpha1\nflags:\n  bind-address: '::'\n  v: \"2\"\nkind: Flagz\nmetadata:\n  name: kube-x\n"},
		{"/flagz", "*/*;as=Flagz;v=v1beta1;g=config.k8s.io", "curl/8", "application/json;g=config.k8s.io;v=v1beta1;as=Flagz",
			"{\n  \"kind\": \"Flagz\",\n  \"apiVersion\": \"config.k8s.io/v1beta1\",\n  \"metadata\": {\n    \"name\": \"kube-x\"\n  },\n  \"flags\": {\n    \"bind-address\": \"::\",\n    \"v\": \"2\"\n  }\n}"},
	} {
		w := get(pages(), c.page, c.accept, c.agent)
		if w.Code != 200 || w.Header().Get("Content-Type") != c.contentType || w.Body.String() != c.want {
			t.Errorf("%s as %s: %d %v\n%s", c.page, c.accept, w.Code, w.Header(), w.Body)
		}
		if old := w.Header().Get("Warning"); strings.Contains(c.accept, "alpha") != (old == `299 - "This version of the flagz endpoint is deprecated. Please use a newer version."`) {
			t.Errorf("%s: warning %q", c.accept, old)
		}
	}
	w := get(pages(), "/statusz", "application/json;as=Statusz;v=v1beta1;g=config.k8s.io", "go")
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	started, err := time.Parse(time.RFC3339, got["startTime"].(string))
	if err != nil || time.Since(started) > time.Hour {
		t.Errorf("started %v, %v", got["startTime"], err)
	}
	got["startTime"], got["uptimeSeconds"] = "then", "some"
	text, _ := yaml.Marshal(got)
	want := fmt.Sprintf("apiVersion: config.k8s.io/v1beta1\nbinaryVersion: 1.37.2\nemulationVersion: \"1.37\"\ngoVersion: %s\nkind: Statusz\nmetadata:\n  name: kube-x\n"+
		"paths:\n- /flagz\n- /healthz\n- /metrics\n- /statusz\nstartTime: then\nuptimeSeconds: some\n", runtime.Version())
	if string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io",
		"application/json;as=Statusz;v=v1;g=config.k8s.io", "text/plain;as=Statusz;v=v1beta1;g=config.k8s.io", "application/json;as=Statusz;v=v1beta1;g=config.k8s.io;stream=watch"} {
		w := get(pages(), "/statusz", accept, "go")
		if w.Code != 406 || !strings.Contains(w.Body.String(), `"message": "only the following media types are accepted: application/json, application/yaml, text/plain"`) {
			t.Errorf("%s: %d %s", accept, w.Code, w.Body)
		}
	}
	mux := http.NewServeMux()
	zpages.New("kube-y", "v1.37.2", nil).Mount(mux)
	if a, b := get(mux, "/flagz", "", "go").Code, get(mux, "/statusz", "", "go").Code; a != 404 || b != 200 {
		t.Errorf("without flags: /flagz %d, /statusz %d", a, b)
	}
}
