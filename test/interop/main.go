// Command interop mixes Skiff's components with upstream's: it starts clusters
// in which one component at a time is the other project's, takes each through
// the same script of kubectl commands, and prints what passed. With --out it
// writes docs/INTEROP.md.
//
//	make interop FOCUS='kubelet'
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// options are what the user asks for; defaults are stated at the flags.
type options struct {
	skiff   string
	out     string
	focus   string
	logs    string
	timeout time.Duration
	build   bool
	use     string
}

func main() {
	var o options
	flag.StringVar(&o.skiff, "skiff", "bin/skiff", "Skiff's binary")
	flag.StringVar(&o.out, "out", "", "write the matrix as Markdown to this file")
	flag.StringVar(&o.focus, "focus", "", "only cells whose name matches this regular expression")
	flag.StringVar(&o.logs, "logs", "bin/interop", "folder for the logs of failing cells")
	flag.StringVar(&o.use, "upstream", "", "folder of upstream's programs (default: build them)")
	flag.BoolVar(&o.build, "build-only", false, "build upstream's programs, run nothing")
	flag.DurationVar(&o.timeout, "timeout", time.Hour, "bound of the whole run")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return fmt.Errorf("--focus: %w", err)
	}
	if o.build {
		b, err := reference.Build(ctx, reference.BuildOptions{})
		if err == nil {
			fmt.Println("built:", b.Dir)
		}
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: pods, network namespaces and nftables are real here")
	}
	if o.skiff, err = filepath.Abs(o.skiff); err != nil {
		return err
	}
	if _, err := os.Stat(o.skiff); err != nil {
		return fmt.Errorf("no Skiff binary (make build): %w", err)
	}
	work, err := os.MkdirTemp("", "skiff-interop-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	p, err := prepare(ctx, o, work)
	if err != nil {
		return err
	}
	var results []result
	for _, c := range cells(p) {
		if !focus.MatchString(c.name) || ctx.Err() != nil {
			continue
		}
		r := c.run(ctx, p, o.logs)
		fmt.Println(r)
		results = append(results, r)
	}
	if o.out != "" {
		if err := os.WriteFile(o.out, []byte(document(ctx, p, results)), 0o644); err != nil {
			return err
		}
	}
	return verdict(results)
}

// parts are the programs and images that cells are put together from.
type parts struct {
	skiff    string
	upstream reference.Binaries
	images   string
}

func prepare(ctx context.Context, o options, work string) (parts, error) {
	p := parts{skiff: filepath.Join(work, "skiff"), images: filepath.Join(work, "images.tar"), upstream: reference.Binaries{Dir: o.use}}
	// A copy, so that a rebuild meanwhile changes nothing.
	if out, err := exec.CommandContext(ctx, "cp", o.skiff, p.skiff).CombinedOutput(); err != nil {
		return p, fmt.Errorf("copy %s: %w\n%s", o.skiff, err, out)
	}
	if o.use == "" {
		var err error
		if p.upstream, err = reference.Build(ctx, reference.BuildOptions{}); err != nil {
			return p, err
		}
	}
	if err := reference.Install(ctx); err != nil {
		return p, err
	}
	return p, reference.Images(ctx, p.upstream, p.skiff, p.images)
}

// verdict is an error unless every cell passed.
func verdict(results []result) error {
	failed := 0
	for _, r := range results {
		if r.failed() {
			failed++
		}
	}
	fmt.Printf("\n%d of %d cells pass\n", len(results)-failed, len(results))
	if failed > 0 || len(results) == 0 {
		return fmt.Errorf("%d of %d cells fail", failed, len(results))
	}
	return nil
}

// firstLine is the part of a text that fits a table.
func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
