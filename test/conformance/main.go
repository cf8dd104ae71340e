// Command conformance measures Skiff with upstream's own conformance suite: it
// builds the suite and its tools from the Go module, assembles the images the
// tests use without a registry, starts a fresh cluster, runs the tests asked
// for and says by stage and area what passed.
//
//	make conformance LIST=tests.tsv STAGE=1 FOCUS='ConfigMap' PROCS=4
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// options are what the user asks for; defaults are stated at the flags.
type options struct {
	skiff      string        // Skiff's binary
	list       string        // TSV of tests, or all conformance tests
	stage      string        // only tests of this stage
	focus      string        // only tests whose name matches
	procs      int           // tests run side by side
	kubeconfig string        // a running cluster, instead of a fresh one
	out        string        // folder of reports
	cache      string        // folder of binaries and images
	upFlags    string        // further flags of skiff up
	keep       bool          // leave the cluster running
	buildOnly  bool          // stop once everything is built
	timeout    time.Duration // bound of the whole run
	nodes      int           // of the fresh cluster
	report     string        // write this page from the results kept in out, and run nothing
}

func main() {
	var o options
	flag.StringVar(&o.skiff, "skiff", "../../bin/skiff", "Skiff's binary")
	flag.StringVar(&o.list, "list", "", "TSV with columns stage, area, codename, of any tests of the suite (default: every conformance test)")
	flag.StringVar(&o.stage, "stage", "", "only tests of these stages of the list, comma-separated")
	flag.StringVar(&o.focus, "focus", "", "only tests whose name matches this regular expression")
	flag.IntVar(&o.procs, "procs", 4, "tests to run side by side")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "test this running cluster instead of a fresh Skiff")
	flag.StringVar(&o.out, "out", "../../bin/conformance", "folder for the log and JUnit")
	flag.StringVar(&o.cache, "cache", defaultCache(), "folder for what is built once")
	flag.IntVar(&o.nodes, "nodes", 2, "nodes of the fresh cluster; two tests need two")
	flag.StringVar(&o.report, "report", "", "write this page from the results kept in --out, and run nothing")
	flag.StringVar(&o.upFlags, "up-flags", "--api-port 26443 --kubelet-port 21250 --etcd-port 22379", "flags of skiff up")
	flag.BoolVar(&o.keep, "keep", false, "leave the cluster running afterwards")
	flag.BoolVar(&o.buildOnly, "build-only", false, "build and assemble, run nothing")
	flag.DurationVar(&o.timeout, "timeout", 4*time.Hour, "bound of the whole run")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "skiff", "conformance")
}

func run(ctx context.Context, o options) error {
	if o.report != "" {
		return report(ctx, o)
	}
	commit, err := commitNow(ctx)
	if err != nil {
		return err
	}
	tests, err := choose(ctx, o)
	if err != nil {
		return err
	}
	tools, err := build(ctx, o.cache)
	if err != nil {
		return err
	}
	if err := checkNames(ctx, tools.path("e2e.test"), tests); err != nil {
		return err
	}
	archive, err := assemble(ctx, o.cache, tools)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if o.buildOnly {
		fmt.Println("built:", tools.dir)
		return nil
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	kubeconfig := o.kubeconfig
	if kubeconfig == "" {
		c, err := start(ctx, o, archive)
		if err != nil {
			return err
		}
		if !o.keep {
			defer c.stop()
		}
		unserve, err := c.mirror(archive)
		if err != nil {
			return fmt.Errorf("serve the images: %w", err)
		}
		defer unserve()
		kubeconfig = c.kubeconfig
	}
	fmt.Printf("running %d tests, %d at a time; log: %s\n", len(tests), o.procs, filepath.Join(o.out, "e2e.log"))
	runErr := runSuite(ctx, o, tools, kubeconfig, tests)
	results, err := readJUnit(filepath.Join(o.out, "junit_01.xml"))
	if err != nil {
		return errors.Join(fmt.Errorf("the suite left no report: %w", err), runErr)
	}
	sum := summarize(tests, results)
	text := sum.text()
	fmt.Print(text)
	if err := os.WriteFile(filepath.Join(o.out, "summary.txt"), []byte(text), 0o644); err != nil {
		return err
	}
	kept, err := readHistory(o.out)
	if err != nil {
		return err
	}
	kept.add(sum, commit, time.Now())
	return errors.Join(kept.write(o.out), sum.verdict())
}
