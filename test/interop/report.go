package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// document is docs/INTEROP.md.
func document(ctx context.Context, p parts, results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Interoperability

Written by `+"`make interop`"+`; do not edit. Each cell is a cluster of bare processes on one machine in which
one component is the other project's; each goes through the same kubectl commands. Cells with another
kubelet, runtime, proxy, API server or store run real pods (upstream's on Debian's containerd and runc),
the others simulated nodes. The numbers are seconds a step took; – is a step that a failure or the kind of
nodes left out.

| | |
|---|---|
| date | %s |
| commit | %s |
| Skiff | %s |
| upstream | Kubernetes %s, etcd %s, %s |
| machine | %d CPUs, %s |

`, time.Now().UTC().Format(time.DateOnly), output(ctx, "git", "describe", "--always", "--dirty"), output(ctx, p.skiff, "version"),
		reference.Version, reference.EtcdVersion, containerd(ctx), runtime.NumCPU(), output(ctx, "uname", "-sr"))
	for _, group := range groups(results) {
		group.table(&b)
	}
	if slices.ContainsFunc(results, result.failed) {
		b.WriteString("## What fails\n\n")
		for _, r := range results {
			if r.failed() {
				fmt.Fprintf(&b, "%s\n\n```\n%s\n```\n\n", r.cell, clip(r.errors()[0]))
			}
		}
	}
	return b.String()
}

// clip is an error's first line and its last few, of bounded width.
func clip(err error) string {
	if err == nil {
		return ""
	}
	const most, width = 8, 300
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) > most {
		lines = append(lines[:1:1], lines[len(lines)-most+1:]...)
	}
	for i, l := range lines {
		lines[i] = l[:min(len(l), width)]
	}
	return strings.Join(lines, "\n")
}

// group is results of one script.
type group []result

func groups(results []result) []group {
	var out []group
	last := ""
	for _, r := range results {
		kind := "mix"
		if strings.Contains(r.cell, "in depth") || strings.HasPrefix(r.cell, "data of") {
			kind = r.cell[:4]
		}
		if kind != last {
			out, last = append(out, nil), kind
		}
		out[len(out)-1] = append(out[len(out)-1], r)
	}
	return out
}

func (g group) table(b *strings.Builder) {
	var steps []string
	for _, r := range g {
		for _, o := range r.outcomes {
			if !slices.Contains(steps, o.step) {
				steps = append(steps, o.step)
			}
		}
	}
	fmt.Fprintf(b, "| cell | | %s |\n|---|---|%s\n", strings.Join(steps, " | "), strings.Repeat("---|", len(steps)))
	for _, r := range g {
		fmt.Fprintf(b, "| %s | %s |", r.cell, map[bool]string{true: "✗", false: "✓"}[r.failed()])
		for _, name := range steps {
			fmt.Fprintf(b, " %s |", r.mark(name))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

func (r result) mark(step string) string {
	for _, o := range r.outcomes {
		if o.step == step && o.err != nil {
			return "✗"
		}
		if o.step == step {
			return fmt.Sprintf("%.1f", o.took.Seconds())
		}
	}
	return "–"
}

func containerd(ctx context.Context) string {
	fields := strings.Fields(output(ctx, reference.Containerd().Path, "--version"))
	if len(fields) < 3 {
		return "containerd"
	}
	return "containerd " + fields[2]
}

// output is the first line a program prints.
func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	return firstLine(string(out))
}
