//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	skiffcluster "github.com/skiff-project/skiff/cluster"
)

// visitable starts a control plane and returns the flags to measure it with, and
// a check that nothing is left in it.
func visitable(t *testing.T) (options, func()) {
	t.Helper()
	c := skiffcluster.Start(t, skiffcluster.TestOptions{HollowNodes: 1})
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, c.Kubeconfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(c.Config())
	return options{Kubeconfig: file, Rounds: 1, Pods: 120, Burst: 20 * time.Millisecond, Noise: 1, Docs: t.TempDir(), Nodes: []int{5}}, func() {
		t.Helper()
		var left []string
		spaces, err := client.CoreV1().Namespaces().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range spaces.Items {
			left = append(left, o.Name)
		}
		nodes, err := client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		leases, err := client.CoordinationV1().Leases("kube-node-lease").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range nodes.Items {
			left = append(left, "node "+o.Name)
		}
		for _, o := range leases.Items {
			left = append(left, "lease "+o.Name)
		}
		if strings.Contains(strings.Join(left, " "), "bench") || len(nodes.Items) != 1 || nodes.Items[0].Spec.Unschedulable {
			t.Errorf("there are %v", left)
		}
	}
}

func TestVisitOfAClusterThatRuns(t *testing.T) {
	o, clean := visitable(t)
	o.Suite = "api,sched"
	var out strings.Builder
	if err := o.visit(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pod create, protobuf: rate", "pod GET, protobuf: latency, 99th of 100", "event to one of 1,000 watchers: rate", "5 nodes: create to bound", "Not measured"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	for _, never := range []string{"CPU\t", "server CPU ", "memory", "PSS"} {
		if strings.Contains(strings.ReplaceAll(out.String(), "its CPU and memory.", ""), never) {
			t.Errorf("%q is in\n%s", never, out.String())
		}
	}
	if files, _ := os.ReadDir(o.Docs); len(files) > 0 {
		t.Errorf("it wrote %v", files)
	}
	clean()
}

func TestVisitWithTheServersProcess(t *testing.T) {
	o, clean := visitable(t)
	o.PIDs = []int{os.Getpid()} // the server's
	named, err := o.named()
	if err != nil {
		t.Fatal(err)
	}
	suite := suite{name: "api", limit: time.Minute, run: func(ctx context.Context, r *round) error {
		return r.with(ctx, parts{}, func(c *cluster) error {
			return r.measure(ctx, "GET", load{workers: 2, count: 50}, func(ctx context.Context, _, _ int) error { return c.apiReady(ctx) })
		})
	}}
	result := newResult(t.Context(), suite, o)
	if err := o.once(t.Context(), suite, result, named); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	result.printVisit(&out, named)
	if !strings.Contains(out.String(), "GET: server CPU") || !strings.Contains(out.String(), "are of process "+strconv.Itoa(os.Getpid())) {
		t.Error(out.String())
	}
	clean()
}

// What a visit made goes also when it is interrupted or fails.
func TestVisitThatDoesNotEnd(t *testing.T) {
	o, clean := visitable(t)
	for what, run := range map[string]func(context.Context, context.CancelFunc, *round, *cluster) error{
		"interrupted": func(ctx context.Context, stop context.CancelFunc, r *round, c *cluster) error {
			if _, err := c.addNodes(ctx, "n", 3, time.Second, time.Minute); err != nil {
				return err
			}
			stop()
			return ctx.Err()
		},
		"failed": func(ctx context.Context, _ context.CancelFunc, r *round, c *cluster) error {
			wires, err := c.dial(4)
			if err != nil {
				return err
			}
			defer hangUp(wires)
			return errors.Join(r.pods(ctx, c, wires), errors.New("on purpose"))
		},
	} {
		ctx, stop := context.WithCancel(t.Context())
		s := suite{name: "api", limit: time.Minute, run: func(ctx context.Context, r *round) error {
			return r.with(ctx, parts{}, func(c *cluster) error { return run(ctx, stop, r, c) })
		}}
		if err := o.once(ctx, s, newResult(ctx, s, o), nil); err == nil || strings.Contains(err.Error(), "take away") {
			t.Errorf("%s: %v", what, err)
		}
		clean()
		stop()
	}
}

func TestVisitsThatAreRefused(t *testing.T) {
	gone := options{Suite: "api", Kubeconfig: filepath.Join(t.TempDir(), "none"), Rounds: 1}
	for want, o := range map[string]options{
		"suite size starts clusters of its own": {Suite: "size", Kubeconfig: "x"},
		"-pid 4194305: no such process":         {Kubeconfig: "x", PIDs: []int{4194305}},
		"are for clusters that bench starts":    {Kubeconfig: "x", Only: skiff},
		"no such file or directory":             gone,
	} {
		if err := o.visit(t.Context(), &strings.Builder{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
