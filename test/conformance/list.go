package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// test is one test of upstream's suite.
type test struct {
	stage string // "-" where the list names none
	area  string
	name  string
}

// choose returns the tests asked for: those of the list, or every conformance
// test, less what stage and focus leave out. Asking for none is an error.
func choose(ctx context.Context, o options) (all []test, err error) {
	if o.list == "" {
		all, err = conformanceTests(ctx)
	} else {
		all, err = readList(o.list)
	}
	if err != nil {
		return nil, err
	}
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return nil, fmt.Errorf("focus: %w", err)
	}
	stages := strings.Split(o.stage, ",")
	tests := slices.DeleteFunc(all, func(t test) bool {
		return o.stage != "" && !slices.Contains(stages, t.stage) || !focus.MatchString(t.name)
	})
	if len(tests) == 0 {
		return nil, fmt.Errorf("no test has stage %q and matches %q", o.stage, o.focus)
	}
	return tests, nil
}

func readList(file string) ([]test, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	tests, err := parseList(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return tests, nil
}

// parseList reads tab-separated lines under a heading that names at least the
// column codename; stage and area are optional. Tests outside conformance may
// be named too.
func parseList(text string) ([]test, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comma, r.LazyQuotes, r.FieldsPerRecord = '\t', true, -1
	rows, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("no heading")
	}
	column := func(row []string, name string) string {
		if i := slices.Index(rows[0], name); i >= 0 && i < len(row) {
			return row[i]
		}
		return ""
	}
	if slices.Index(rows[0], "codename") < 0 {
		return nil, fmt.Errorf("the heading names no column codename")
	}
	var tests []test
	for i, row := range rows[1:] {
		t := test{stage: column(row, "stage"), area: column(row, "area"), name: column(row, "codename")}
		if !strings.HasPrefix(t.name, "[sig-") {
			return nil, fmt.Errorf("line %d: %q is no test's name", i+2, t.name)
		}
		if t.stage == "" {
			t.stage = "-"
		}
		if t.area == "" {
			t.area = areaOf(t.name)
		}
		tests = append(tests, t)
	}
	return tests, nil
}

// conformanceTests reads upstream's list of them from the Go module.
func conformanceTests(ctx context.Context) ([]test, error) {
	dir, err := moduleDir(ctx, "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "test/conformance/testdata/conformance.yaml"))
	if err != nil {
		return nil, err
	}
	var entries []struct {
		Codename string `json:"codename"`
	}
	if err := yaml.Unmarshal(data, &entries); err != nil {
		return nil, err
	}
	var tests []test
	for _, e := range entries {
		tests = append(tests, test{stage: "-", area: areaOf(e.Codename), name: e.Codename})
	}
	return tests, nil
}

// areaOf is the interest group a test's name opens with.
func areaOf(name string) string {
	sig, _, _ := strings.Cut(strings.TrimPrefix(name, "[sig-"), "]")
	return strings.ReplaceAll(sig, "-", "")
}

// checkNames is an error for a test that the suite at path does not have.
func checkNames(ctx context.Context, path string, tests []test) error {
	out, err := exec.CommandContext(ctx, path, "-list-tests").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its tests: %w", path, err)
	}
	return checkNamesIn(string(out), tests)
}

// checkNamesIn takes the suite's answer, lines of "file:line: name".
func checkNamesIn(listing string, tests []test) error {
	known := map[string]bool{}
	for line := range strings.Lines(listing) {
		if _, name, ok := strings.Cut(line, ": "); ok {
			known[strings.TrimSpace(name)] = true
		}
	}
	for _, t := range tests {
		if !known[t.name] {
			return fmt.Errorf("upstream has no test %q", t.name)
		}
	}
	return nil
}
