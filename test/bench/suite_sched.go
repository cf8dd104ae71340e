//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/sim/hollow"
)

var schedSuite = suite{
	name: "sched", limit: 20 * time.Minute, run: runSched, visits: true,
	about: "Identical pods, created as fast as the system takes them by 20 clients (2,000; with 100 nodes 1,000), until all are bound; on simulated nodes that renew their leases every 20 s and " +
		"acknowledge each pod with one status write. What the heartbeats cost, measured before, is subtracted from the CPU. " + crowdAbout,
	limits: "the scheduler itself is a twentieth of what a pod costs. Its creation, its binding, the status patch that a node answers with and the event are over half, " +
		"the collector a tenth, what controllers read of it most of the rest; and the clients and simulated nodes have half of the two cores.",
	budgets: map[string]string{"5,000 nodes: create to bound": "3,000/s, 20×"},
}

func runSched(ctx context.Context, r *round) error {
	for _, n := range r.sizes([]int{100, 1000, 5000}) {
		dir := filepath.Join(r.Dir, fmt.Sprintf("n%d", n))
		err := r.with(ctx, parts{dir: dir, crowd: true}, func(c *cluster) error {
			if c.space == "" {
				if err := c.cordon(ctx); err != nil {
					return err
				}
			}
			crowd, err := c.addNodes(ctx, "n", n, 20*time.Second, 8*time.Minute)
			if err != nil {
				return err
			}
			return errors.Join(r.schedule(ctx, c, n), crowd.leave())
		})
		if err != nil {
			return fmt.Errorf("%d nodes: %w", n, err)
		}
	}
	return nil
}

// schedule creates pods and waits until all are bound.
func (r *round) schedule(ctx context.Context, c *cluster, nodes int) error {
	pods := min(2000, 10*nodes)
	wires, err := c.dial(5)
	if err != nil {
		return err
	}
	defer hangUp(wires)
	var bound tally
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 1)
	go func() { broken <- bound.follow(ctx, wires[4], c.path("pods")) }()
	meter, err := newMeter(ctx, r.servers())
	if err != nil {
		return err
	}
	profiled := r.profile(ctx, fmt.Sprintf("scheduling %d nodes", nodes))
	began := time.Now()
	_, _, err = load{workers: clients, count: pods}.do(ctx, func(ctx context.Context, w, i int) error {
		pod := typicalPod(fmt.Sprintf("pod-%05d", i))
		pod.Spec.SchedulerName = corev1.DefaultSchedulerName
		c.here(pod)
		body, err := encode(pod)
		if err != nil {
			return err
		}
		return wires[w%4].do(ctx, "POST", c.path("pods"), protobuf, protobuf, body)
	})
	if err != nil {
		return err
	}
	err = within(ctx, 3*time.Minute, "all pods to be bound", func(context.Context) error {
		if len(broken) > 0 {
			return stop{fmt.Errorf("the watch failed: %w", <-broken)}
		}
		if n := bound.pods.Load(); n < int64(pods) {
			return fmt.Errorf("%d of %d are", n, pods)
		}
		return nil
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	if err := profiled(); err != nil {
		return err
	}
	if n := bound.ended.Load(); n > 0 {
		fmt.Fprintf(os.Stderr, "%s ended the harness's watch of bound pods %d times\n", r.System, n)
	}
	prefix := number(float64(nodes)) + " nodes: "
	r.figure(prefix+"create to bound", "/s", float64(pods)/took.Seconds())
	names, per := meter.read(took, pods)
	sum := 0.0
	for _, v := range per {
		sum += v
	}
	if len(names) > 0 {
		r.figure(prefix+"server CPU per pod", "µs", sum)
	}
	for _, name := range names {
		if r.System == upstream {
			r.figure(prefix+"CPU per pod, "+name, "µs", per[name])
		}
	}
	return nil
}

// meter tells what each component ran for beyond its heartbeats.
type meter struct {
	names  []string
	groups map[string][]process
	before map[string]time.Duration
	beats  map[string]float64 // cores
}

// newMeter watches the heartbeats for 10 seconds, once the registrations have
// been digested.
func newMeter(ctx context.Context, list []process) (*meter, error) {
	if len(list) == 0 {
		return &meter{}, nil
	}
	if err := sleep(ctx, 10*time.Second); err != nil {
		return nil, err
	}
	m := &meter{before: map[string]time.Duration{}, beats: map[string]float64{}}
	m.names, m.groups = byName(list)
	began := time.Now()
	for name, list := range m.groups {
		m.before[name] = running(list)
	}
	if err := sleep(ctx, 10*time.Second); err != nil {
		return nil, err
	}
	for name, list := range m.groups {
		now := running(list)
		m.beats[name] = (now - m.before[name]).Seconds() / time.Since(began).Seconds()
		m.before[name] = now
	}
	return m, nil
}

// read gives the microseconds of each component per operation.
func (m *meter) read(took time.Duration, operations int) (names []string, per map[string]float64) {
	per = map[string]float64{}
	for name, list := range m.groups {
		per[name] = 1e6 * ((running(list) - m.before[name]).Seconds() - m.beats[name]*took.Seconds()) / float64(operations)
	}
	return m.names, per
}

// tally is how many pods of the namespace have a node.
type tally struct{ pods, ended atomic.Int64 }

// follow counts until ctx ends. A server may end a watch, and kube-apiserver
// does when the reader lags behind its small buffer; the next one begins with
// all there is, as any client's does.
func (t *tally) follow(ctx context.Context, w *wire, path string) error {
	for {
		watch, err := w.open(ctx, "GET", path+"?watch=true&fieldSelector=spec.nodeName!%3D", protobuf+";stream=watch", "", nil)
		if err == nil {
			t.pods.Store(0)
			err = countAdded(watch, &t.pods)
			watch.Close()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, io.EOF):
			return err
		}
		t.ended.Add(1)
	}
}

