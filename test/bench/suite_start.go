//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	product "github.com/skiff-project/skiff/cluster"
)

var startSuite = suite{
	name: "start", limit: 3 * time.Minute, run: runStart,
	about: "From the first process's start, on data that are fresh (images are on the node already) or of a cluster that was stopped. " +
		"Upstream's components are started each when the one before it is ready.",
	budgets: map[string]string{
		"fresh: node Ready": "1,000 ms", "resumed: node Ready": "500 ms",
		"Go library, in memory: first Start": "100 ms",
	},
}

func runStart(ctx context.Context, r *round) error {
	if r.System == upstream { // once before, so that the image is there
		if err := r.with(ctx, parts{node: true}, func(*cluster) error { return nil }); err != nil {
			return err
		}
	}
	for _, data := range []string{"fresh", "resumed"} {
		err := r.with(ctx, parts{node: true, fresh: data == "fresh"}, func(c *cluster) error {
			if _, err := c.runPod(ctx, "first-"+data); err != nil {
				return err
			}
			running := time.Since(c.began)
			r.duration(data+": API ready", c.api)
			r.duration(data+": node Ready", c.ready)
			r.duration(data+": first pod Running", running)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.System == skiff {
		return r.library(ctx)
	}
	return nil
}

// library measures what a Go test waits for: Start, in a process that is new
// to it and then again.
func (r *round) library(ctx context.Context) error {
	var later []time.Duration
	for i := range 6 {
		began := time.Now()
		c, err := product.InMemory(ctx, product.TestOptions{})
		if err != nil {
			return fmt.Errorf("the Go library: %w", err)
		}
		took := time.Since(began)
		c.Stop()
		if i == 0 {
			r.duration("Go library, in memory: first Start", took)
			continue
		}
		later = append(later, took)
	}
	r.duration("Go library, in memory: later Starts, p50", quantile(later, 0.5))
	return nil
}

// sleeper is a pod that waits.
func (c *cluster) sleeper(name string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{Name: "c", Image: c.image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"sleep", "86400"}}},
	}}
}

// runPod creates a pod and returns how long it took until it was Running.
func (c *cluster) runPod(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pods := c.client.CoreV1().Pods(metav1.NamespaceDefault)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	if _, err := pods.Create(ctx, c.sleeper(name), metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	err = await(w, func(e watch.Event, p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	return time.Since(began), err
}

// await reads a watch of pods until an event is what was waited for.
func await(w watch.Interface, is func(watch.Event, *corev1.Pod) bool) error {
	var last *corev1.Pod
	for e := range w.ResultChan() {
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("watch: %v", e.Object)
		}
		if last = p; is(e, p) {
			return nil
		}
	}
	if last == nil {
		return errors.New("the watch ended without an event")
	}
	return fmt.Errorf("the watch ended; pod %s was %s last: %v", last.Name, last.Status.Phase, last.Status.ContainerStatuses)
}
