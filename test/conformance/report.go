package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strings"
)

// result is how one test ended: "passed", "failed" or "skipped".
type result struct {
	status  string
	message string // why it failed or was skipped
	seconds float64
}

// readJUnit returns the results by test name, those that ran only.
func readJUnit(file string) (map[string]result, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseJUnit(data)
}

func parseJUnit(data []byte) (map[string]result, error) {
	type note struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	var doc struct {
		Suites []struct {
			Cases []struct {
				Name    string  `xml:"name,attr"`
				Time    float64 `xml:"time,attr"`
				Failure *note   `xml:"failure"`
				Error   *note   `xml:"error"`
				Skipped *note   `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	results := map[string]result{}
	for _, s := range doc.Suites {
		for _, c := range s.Cases {
			name, isTest := strings.CutPrefix(c.Name, "[It] ")
			r := result{status: "passed", seconds: c.Time}
			switch {
			case c.Failure != nil:
				r.status, r.message = "failed", cmp.Or(c.Failure.Message, c.Failure.Text)
			case c.Error != nil:
				r.status, r.message = "failed", cmp.Or(c.Error.Message, c.Error.Text)
			case c.Skipped != nil && (c.Skipped.Message == "" || c.Skipped.Message == "skipped"):
				continue // left out by the focus, not by the test
			case c.Skipped != nil:
				r.status, r.message = "skipped", c.Skipped.Message
			}
			if isTest || r.status == "failed" {
				results[name] = r
			}
		}
	}
	return results, nil
}

// summary sets what was asked beside what came out.
type summary struct {
	tests   []test
	results map[string]result
	count   map[string]int // by status; "missing" is asked for but not run
	suite   []string       // failures outside any test
}

func summarize(tests []test, results map[string]result) summary {
	s := summary{tests: tests, results: results, count: map[string]int{}}
	asked := map[string]bool{}
	for _, t := range tests {
		asked[t.name] = true
		s.count[s.status(t)]++
	}
	for name, r := range results {
		if !asked[name] && r.status == "failed" {
			s.suite = append(s.suite, name+": "+firstLine(r.message))
		}
	}
	slices.Sort(s.suite)
	return s
}

func (s summary) status(t test) string {
	if r, ok := s.results[t.name]; ok {
		return r.status
	}
	return "missing"
}

// text is the report a person reads.
func (s summary) text() string {
	var b strings.Builder
	group := func(title string, key func(test) string) {
		counts := map[string]map[string]int{}
		for _, t := range s.tests {
			if counts[key(t)] == nil {
				counts[key(t)] = map[string]int{}
			}
			counts[key(t)][s.status(t)]++
		}
		fmt.Fprintf(&b, "\n%-18s %6s %6s %6s %6s %6s\n", title, "asked", "pass", "fail", "skip", "norun")
		for _, k := range sortedKeys(counts) {
			c := counts[k]
			fmt.Fprintf(&b, "%-18s %6d %6d %6d %6d %6d\n", k, c["passed"]+c["failed"]+c["skipped"]+c["missing"],
				c["passed"], c["failed"], c["skipped"], c["missing"])
		}
	}
	group("stage", func(t test) string { return t.stage })
	group("area", func(t test) string { return t.area })
	b.WriteString("\n")
	for _, status := range []string{"failed", "skipped", "missing"} {
		for _, t := range s.tests {
			if s.status(t) == status {
				fmt.Fprintf(&b, "%s: %s\n", strings.ToUpper(status), t.name)
				if m := firstLine(s.results[t.name].message); m != "" {
					fmt.Fprintf(&b, "    %s\n", m)
				}
			}
		}
	}
	for _, f := range s.suite {
		fmt.Fprintf(&b, "SUITE: %s\n", f)
	}
	fmt.Fprintf(&b, "\n%d of %d passed, %d failed, %d skipped, %d did not run\n", s.count["passed"], len(s.tests),
		s.count["failed"], s.count["skipped"], s.count["missing"])
	return b.String()
}

// verdict is nil only where every test asked for ran and passed.
func (s summary) verdict() error {
	if n := s.count["missing"]; n > 0 {
		return fmt.Errorf("FEWER TESTS RAN THAN ASKED: %d of %d did not run; the log says why", n, len(s.tests))
	}
	if n := s.count["failed"] + s.count["skipped"] + len(s.suite); n > 0 {
		return fmt.Errorf("%d of %d tests did not pass", n, len(s.tests))
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func firstLine(text string) string {
	for _, l := range strings.Split(text, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			return l
		}
	}
	return ""
}
