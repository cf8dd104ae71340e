package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// measured is the newest result of one test, whichever run it comes from.
type measured struct {
	Stage   string    `json:"stage"`
	Area    string    `json:"area"`
	Status  string    `json:"status"` // passed, failed or skipped
	Message string    `json:"message,omitempty"`
	Seconds float64   `json:"seconds"`
	Commit  string    `json:"commit"`
	Date    time.Time `json:"date"`
}

// history is the newest result of every test that ever ran here, by name.
type history map[string]measured

func historyFile(dir string) string { return filepath.Join(dir, "results.json") }

func readHistory(dir string) (history, error) {
	data, err := os.ReadFile(historyFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return history{}, nil
	}
	if err != nil {
		return nil, err
	}
	h := history{}
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove it and measure again", historyFile(dir), err)
	}
	return h, nil
}

// add puts a run's results over the older ones. A test that was asked for and
// did not run keeps what it had.
func (h history) add(s summary, commit string, at time.Time) {
	for _, t := range s.tests {
		r, ran := s.results[t.name]
		if !ran {
			continue
		}
		m := measured{Stage: t.stage, Area: t.area, Status: r.status, Seconds: r.seconds, Commit: commit, Date: at.UTC().Truncate(time.Second)}
		if r.status != "passed" {
			m.Message = firstLine(r.message)
		}
		if old, ok := h[t.name]; ok && m.Stage == "-" { // this run's list named no stage
			m.Stage = old.Stage
		}
		h[t.name] = m
	}
}

func (h history) write(dir string) error {
	data, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return err
	}
	tmp := historyFile(dir) + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, historyFile(dir))
}

// commitNow names the source measured: its commit, and whether it has been changed since.
func commitNow(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+changes").Output()
	if err != nil {
		return "", fmt.Errorf("which commit is measured: git describe: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// offline are the tests that cannot pass on images made without a registry, with the reason.
var offline = map[string]string{
	"[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35] [Conformance]": "The test wants " +
		"Alpine Linux's /etc/os-release in the volume; upstream's kitten image is built on that, the one made here without a registry is not.",
}

// markdown is docs/CONFORMANCE.md: h against all tests there are.
func (h history) markdown(all []test) string {
	var b strings.Builder
	b.WriteString("# Conformance\n\nUpstream's conformance suite (v1.37.2) against a fresh two-node Skiff. Written by\n" +
		"`make conformance-report` from the newest result of each test; not edited by hand.\n")
	var rows []row
	for _, t := range all {
		m, ok := h[t.name]
		if !ok {
			m = measured{Stage: t.stage, Area: t.area, Status: "never ran"}
		}
		rows = append(rows, row{t.name, m})
	}
	table := func(title string, key func(row) string) {
		fmt.Fprintf(&b, "\n| %s | tests | passed | failed | skipped | never ran | measured |\n|---|---|---|---|---|---|---|\n", title)
		groups := map[string][]row{}
		for _, r := range rows {
			groups[key(r)] = append(groups[key(r)], r)
		}
		for _, k := range sortedKeys(groups) {
			b.WriteString(line(k, groups[k]))
		}
		if len(groups) > 1 {
			b.WriteString(line("all", rows))
		}
	}
	table("stage", func(r row) string { return r.Stage })
	table("area", func(r row) string { return r.Area })
	for _, status := range []string{"failed", "skipped", "never ran"} {
		var list []row
		for _, r := range rows {
			if r.Status == status {
				list = append(list, r)
			}
		}
		if len(list) == 0 {
			continue
		}
		slices.SortFunc(list, func(a, b row) int { return strings.Compare(a.Stage+a.name, b.Stage+b.name) })
		fmt.Fprintf(&b, "\n## %s%s (%d)\n\n", strings.ToUpper(status[:1]), status[1:], len(list))
		for _, r := range list {
			fmt.Fprintf(&b, "- %s", r.name)
			if r.Commit != "" {
				fmt.Fprintf(&b, "  \n  %s, %s: `%s`", r.Commit, r.Date.Format(time.DateOnly), strings.ReplaceAll(r.Message, "`", "'"))
			}
			if why := offline[r.name]; why != "" && status == "failed" {
				fmt.Fprintf(&b, "  \n  %s", why)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// differences is the section on what test/differential knows to differ.
func differences(known string) string {
	var b strings.Builder
	b.WriteString("\n## Differences from upstream's API server\n\n" +
		"`make differential` sends the same requests to both and compares code, body and warnings. Times, UIDs,\n" +
		"versions, random names, the order of causes and how often one is told are left out, and so is how an object\n" +
		"inside a message is written (Skiff writes the fields of the API, upstream those of its internal types), and\n" +
		"which fields upstream's server manages itself: what a server writes for itself (bootstrap objects, conditions\n" +
		"of definitions) has no managedFields here, as nobody else's apply contests it. What else differs, with why it\n" +
		"stays (test/differential/known.txt):\n\n")
	said := map[string]bool{}
	for line := range strings.Lines(known) {
		parts := strings.Split(strings.TrimSpace(line), " | ")
		if len(parts) == 3 && !said[parts[2]] && line[0] != '#' {
			said[parts[2]] = true
			fmt.Fprintf(&b, "- %s\n", parts[2])
		}
	}
	return b.String()
}

type row struct {
	name string
	measured
}

// line counts a group's tests and says where and when they were measured.
func line(title string, group []row) string {
	count, at := map[string]int{}, map[string]bool{}
	for _, r := range group {
		count[r.Status]++
		if r.Commit != "" {
			at[r.Date.Format(time.DateOnly)+" "+r.Commit] = true
		}
	}
	return fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %s |\n", title, len(group), count["passed"], count["failed"],
		count["skipped"], count["never ran"], strings.Join(sortedKeys(at), ", "))
}

// report writes the page from the results kept in o.out.
func report(ctx context.Context, o options) error {
	h, err := readHistory(o.out)
	if err != nil {
		return err
	}
	all, err := choose(ctx, options{})
	if err != nil {
		return err
	}
	if o.list != "" { // the list knows the stages
		listed, err := choose(ctx, options{list: o.list})
		if err != nil {
			return err
		}
		stage := map[string]string{}
		for _, t := range listed {
			stage[t.name] = t.stage
		}
		for i := range all {
			if s := stage[all[i].name]; s != "" {
				all[i].stage = s
			}
		}
	}
	known, err := os.ReadFile("../differential/known.txt")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.report, []byte(h.markdown(all)+differences(string(known))), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %d of %d tests have a result\n", o.report, len(h), len(all))
	return nil
}
