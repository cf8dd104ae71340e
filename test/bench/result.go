//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/skiff-project/skiff/internal/atomicfile"
)

// result is what a run of a suite found, as kept in docs/bench/<suite>.json.
type result struct {
	Suite   string    `json:"suite"`
	About   string    `json:"about"`
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Machine string    `json:"machine"`
	Load    string    `json:"loadAtStart"`
	Rounds  int       `json:"rounds"`
	Took    string    `json:"took"`
	Noise   float64   `json:"noiseBound"`
	Figures []*figure `json:"figures"`
}

// figure is one row: the values of each round.
type figure struct {
	Name   string               `json:"name"`
	Unit   string               `json:"unit"`
	Budget string               `json:"budget,omitempty"`
	Values map[string][]float64 `json:"values"` // by system
}

func newResult(ctx context.Context, s suite, o options) *result {
	load, _ := os.ReadFile("/proc/loadavg")
	if s.rounds > 0 {
		o.Rounds = min(o.Rounds, s.rounds)
	}
	return &result{
		Suite: s.name, About: s.about, Date: time.Now().UTC().Round(time.Second), Commit: commit(ctx), Machine: machine(),
		Load: strings.Join(strings.Fields(string(load))[:3], " "), Rounds: o.Rounds, Noise: o.Noise,
	}
}

// commit is what was built, with "-dirty" if it was changed since. Documents do not count: the suites before this one
// have written theirs.
func commit(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(head))
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs").Output()
	if err != nil || len(changed) > 0 {
		name += "-dirty"
	}
	return name
}

// machine is the processor, the memory and the kernel.
func machine() string {
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	mem, _ := os.ReadFile("/proc/meminfo")
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	_, model, _ := strings.Cut(string(cpu), "model name\t: ")
	model, _, _ = strings.Cut(model, "\n")
	return fmt.Sprintf("%d cores (%s), %.0f GB, Linux %s", strings.Count(string(cpu), "processor\t:"), model,
		field(mem, "MemTotal:")/1e6, strings.TrimSpace(string(kernel)))
}

// add appends one round's value of a figure.
func (r *result) add(system string, s sample) {
	i := slices.IndexFunc(r.Figures, func(f *figure) bool { return f.Name == s.Name })
	if i < 0 {
		i = len(r.Figures)
		f := &figure{Name: s.Name, Unit: s.Unit, Values: map[string][]float64{}}
		for _, suite := range allSuites() {
			if suite.name == r.Suite {
				f.Budget = suite.budgets[s.Name]
			}
		}
		r.Figures = append(r.Figures, f)
	}
	r.Figures[i].Values[system] = append(r.Figures[i].Values[system], s.Value)
}

// spread is a figure's median and range.
type spread struct{ median, low, high float64 }

func (f *figure) spread(system string) (s spread, ok bool) {
	v := slices.Sorted(slices.Values(f.Values[system]))
	if len(v) == 0 {
		return s, false
	}
	n := len(v)
	return spread{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1]}, true
}

// text is a figure's cell: the median and the range, marked if that is wide.
func (f *figure) text(system string, noise float64) string {
	s, ok := f.spread(system)
	if !ok {
		return "–"
	}
	out := number(s.median)
	if s.low != s.high {
		out += fmt.Sprintf(" (%s–%s)", number(s.low), number(s.high))
	}
	if s.noisy(noise) {
		out += " ~"
	}
	return out
}

func (s spread) noisy(bound float64) bool { return s.high-s.low > bound*math.Abs(s.median) }

func (f *figure) moreIsBetter() bool {
	return strings.HasSuffix(f.Unit, "/s") || f.Unit == "nodes held" || f.Unit == "% of due"
}

// ratio is how many times better Skiff is than upstream.
func (f *figure) ratio() (float64, bool) {
	a, one := f.spread(skiff)
	b, two := f.spread(upstream)
	if !one || !two || a.median <= 0 || b.median <= 0 {
		return 0, false
	}
	if f.moreIsBetter() {
		return a.median / b.median, true
	}
	return b.median / a.median, true
}

