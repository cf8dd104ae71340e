package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// test is one conformance test.
type test struct {
	stage string // "-" where the list names none
	area  string
	name  string
}

// choose returns the tests asked for: those of the list, or all, less what
// stage and focus leave out. Asking for none is an error.
func choose(ctx context.Context, o options) ([]test, error) {
	all, err := allTests(ctx)
	if err != nil {
		return nil, err
	}
	if o.list != "" {
		f, err := os.ReadFile(o.list)
		if err != nil {
			return nil, err
		}
		known := map[string]bool{}
		for _, t := range all {
			known[t.name] = true
		}
		if all, err = parseList(string(f), known); err != nil {
			return nil, fmt.Errorf("%s: %w", o.list, err)
		}
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

// parseList reads tab-separated lines under a heading that names at least the
// column codename; stage and area are optional.
func parseList(text string, known map[string]bool) ([]test, error) {
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
		if !known[t.name] {
			return nil, fmt.Errorf("line %d: upstream has no conformance test %q", i+2, t.name)
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

// allTests reads upstream's list of conformance tests from the Go module.
func allTests(ctx context.Context) ([]test, error) {
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
