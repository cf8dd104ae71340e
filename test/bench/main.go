//go:build linux

// Command bench measures Skiff and upstream's Kubernetes side by side, with the
// same client code over the same TLS connections, and writes
// docs/BENCHMARKS.md. `make bench` runs it.
//
// A suite is run in rounds, Skiff and upstream in turn (A B A B …). One round of
// one system is a worker: this program again, in process, network and mount
// namespaces of its own, with a cluster of its own on a fresh folder. What is
// measured goes to the first process as figures; when the worker's first
// process ends, the kernel ends everything that it started.
//
// With -kubeconfig FILE a cluster is measured that runs already, whosever: see
// options.visit.
//
// Server CPU is what all processes in the worker's namespace but the worker
// itself ran for, from the kernel's clock of each process.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The two systems.
const (
	skiff    = "skiff"
	upstream = "upstream"
)

// options are the flags; a worker gets them as JSON.
type options struct {
	Suite  string
	System string // of a worker
	Round  int    // of a worker, from 0
	Rounds int
	Only   string // one system alone
	Skiff  string // binary
	Tools  tools  // upstream's programs
	Dir    string // where data folders are made; on the disk to measure
	Docs   string
	// Profiles is where CPU and heap profiles of Skiff under each load go; empty: none are taken, as they cost.
	Profiles string

	Kubeconfig string        // of a cluster that runs already; empty: bench starts its own
	PIDs       []int         // of that cluster's processes on this machine
	Burst      time.Duration // api: of a load that has no number

	Settle, Span time.Duration // size: wait before, and length of, the idle time
	Keys         int           // store: in the large store
	Pods         int           // api, sched: created
	Nodes        []int         // sched, scale: how many, in order; nil: the suite's
	Noise        float64
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "worker" {
		exitOn(work(os.Args[2]))
		return
	}
	var o options
	flag.StringVar(&o.Suite, "suite", "", "suites to run, separated by commas (default: all)")
	flag.IntVar(&o.Rounds, "rounds", 5, "rounds of each suite")
	flag.StringVar(&o.Kubeconfig, "kubeconfig", "", "measure the cluster of this file, which runs already, in namespaces that are deleted again; suites api, bulk, sched, scale; writes no document, needs no root")
	flag.Func("pid", "with -kubeconfig: processes of the server on this machine, separated by commas, whose CPU and memory to measure (default: neither is)", func(list string) error {
		return json.Unmarshal([]byte("["+list+"]"), &o.PIDs)
	})
	flag.DurationVar(&o.Burst, "burst", 2*time.Second, "api: how long each load lasts that has no number")
	flag.StringVar(&o.Only, "only", "", "measure one system alone: skiff or upstream; writes no document")
	flag.StringVar(&o.Skiff, "skiff", "bin/skiff", "Skiff's binary")
	flag.StringVar(&o.Dir, "dir", "/var/tmp", "where data folders are made; must not be in memory")
	flag.StringVar(&o.Profiles, "profiles", "", "folder for a CPU and a heap profile of Skiff under each load of api, sched and extend; needs -only=skiff, as profiling costs")
	flag.StringVar(&o.Docs, "docs", "docs", "folder of BENCHMARKS.md")
	flag.DurationVar(&o.Settle, "settle", 45*time.Second, "size: how long the cluster is left alone before")
	flag.DurationVar(&o.Span, "span", 2*time.Minute, "size: how long it is watched")
	flag.IntVar(&o.Keys, "keys", 1_000_000, "store: keys of the large store")
	flag.IntVar(&o.Pods, "pods", 10_000, "api: pods created")
	flag.Func("nodes", "sched, scale: numbers of nodes, separated by commas (default: the suite's; with -kubeconfig 100)", func(list string) error {
		return json.Unmarshal([]byte("["+list+"]"), &o.Nodes)
	})
	flag.Float64Var(&o.Noise, "noise", 0.5, "spread, (max-min)/median, from which a figure is marked as noisy")
	render := flag.Bool("render", false, "only write the document again from what is kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *render {
		exitOn(document(o.Docs))
		return
	}
	if o.Kubeconfig != "" {
		exitOn(o.visit(ctx, os.Stdout))
		return
	}
	if o.PIDs != nil {
		exitOn(errors.New("-pid is for -kubeconfig: of clusters that bench starts it measures all processes"))
	}
	exitOn(run(ctx, o))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	chosen, err := choose(o.Suite)
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if o.Only != skiff {
		if o.Tools, err = buildTools(ctx, o.Skiff); err != nil {
			return fmt.Errorf("upstream's programs, without which there is no comparison: %w", err)
		}
	}
	for _, s := range chosen {
		began := time.Now()
		result := newResult(ctx, s, o)
		if err := o.rounds(ctx, s, result); err != nil {
			return fmt.Errorf("suite %s: %w", s.name, err)
		}
		result.Took = time.Since(began).Round(time.Second).String()
		result.print(os.Stdout)
		if o.Only != "" {
			continue
		}
		if err := result.save(o.Docs); err != nil {
			return err
		}
		if err := document(o.Docs); err != nil {
			return err
		}
	}
	return nil
}

