// Command podstart measures how long one pod takes in a live cluster, one after the
// other: from the create call to the watch event that says Running, and from the delete
// call to the watch event that says it is gone.
//
//	go run ./test/bench/podstart -kubeconfig /var/lib/skiff/admin.conf [-n 20] [-grace 0] [-image IMAGE] [-- COMMAND...]
//
// The image must be on the node already, or the first start measures the pull. Without an
// image Skiff's own is used. It prints the median, the fastest and the slowest of n, in
// milliseconds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// patience bounds the wait for one event.
const patience = time.Minute

type bench struct {
	client  kubernetes.Interface
	image   string
	command []string
	grace   int64
	settle  time.Duration
	verbose bool
	begin   time.Time
}

func main() {
	b := bench{}
	kubeconfig := flag.String("kubeconfig", "/var/lib/skiff/admin.conf", "kubeconfig of the cluster")
	n := flag.Int("n", 20, "pods, one after the other")
	flag.StringVar(&b.image, "image", "", "image on the node (default: Skiff's own)")
	flag.Int64Var(&b.grace, "grace", 30, "grace period of the deletion, in seconds")
	flag.DurationVar(&b.settle, "settle", 200*time.Millisecond, "wait before the deletion: process 1 of a container that has\nnot installed its handler yet does not see TERM")
	flag.BoolVar(&b.verbose, "v", false, "print each pod's events")
	flag.Parse()
	b.command = flag.Args()
	if err := b.run(*kubeconfig, *n); err != nil {
		fmt.Fprintln(os.Stderr, "podstart:", err)
		os.Exit(1)
	}
}

func (b *bench) run(kubeconfig string, n int) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	if b.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	ctx := context.Background()
	if b.image == "" {
		if b.image, err = ownImage(ctx, b.client); err != nil {
			return err
		}
	}
	var starts, ends []time.Duration
	for i := range n {
		start, end, err := b.one(ctx, fmt.Sprintf("podstart-%d", i))
		if err != nil {
			return err
		}
		starts, ends = append(starts, start), append(ends, end)
	}
	print("create to Running", starts)
	print(fmt.Sprintf("delete to gone, grace %d s", b.grace), ends)
	return nil
}

// ownImage is the image of the control plane's pods: on every node of Skiff's.
func ownImage(ctx context.Context, client kubernetes.Interface) (string, error) {
	pods, err := client.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "tier=control-plane"})
	if err != nil {
		return "", err
	}
	if len(pods.Items) == 0 {
		return "", fmt.Errorf("no control plane pod to borrow an image from: name one with -image")
	}
	return pods.Items[0].Spec.Containers[0].Image, nil
}

// one measures one pod.
func (b *bench) one(ctx context.Context, name string) (start, end time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods := b.client.CoreV1().Pods(metav1.NamespaceDefault)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	command := b.command
	if len(command) == 0 {
		command = []string{"sleep", "3600"}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: b.image, Command: command,
			ImagePullPolicy: corev1.PullIfNotPresent}}}}
	b.begin = time.Now()
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return 0, 0, err
	}
	if err := b.wait(w, func(e watch.Event, p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }); err != nil {
		return 0, 0, fmt.Errorf("pod %s: waiting for Running: %w", name, err)
	}
	start = time.Since(b.begin)
	time.Sleep(b.settle)
	b.begin = time.Now()
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &b.grace}); err != nil {
		return 0, 0, err
	}
	if err := b.wait(w, func(e watch.Event, p *corev1.Pod) bool { return e.Type == watch.Deleted }); err != nil {
		return 0, 0, fmt.Errorf("pod %s: waiting for its end: %w", name, err)
	}
	return start, time.Since(b.begin), nil
}

func (b *bench) wait(w watch.Interface, is func(watch.Event, *corev1.Pod) bool) error {
	for e := range w.ResultChan() {
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("watch: %v", e.Object)
		}
		if b.verbose {
			fmt.Printf("%8.1f ms  %s %s: node %q, %s, %d conditions\n", float64(time.Since(b.begin).Microseconds())/1000, p.Name, e.Type,
				p.Spec.NodeName, p.Status.Phase, len(p.Status.Conditions))
		}
		if is(e, p) {
			return nil
		}
	}
	return fmt.Errorf("nothing within %v", patience)
}

func print(what string, d []time.Duration) {
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("%s: p50 %.1f ms (%.1f–%.1f, n=%d)\n", what, ms(d[len(d)/2]), ms(d[0]), ms(d[len(d)-1]), len(d))
}