// countAdded counts what a watch shows for the first time.
func countAdded(from io.Reader, n *atomic.Int64) error {
	var length [4]byte
	var event metav1.WatchEvent
	for {
		if _, err := io.ReadFull(from, length[:]); err != nil {
			return err
		}
		text := make([]byte, binary.BigEndian.Uint32(length[:]))
		if _, err := io.ReadFull(from, text); err != nil {
			return err
		}
		event.Reset()
		if err := event.Unmarshal(text); err != nil {
			return err
		}
		switch event.Type {
		case "ADDED":
			n.Add(1)
		case "ERROR":
			return fmt.Errorf("watch: %q", event.Object.Raw)
		}
	}
}

// cordon keeps pods off the real node, if there is one.
func (c *cluster) cordon(ctx context.Context) error {
	list, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range list.Items {
		_, err := c.client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
		if err != nil {
			return err
		}
	}
	return nil
}

// crowd is a number of simulated nodes, at work in this process.
type crowd struct {
	*hollow.Kubelets
	cancel context.CancelFunc
	ended  chan error
}

// addNodes adds simulated nodes to a cluster and waits until pods may be put on them.
func (c *cluster) addNodes(ctx context.Context, prefix string, n int, lease, limit time.Duration) (*crowd, error) {
	cfg := hollow.Config{Client: c.client, Nodes: n, Prefix: c.name(prefix), LeaseInterval: lease, Timing: hollow.Timing{Start: time.Hour}}
	if c.space != "" {
		cfg.Labels = map[string]string{benchKey: c.space}
		cfg.Taints = []corev1.Taint{{Key: benchKey, Value: c.space, Effect: corev1.TaintEffectNoSchedule}}
	}
	kubelets, err := hollow.New(cfg)
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(ctx)
	k := &crowd{kubelets, cancel, make(chan error, 1)}
	c.crowds = append(c.crowds, k)
	go func() { k.ended <- kubelets.Run(run) }()
	err = within(ctx, limit, fmt.Sprintf("%d simulated nodes", n), func(ctx context.Context) error {
		select {
		case <-kubelets.Ready():
		case err := <-k.ended:
			k.ended <- nil
			return stop{fmt.Errorf("they ended: %w", err)}
		default:
			return fmt.Errorf("%d are registered", kubelets.Stats().Nodes)
		}
		bad, err := c.notReady(ctx)
		if err == nil && bad > 0 {
			_ = sleep(ctx, 500*time.Millisecond) // the list is long
			err = fmt.Errorf("%d are not Ready or are tainted", bad)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, k.leave())
	}
	return k, nil
}

// leave ends the kubelets, once; their nodes stay.
func (k *crowd) leave() error {
	k.cancel()
	err := <-k.ended
	k.ended <- nil
	return err
}

// notReady counts the nodes that are not, or that are tainted as new.
func (c *cluster) notReady(ctx context.Context) (n int, err error) {
	opt := metav1.ListOptions{ResourceVersion: "0"}
	own := 0 // taints
	if c.space != "" {
		opt.LabelSelector, own = benchKey+"="+c.space, 1
	}
	list, err := c.client.CoreV1().Nodes().List(ctx, opt)
	if err != nil {
		return 0, err
	}
	for _, node := range list.Items {
		good := len(node.Spec.Taints) == own || node.Spec.Unschedulable
		for _, cond := range node.Status.Conditions {
			good = good && (cond.Type != corev1.NodeReady || cond.Status == corev1.ConditionTrue)
		}
		if !good {
			n++
		}
	}
	return n, nil
}
