package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-project/skiff/sim/hollow"
)

// hollowRun runs simulated nodes over the network until the function it
// returns is called.
func hollowRun(t *testing.T, client kubernetes.Interface, cfg hollow.Config) (*hollow.Kubelets, func()) {
	t.Helper()
	cfg.Client = client
	k, err := hollow.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	select {
	case <-k.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	return k, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// As `skiff sim` does: nodes join over TLS, renew, run pods; a second run
// takes them and their pods over; Remove takes them away.
func TestHollowNodesOverTheNetwork(t *testing.T) {
	t.Parallel()
	client := clientOf(t, Start(t, TestOptions{}).Config())
	ctx := t.Context()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: template("x").Spec}
	if _, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k, stop := hollowRun(t, client, hollow.Config{Nodes: 2, LeaseInterval: 100 * time.Millisecond})
	address := ""
	eventually(t, "the pod to run and leases to be renewed", func() string {
		p, err := client.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		address = p.Status.PodIP
		if s := k.Stats(); p.Status.Phase != corev1.PodRunning || s.Renewals < 6 || s.Nodes != 2 || s.Pods != 1 {
			return fmt.Sprintf("%s, %+v", p.Status.String(), s)
		}
		return ""
	})
	stop()

	k, stop = hollowRun(t, client, hollow.Config{Nodes: 2})
	eventually(t, "the pod to be known again", func() string { return lacks(k.Stats().Pods == 1) })
	p, err := client.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
	if err != nil || p.Status.PodIP != address || p.Status.Phase != corev1.PodRunning {
		t.Errorf("after another run took over: %v, %v", p.Status, err)
	}
	if err := client.CoreV1().Pods("default").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod to go", func() string {
		list, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		return lacks(len(list.Items) == 0 && k.Stats().Pods == 0)
	})
	stop()
	if err := k.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 0 {
		t.Errorf("nodes are left: %v, %v", nodes.Items, err)
	}
}

func lacks(ok bool) string {
	if ok {
		return ""
	}
	return "not yet"
}

// A real node of the same name is never touched.
func TestHollowNodesLeaveOthersAlone(t *testing.T) {
	t.Parallel()
	client := clientOf(t, Start(t, TestOptions{}).InProcessConfig())
	real := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "hollow-0"}}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), real, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k, err := hollow.New(hollow.Config{Client: client, Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another prefix") {
		t.Errorf("took over a node that is not its own: %v", err)
	}
}
