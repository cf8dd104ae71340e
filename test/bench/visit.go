//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// visited is what the system is called that -kubeconfig names.
const visited = "cluster"

// benchKey labels and taints the simulated nodes of a visit, so that nobody
// else's pods go there and none of ours go elsewhere.
const benchKey = "bench.skiff.dev/visit"

// visit measures a cluster that runs already, from its clients' side, in
// namespaces of its own that it takes away again. It starts nothing, and
// writes no document.
func (o options) visit(ctx context.Context, out io.Writer) error {
	suites, err := choose(cmp.Or(o.Suite, "api"))
	if err != nil {
		return err
	}
	for _, s := range suites {
		if !s.visits {
			return fmt.Errorf("suite %s starts clusters of its own; with -kubeconfig there are api, bulk, sched and scale", s.name)
		}
	}
	if o.Profiles != "" || o.Only != "" {
		return errors.New("-only and -profiles are for clusters that bench starts, not for -kubeconfig")
	}
	named, err := o.named()
	if err != nil {
		return err
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go complains of calls that were called off
	o.System = visited
	for _, s := range suites {
		began := time.Now()
		result := newResult(ctx, s, o)
		for o.Round = range result.Rounds {
			fmt.Fprintf(os.Stderr, "%s  %s, round %d of %d\n", began.Format(time.TimeOnly), s.name, o.Round+1, result.Rounds)
			if err := o.once(ctx, s, result, named); err != nil {
				return fmt.Errorf("suite %s, round %d: %w", s.name, o.Round+1, err)
			}
		}
		result.Took = time.Since(began).Round(time.Second).String()
		result.printVisit(out, named)
	}
	return nil
}

func (o options) once(ctx context.Context, s suite, result *result, named []process) error {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	from, to := io.Pipe()
	collected := make(chan error, 1)
	go func() {
		err := result.collect(visited, from)
		from.CloseWithError(err)
		collected <- err
	}()
	err := s.run(ctx, &round{options: o, out: json.NewEncoder(to), named: named})
	to.Close()
	return errors.Join(err, <-collected)
}

// named are the server's processes that -pid names.
func (o options) named() ([]process, error) {
	var list []process
	for _, pid := range o.PIDs {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil || len(line) == 0 {
			return nil, fmt.Errorf("-pid %d: no such process on this machine: name those of the server, or leave it out", pid)
		}
		p := process{pid, program(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"))}
		if pss, _ := p.memory(); pss == 0 {
			return nil, fmt.Errorf("-pid %d (%s): its memory may not be read: run as its user, or as root", pid, p.name)
		}
		list = append(list, p)
	}
	return list, nil
}

// servers are the processes whose CPU and memory are measured.
func (r *round) servers() []process {
	if r.Kubeconfig != "" {
		return r.named
	}
	return servers()
}

// visitWith runs do on the cluster of -kubeconfig and takes away what it made,
// also when it failed or was interrupted.
func (r *round) visitWith(ctx context.Context, do func(*cluster) error) error {
	c := &cluster{began: time.Now(), space: "skiff-bench-" + strings.ToLower(rand.Text()[:8])}
	if err := c.connect(r.Kubeconfig); err != nil {
		return err
	}
	if err := within(ctx, 10*time.Second, "the API of "+c.config.Host, c.apiReady); err != nil {
		return err
	}
	_, err := c.makeNamespace(ctx, c.space)
	if err == nil {
		err = do(c)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	if cleaned := c.clean(end); cleaned != nil {
		err = errors.Join(err, fmt.Errorf("take away what was made: %w", cleaned))
	}
	return err
}

// clean deletes all that a visit made. Pods go at once and before their
// nodes: nobody runs them.
func (c *cluster) clean(ctx context.Context) (err error) {
	for _, space := range c.spaces {
		err = errors.Join(err, c.empty(ctx, space))
		if e := c.client.CoreV1().Namespaces().Delete(ctx, space, metav1.DeleteOptions{}); e != nil && !apierrors.IsNotFound(e) {
			err = errors.Join(err, e)
		}
	}
	for _, k := range c.crowds {
		err = errors.Join(err, k.leave(), k.Remove(ctx))
	}
	for _, name := range c.nodes {
		if e := c.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); e != nil && !apierrors.IsNotFound(e) {
			err = errors.Join(err, e)
		}
	}
	for _, space := range c.spaces {
		err = errors.Join(err, within(ctx, time.Minute, "the end of a namespace, which a controller manager brings about", func(ctx context.Context) error {
			_, e := c.client.CoreV1().Namespaces().Get(ctx, space, metav1.GetOptions{})
			if apierrors.IsNotFound(e) {
				return nil
			}
			_ = sleep(ctx, 200*time.Millisecond)
			return cmp.Or(e, fmt.Errorf("namespace %s is empty, but there", space))
		}))
	}
	return err
}

// empty deletes what is in a namespace: its controller would do the same, slower.
func (c *cluster) empty(ctx context.Context, space string) error {
	now := int64(0)
	at := metav1.DeleteOptions{GracePeriodSeconds: &now}
	err := within(ctx, 3*time.Minute, "the end of the pods in "+space, func(ctx context.Context) error {
		// The API server may not be done with all within a request's time.
		err := c.client.CoreV1().Pods(space).DeleteCollection(ctx, at, metav1.ListOptions{})
		left, listed := c.client.CoreV1().Pods(space).List(ctx, metav1.ListOptions{Limit: 1})
		if listed == nil && len(left.Items) == 0 {
			return nil
		}
		return cmp.Or(err, listed, fmt.Errorf("%s is one that is left", space))
	})
	return errors.Join(err,
		c.client.CoreV1().ConfigMaps(space).DeleteCollection(ctx, at, metav1.ListOptions{}),
		c.client.CoordinationV1().Leases(space).DeleteCollection(ctx, at, metav1.ListOptions{}))
}

// here makes a pod one for the simulated nodes of a visit.
func (c *cluster) here(pod *corev1.Pod) {
	if c.space != "" {
		pod.Spec.NodeSelector = map[string]string{benchKey: c.space}
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: benchKey, Operator: corev1.TolerationOpExists})
	}
}

// timed is op with the time of each call kept, by worker.
func timed(workers int, op func(ctx context.Context, worker, i int) error) (func(ctx context.Context, worker, i int) error, func() []time.Duration) {
	took := make([][]time.Duration, workers)
	return func(ctx context.Context, w, i int) error {
			began := time.Now()
			err := op(ctx, w, i)
			took[w] = append(took[w], time.Since(began))
			return err
		}, func() []time.Duration {
			return slices.Concat(took...)
		}
}

// printVisit writes what was measured, and what could not be.
func (r *result) printVisit(w io.Writer, named []process) {
	fmt.Fprintf(w, "\n%s: %s, rounds: %d, took %s; clients on %s, load at start %s\n", r.Suite, r.Date.Format(time.DateTime), r.Rounds, r.Took, r.Machine, r.Load)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.Figures {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Name, f.Unit, f.text(visited, r.Noise))
	}
	t.Flush()
	if len(named) == 0 {
		fmt.Fprintln(w, "Not measured, as -pid names no process of the server on this machine: its CPU and memory.")
		return
	}
	for _, p := range named {
		fmt.Fprintf(w, "Server CPU and memory are of process %d (%s).\n", p.pid, p.name)
	}
	fmt.Fprintln(w, "They are all that these processes did meanwhile, for whomever. Not measured: what of the server is in other processes, or elsewhere.")
}
