package audit

import (
	"bufio"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/auth"
)

// An event that is too large loses its objects; one that still is, is dropped and counted, and refuses no request.
func TestAnEventThatIsTooLarge(t *testing.T) {
	body := func(n int) func() ([]byte, error) {
		return func() ([]byte, error) { return json.Marshal(strings.Repeat("x", n)) }
	}
	for _, c := range []struct {
		what           string
		level          Level
		uri            string
		request, reply int
		want           string // of each event: has it objects, is it marked?
		dropped        float64
	}{
		{what: "small", level: LevelRequestResponse, uri: "/a", request: 500, reply: 500, want: "-- RR", dropped: 0},
		{what: "a large request", level: LevelRequest, uri: "/a", request: 5000, want: "-- T"},
		{what: "together with its answer", level: LevelRequestResponse, uri: "/a", request: 1500, reply: 1500, want: "-- T"},
		{what: "a long path", level: LevelRequest, uri: "/" + strings.Repeat("a", 3000), want: "", dropped: 2},
		{what: "a long path, without objects", level: LevelMetadata, uri: "/" + strings.Repeat("a", 3000), want: "", dropped: 2},
	} {
		bounded, whole := filepath.Join(t.TempDir(), "audit.log"), filepath.Join(t.TempDir(), "whole.log")
		a := auditor(t, Config{Policy: policy(t, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: "+string(c.level)+"}]\n"),
			Log: &LogConfig{Path: bounded, Mode: ModeBlockingStrict, Truncate: &Truncate{MaxEventSize: 2000, MaxBatchSize: 2000}}})
		other, err := newLog(LogConfig{Path: whole}, a.lost) // is given the same events afterwards
		if err != nil {
			t.Fatal(err)
		}
		a.sinks = append(a.sinks, other)
		tr, err := a.Begin(httptest.NewRequest("POST", c.uri, nil), auth.Attributes{Verb: "create", Path: c.uri}, "id", time.Unix(0, 0))
		if err != nil {
			t.Fatalf("%s: refused: %v", c.what, err)
		}
		tr.Annotate("x.io/y", "z")
		tr.Request(nil, body(c.request))
		tr.Response(body(c.reply))
		tr.End(201, nil)
		got, n := forms(t, bounded, 2000)
		if dropped := lost(t, a, "truncate"); got != c.want || dropped != c.dropped || n+int(dropped) != 2 {
			t.Errorf("%s: events %q, want %q; dropped %v, want %v", c.what, got, c.want, dropped, c.dropped)
		}
		if got, n := forms(t, whole, 1<<20); n != 2 || strings.Contains(got, "T") {
			t.Errorf("%s: the unbounded log has %d events, %q", c.what, n, got)
		}
	}
}

// lost is what a counted as such.
func lost(t *testing.T, a *Auditor, plugin string) (n float64) {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(a.errors)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Label[0].GetValue() == plugin {
				n = m.Counter.GetValue()
			}
		}
	}
	return n
}

// forms says of each event of a log that it has a request or response (R), is marked as truncated (T), or neither (-).
func forms(t *testing.T, path string, longest int) (said string, n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var words []string
	lines := bufio.NewScanner(f)
	for lines.Buffer(nil, 1<<20); lines.Scan(); n++ {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || len(lines.Bytes()) >= longest {
			t.Fatalf("%d bytes, %v", len(lines.Bytes()), err)
		}
		word := ""
		if e.RequestObject != nil {
			word += "R"
		}
		if e.ResponseObject != nil {
			word += "R"
		}
		if e.Annotations["audit.k8s.io/truncated"] == "true" {
			word += "T"
		}
		if word == "" {
			word = "--"
		}
		words = append(words, word)
		if e.Stage == StageResponseComplete && e.Annotations["x.io/y"] != "z" {
			t.Errorf("annotations lost: %v", e.Annotations)
		}
	}
	return strings.Join(words, " "), n
}

// What is sent at once is bounded in bytes, and in number.
func TestABatchIsBoundedInBytes(t *testing.T) {
	var got []string
	q := newQueue(10, 3, 10, time.Hour, func(b [][]byte) {
		var sizes []string
		for _, item := range b {
			sizes = append(sizes, string(item))
		}
		got = append(got, strings.Join(sizes, "+"))
	})
	for _, item := range []string{"aaaaaa", "bbbb", "c", "dddddddddd", "e", "f", "g", "h"} {
		if err := q.put([]byte(item)); err != nil {
			t.Fatal(err)
		}
	}
	q.close()
	if want := "aaaaaa+bbbb c dddddddddd e+f+g h"; strings.Join(got, " ") != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}