func choose(names string) ([]suite, error) {
	if names == "" {
		return allSuites(), nil
	}
	var out []suite
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(allSuites(), func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no suite is called %q; there are %s", name, suiteNames())
		}
		out = append(out, allSuites()[i])
	}
	return out, nil
}

func suiteNames() string {
	var names []string
	for _, s := range allSuites() {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

func (o *options) check() error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed for namespaces and real nodes")
	}
	if o.Only != "" && o.Only != skiff && o.Only != upstream {
		return fmt.Errorf("-only %s: give skiff or upstream", o.Only)
	}
	if o.Profiles != "" {
		if o.Only != skiff {
			return errors.New("-profiles: give -only=skiff, too; what is measured so is not to be compared")
		}
		var err error
		if o.Profiles, err = filepath.Abs(o.Profiles); err != nil {
			return err
		}
		if err := os.MkdirAll(o.Profiles, 0o755); err != nil {
			return err
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(o.Dir, &st); err != nil {
		return fmt.Errorf("-dir %s: %w", o.Dir, err)
	}
	if st.Type == 0x01021994 { // tmpfs
		return fmt.Errorf("-dir %s is in memory, where nothing is durable; name a folder on a disk", o.Dir)
	}
	var err error
	o.Skiff, err = filepath.Abs(o.Skiff)
	if err == nil {
		_, err = os.Stat(o.Skiff)
	}
	return err
}

// rounds runs a suite; the systems in turn, or at the same time.
func (o options) rounds(ctx context.Context, s suite, result *result) error {
	systems := []string{skiff, upstream}
	if o.Only != "" {
		systems = []string{o.Only}
	}
	if s.rounds > 0 {
		o.Rounds = min(o.Rounds, s.rounds)
	}
	for i := range o.Rounds {
		errs := make([]error, len(systems))
		var group sync.WaitGroup
		for n, system := range systems {
			w := o
			w.Suite, w.System, w.Round = s.name, system, i
			fmt.Fprintf(os.Stderr, "%s  %s, round %d of %d: %s\n", time.Now().Format(time.TimeOnly), s.name, i+1, o.Rounds, system)
			one := func() { errs[n] = w.worker(ctx, s, result) }
			if s.together {
				group.Go(one)
				continue
			}
			if one(); errs[n] != nil {
				break
			}
		}
		group.Wait()
		for n, err := range errs {
			if err != nil {
				return fmt.Errorf("round %d of %s: %w", i+1, systems[n], err)
			}
		}
	}
	return nil
}

// boxScript makes a host of its own of new namespaces and runs the worker in
// it. The shell is the first process and adopts what the cluster leaves.
const boxScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
ip link add uplink type bridge
ip addr add 203.0.113.1/24 dev uplink
ip link set uplink up
ip route add default via 203.0.113.254
set +e
"$@" &
wait $!`

// worker runs one round of one system and adds its figures to result.
func (o options) worker(ctx context.Context, s suite, result *result) error {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	dir, err := os.MkdirTemp(o.Dir, "skiffbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.Dir = dir
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, "sh", "-c", boxScript, "sh", self, "worker", string(text))
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	read := result.collect(o.System, r)
	err = cmd.Wait()
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("not done within %v", s.limit)
	}
	return errors.Join(err, read, removeCgroups(dir))
}

// removeCgroups removes those that a cluster in dir left, if it was killed:
// upstream's has the name of the folder, Skiff's says its own.
func removeCgroups(dir string) error {
	roots := []string{filepath.Base(dir)}
	kept, _ := filepath.Glob(filepath.Join(dir, "*", "skiff", "cluster.json"))
	for _, name := range kept {
		var cluster struct{ Suffix string }
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, &cluster)
		}
		if err != nil {
			return err
		}
		roots = append(roots, "kubepods-"+cluster.Suffix)
	}
	var errs []error
	for _, root := range roots {
		var found []string
		for _, top := range append(must(filepath.Glob("/sys/fs/cgroup/*/"+root)), "/sys/fs/cgroup/"+root) {
			_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					found = append(found, p)
				}
				return nil
			})
		}
		for _, p := range slices.Backward(found) {
			if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// collect reads a worker's figures until its end.
func (r *result) collect(system string, from io.Reader) error {
	sc := bufio.NewScanner(from)
	for sc.Scan() {
		var f sample
		if err := json.Unmarshal(sc.Bytes(), &f); err != nil {
			return fmt.Errorf("figure %q: %w", sc.Text(), err)
		}
		r.add(system, f)
	}
	return sc.Err()
}
