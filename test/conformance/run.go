package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cluster is a fresh Skiff in a folder of its own.
type cluster struct {
	skiff, dir, kubeconfig string
}

// start copies the binary beside its data, so that a rebuild meanwhile changes
// nothing, starts a cluster and loads the images.
func start(ctx context.Context, o options, archive string) (*cluster, error) {
	dir, err := os.MkdirTemp("", "skiff-conformance-")
	if err != nil {
		return nil, err
	}
	c := &cluster{skiff: filepath.Join(dir, "skiff"), dir: dir, kubeconfig: filepath.Join(dir, "data", "admin.conf")}
	if out, err := exec.CommandContext(ctx, "cp", o.skiff, c.skiff).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy %s (run 'make build' first): %w\n%s", o.skiff, err, out)
	}
	args := append([]string{"up", "-d", "--merge-kubeconfig=false", "--timeout", "2m", "--nodes", strconv.Itoa(o.nodes), "--data-dir", c.data()}, strings.Fields(o.upFlags)...)
	for _, args := range [][]string{args, {"image", "load", "--data-dir", c.data(), archive}} {
		cmd := exec.CommandContext(ctx, c.skiff, args...)
		cmd.Stderr = os.Stderr
		if out, err := cmd.Output(); err != nil {
			c.stop()
			return nil, fmt.Errorf("skiff %s: %w\n%s", args[0], err, out)
		}
	}
	fmt.Println("cluster:", c.kubeconfig)
	return c, nil
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// stop deletes the cluster; its log is kept beside the reports by runSuite.
func (c *cluster) stop() {
	if out, err := exec.Command(c.skiff, "down", "--purge", "--data-dir", c.data()).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "skiff down: %v\n%s", err, out)
		return
	}
	if err := os.RemoveAll(c.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// runSuite runs the tests; failing tests are no error of its own, the report
// names them.
func runSuite(ctx context.Context, o options, t tools, kubeconfig string, tests []test) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	names := make([]string, len(tests))
	for i, test := range tests {
		names[i] = regexp.QuoteMeta(test.name)
	}
	if err := os.RemoveAll(filepath.Join(o.out, "junit_01.xml")); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.out, "e2e.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, t.path("ginkgo"), "--procs="+strconv.Itoa(o.procs), "--no-color", "--silence-skips",
		"--timeout="+o.timeout.String(), "--focus=("+strings.Join(names, "|")+")$", t.path("e2e.test"), "--",
		"--kubeconfig="+kubeconfig, "--provider=skeleton", "--kubectl-path="+t.path("kubectl"), "--report-dir="+o.out,
		"--allowed-not-ready-nodes=-1", "--num-nodes="+strconv.Itoa(o.nodes), "--dump-logs-on-failure=false")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = o.out
	// An interrupted suite still cleans up and reports; one that cannot is ended.
	// The processes that run the tests listen for themselves, so all are told.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 2 * time.Minute
	if err := cmd.Start(); err != nil {
		return err
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	return cmd.Wait()
}
