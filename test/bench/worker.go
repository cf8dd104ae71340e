//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// round is one round of a suite on one system, as its worker sees it.
type round struct {
	options
	out  *json.Encoder
	have *cluster // the newest

	named []process // with -kubeconfig: the server's, as far as they are known
}

// sample is one measured value.
type sample struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"` // ending in "/s": more is better; otherwise less
	Value float64 `json:"value"`
}

// work is the worker.
func work(text string) error {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go complains of calls that were called off
	r := &round{out: json.NewEncoder(os.NewFile(3, "figures"))}
	if err := json.Unmarshal([]byte(text), &r.options); err != nil {
		return err
	}
	i := slices.IndexFunc(allSuites(), func(s suite) bool { return s.name == r.Suite })
	ctx, ignore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer ignore()
	ctx, cancel := context.WithTimeout(ctx, allSuites()[i].limit-10*time.Second)
	defer cancel()
	return allSuites()[i].run(ctx, r)
}

// sizes are numbers of nodes: those asked for by flag, or the suite's.
func (r *round) sizes(own []int) []int {
	if r.Nodes != nil {
		return r.Nodes
	}
	if r.Kubeconfig != "" {
		return []int{100}
	}
	return own
}

// figure hands a value to the first process.
func (r *round) figure(name, unit string, value float64) {
	if err := r.out.Encode(sample{name, unit, value}); err != nil {
		panic(err) // the first process has gone, and this one with it
	}
}

func (r *round) duration(name string, d time.Duration) {
	r.figure(name, "ms", float64(d.Microseconds())/1000)
}

// cluster is a running cluster of either system.
type cluster struct {
	client *kubernetes.Clientset // typed, protobuf, without a rate limit
	config *rest.Config
	began  time.Time     // when its first process was started
	api    time.Duration // from then until the API was ready
	ready  time.Duration // from then until the node was, if it has one
	image  string        // on the node, with a sleep
	stop   func() error  // it keeps the data folder

	// Of a cluster that was there before: the prefix of all that is made in it,
	// and that.
	space         string
	spaces, nodes []string
	crowds        []*crowd
}

// name is what an object is called that has no namespace.
func (c *cluster) name(name string) string {
	if c.space == "" {
		return name
	}
	return c.space + "-" + name
}

// namespace is where most happens.
func (c *cluster) namespace() string { return cmp.Or(c.space, metav1.NamespaceDefault) }

// path is that of a core resource there.
func (c *cluster) path(resource string) string {
	return "/api/v1/namespaces/" + c.namespace() + "/" + resource
}

// parts say what a cluster is of.
type parts struct {
	node  bool   // a real node
	crowd bool   // many simulated nodes: ranges that are large enough, and no client limits
	dir   string // data folder; default: one in the round's
	fresh bool   // what the folder holds but images goes first
}

// start starts a cluster of the round's system.
func (r *round) start(ctx context.Context, p parts) (*cluster, error) {
	if p.dir == "" {
		p.dir = filepath.Join(r.Dir, filepath.Base(r.Dir))
	}
	start := r.startSkiff
	if r.System == upstream {
		start = r.startUpstream
	}
	c, err := start(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.System, err)
	}
	return c, nil
}

// with runs do on a cluster and stops it.
func (r *round) with(ctx context.Context, p parts, do func(*cluster) error) error {
	if r.Kubeconfig != "" {
		return r.visitWith(ctx, do)
	}
	c, err := r.start(ctx, p)
	if err != nil {
		return err
	}
	r.have = c
	return errors.Join(do(c), c.stop())
}

// connect makes the clients of a kubeconfig.
func (c *cluster) connect(kubeconfig string) (err error) {
	if c.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return err
	}
	c.config.QPS, c.config.WarningHandler = -1, rest.NoWarnings{}
	c.config.UserAgent = "skiff-bench"
	typed := rest.CopyConfig(c.config)
	typed.ContentType = protobuf
	typed.AcceptContentTypes = protobuf
	c.client, err = kubernetes.NewForConfig(typed)
	return err
}

const protobuf = "application/vnd.kubernetes.protobuf"

// stop is an error that no further try can mend.
type stop struct{ error }

// within bounds a wait for one thing.
func within(ctx context.Context, limit time.Duration, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := errors.New("it was never asked for")
	for {
		err := ready(ctx)
		if errors.As(err, &stop{}) || err == nil {
			return err
		}
		if ctx.Err() == nil { // else it may only say that time is up
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, last)
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// apiReady succeeds when the API server says that it is.
func (c *cluster) apiReady(ctx context.Context) error {
	return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// nodeReady succeeds once the only node is Ready and may be given pods, and its
// kubelet has renewed its lease: that of a resumed cluster was Ready before.
func (c *cluster) nodeReady(ctx context.Context) error {
	list, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range list.Items {
		lease, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil || lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(c.began) {
			continue
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue && len(n.Spec.Taints) == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("none of %d nodes is Ready", len(list.Items))
}

// accountReady succeeds once pods can be made in namespace default.
func (c *cluster) accountReady(ctx context.Context) error {
	_, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	return err
}