func (f *figure) ratioText() string {
	if ratio, ok := f.ratio(); ok {
		return number(ratio) + "×"
	}
	return ""
}

// number writes three digits, more only before the point.
func number(v float64) string {
	if v < 0 {
		return "-" + number(-v)
	}
	digits := 2
	for limit := 10.0; digits > 0 && v >= limit; limit *= 10 {
		digits--
	}
	if v != 0 && v < 0.1 {
		digits = 4
	}
	text := fmt.Sprintf("%.*f", digits, v)
	whole, part, _ := strings.Cut(text, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if part = strings.TrimRight(part, "0"); part != "" {
		return whole + "." + part
	}
	return whole
}

// noisy lists what should not be believed.
func (r *result) noisy() (names []string) {
	for _, f := range r.Figures {
		for _, system := range []string{skiff, upstream} {
			if s, ok := f.spread(system); ok && s.noisy(r.Noise) {
				names = append(names, fmt.Sprintf("%s (%s)", f.Name, system))
			}
		}
	}
	return names
}

func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s, commit %s, %s, load at start %s, rounds: %d, took %s\n", r.Suite, r.Date.Format(time.DateTime), r.Commit, r.Machine, r.Load, r.Rounds, r.Took)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tunit\tskiff\tupstream\tbetter by\tbudget")
	for _, f := range r.Figures {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, f.Unit, f.text(skiff, r.Noise), f.text(upstream, r.Noise), f.ratioText(), f.Budget)
	}
	t.Flush()
	if names := r.noisy(); names != nil {
		fmt.Fprintf(w, "~ too noisy, (max-min)/median over %g: %s\n", r.Noise, strings.Join(names, "; "))
	}
}

// save keeps the result and its plot.
func (r *result) save(docs string) error {
	dir := filepath.Join(docs, "bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, r.Suite+".json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, r.Suite+".svg"), r.plot(), 0o644)
}

const preface = `# Benchmarks

Written by ` + "`make bench`" + `; not to be edited. Each section is the newest run of its suite.

Skiff and upstream (Kubernetes v1.37.2, etcd 3.7, for real pods containerd 1.6) run in turn on one machine, with the same
clients over TLS on loopback and the same disk. A cell is the median of the rounds, with the range in parentheses; *better
by* is upstream's median over Skiff's, or the other way round where more is better. A figure marked ~ ranged too widely to be
believed. Server CPU is that of all server processes together, and of them alone. In the plots each pair of bars has
a scale of its own; the thin line is the range.
`

// document writes BENCHMARKS.md from what is kept.
func document(docs string) error {
	var b strings.Builder
	b.WriteString(preface)
	for _, s := range allSuites() {
		text, err := os.ReadFile(filepath.Join(docs, "bench", s.name+".json"))
		if os.IsNotExist(err) {
			fmt.Fprintf(&b, "\n## %s\n\nNot run yet.\n", s.name)
			continue
		}
		if err != nil {
			return err
		}
		var r result
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%s.json: %w", s.name, err)
		}
		r.section(&b)
		if s.limits != "" {
			fmt.Fprintf(&b, "\nWhere a budget is missed: %s\n", s.limits)
		}
	}
	return atomicfile.Write(filepath.Join(docs, "BENCHMARKS.md"), []byte(b.String()), 0o644)
}

func (r *result) section(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n%s UTC, commit %s, %s, load at start %s, rounds: %d, took %s.\n\n",
		r.Suite, r.About, r.Date.Format(time.DateTime), r.Commit, r.Machine, r.Load, r.Rounds, r.Took)
	b.WriteString("| what | unit | Skiff | upstream | better by | budget |\n|---|---|---|---|---|---|\n")
	for _, f := range r.Figures {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", f.Name, f.Unit, f.text(skiff, r.Noise), f.text(upstream, r.Noise), f.ratioText(), f.Budget)
	}
	fmt.Fprintf(b, "\n![%s](bench/%s.svg)\n", r.Suite, r.Suite)
	if names := r.noisy(); names != nil {
		fmt.Fprintf(b, "\nToo noisy, (max-min)/median over %g: %s.\n", r.Noise, strings.Join(names, "; "))
	}
}
