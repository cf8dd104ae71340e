package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseList(t *testing.T) {
	got, err := parseList("stage\tarea\tcodename\timages\n1\tapimachinery\t[sig-api-machinery] Watchers should watch\t-\n\t\t[sig-node] Pods should run\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []test{{"1", "apimachinery", "[sig-api-machinery] Watchers should watch"}, {"-", "node", "[sig-node] Pods should run"}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, bad := range []string{"", "stage\tname\n1\tx\n", "codename\nPods should run\n"} {
		if _, err := parseList(bad); err == nil {
			t.Errorf("parseList(%q) accepted", bad)
		}
	}
}

func TestNamesAreTheSuites(t *testing.T) {
	listing := "The following spec names can be used:\nk8s.io/x/pods.go:12: [sig-node] Pods should run: twice\n"
	if err := checkNamesIn(listing, []test{{name: "[sig-node] Pods should run: twice"}}); err != nil {
		t.Error(err)
	}
	if err := checkNamesIn(listing, []test{{name: "[sig-node] Pods should fly"}}); err == nil {
		t.Error("a test that is not in the suite was accepted")
	}
}

const junit = `<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed"/>
<testcase name="[It] a" status="passed" time="1.5"/>
<testcase name="[It] b" status="failed"><failure message="it broke&#xA;there"/></testcase>
<testcase name="[It] c" status="skipped"><skipped message="skipped - needs two nodes"/></testcase>
<testcase name="[It] d" status="skipped"><skipped message="skipped"/></testcase>
</testsuite></testsuites>`

func TestSummary(t *testing.T) {
	results, err := parseJUnit([]byte(junit))
	if err != nil {
		t.Fatal(err)
	}
	tests := []test{{"1", "x", "a"}, {"1", "x", "b"}, {"2", "y", "c"}, {"2", "y", "d"}}
	s := summarize(tests, results)
	text := s.text()
	for _, want := range []string{
		"1                       2      1      1      0      0\n",
		"2                       2      0      0      1      1\n",
		"FAILED: b\n    it broke\n", "SKIPPED: c\n    skipped - needs two nodes\n", "MISSING: d\n",
		"1 of 4 passed, 1 failed, 1 skipped, 1 did not run\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("summary lacks %q:\n%s", want, text)
		}
	}
	if err := s.verdict(); err == nil || !strings.Contains(err.Error(), "FEWER TESTS RAN THAN ASKED: 1 of 4") {
		t.Errorf("verdict = %v", err)
	}
	if err := summarize(tests[:2], results).verdict(); err == nil || strings.Contains(err.Error(), "FEWER") {
		t.Errorf("verdict with one failure = %v", err)
	}
	if err := summarize(tests[:1], map[string]result{"a": results["a"]}).verdict(); err != nil {
		t.Errorf("verdict with all passed = %v", err)
	}
}

func TestHistory(t *testing.T) {
	results, err := parseJUnit([]byte(junit))
	if err != nil {
		t.Fatal(err)
	}
	tests := []test{{"1", "x", "a"}, {"1", "x", "b"}, {"2", "y", "c"}, {"2", "y", "d"}}
	first, second := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	h, err := readHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.add(summarize(tests, results), "aaaa", first)
	// A later run by name of one test: the stage stays, the rest of the history too.
	h.add(summarize([]test{{"-", "x", "b"}, {"-", "x", "a"}}, map[string]result{"b": {status: "passed"}}), "bbbb", second)
	if err := h.write(dir); err != nil {
		t.Fatal(err)
	}
	if h, err = readHistory(dir); err != nil {
		t.Fatal(err)
	}
	text := h.markdown(tests)
	for _, want := range []string{
		"| 1 | 2 | 2 | 0 | 0 | 0 | 2027-01-02 aaaa, 2027-01-03 bbbb |\n",
		"| 2 | 2 | 0 | 0 | 1 | 1 | 2027-01-02 aaaa |\n",
		"| all | 4 | 2 | 0 | 1 | 1 | 2027-01-02 aaaa, 2027-01-03 bbbb |\n",
		"## Skipped (1)\n\n- c  \n  aaaa, 2027-01-02: `skipped - needs two nodes`\n", "## Never ran (1)\n\n- d\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "## Failed") {
		t.Errorf("b failed first and passed later, yet:\n%s", text)
	}
}

func TestImagesAreWholeRecipes(t *testing.T) {
	built := map[string]bool{}
	for _, p := range programs {
		built[p.name] = true
	}
	seen := map[string]bool{}
	for _, i := range images() {
		if seen[i.name] {
			t.Errorf("two recipes for %s", i.name)
		}
		seen[i.name] = true
		for p := range i.programs {
			if !built[p] {
				t.Errorf("%s holds %s, which nothing builds", i.name, p)
			}
		}
		if len(i.entrypoint)+len(i.cmd) == 0 {
			t.Errorf("%s runs nothing", i.name)
		}
	}
}
