//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

var nodeSuite = suite{
	name: "node", limit: 5 * time.Minute, run: runNode,
	about: "Pods of an image that is on the node, one after the other, each as long as it takes from the call until the watch shows it; upstream's kubelet runs them by Debian's containerd and runc. " +
		"The program in them is the same: Skiff's sleep.",
	budgets: map[string]string{"create to Running, p50": "50 ms"},
}

const (
	podsInTurn = 20
	replicas   = 50
)

func runNode(ctx context.Context, r *round) error {
	return r.with(ctx, parts{node: true}, func(c *cluster) error {
		if _, err := c.runPod(ctx, "warm-up"); err != nil {
			return err
		}
		for _, part := range []func(context.Context, *cluster) error{r.execs, r.podsInTurn, r.deployment} {
			if err := part(ctx, c); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *round) podsInTurn(ctx context.Context, c *cluster) error {
	var starts, ends []time.Duration
	for i := range podsInTurn {
		name := fmt.Sprintf("turn-%d", i)
		start, err := c.runPod(ctx, name)
		if err != nil {
			return err
		}
		// The first process of a container does not see TERM before it has
		// installed its handler.
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		end, err := c.endPod(ctx, name)
		if err != nil {
			return err
		}
		starts, ends = append(starts, start), append(ends, end)
	}
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		r.duration("create to Running, "+q.name, quantile(starts, q.q))
		r.duration("delete to gone, "+q.name, quantile(ends, q.q))
	}
	return nil
}

// endPod deletes a pod and returns how long it took until it was gone.
func (c *cluster) endPod(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pods := c.client.CoreV1().Pods(metav1.NamespaceDefault)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	grace := int64(30)
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		return 0, err
	}
	err = await(w, func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Deleted })
	return time.Since(began), err
}

// execs runs a command in a pod, again and again.
func (r *round) execs(ctx context.Context, c *cluster) error {
	var took []time.Duration
	for range podsInTurn {
		began := time.Now()
		url := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(metav1.NamespaceDefault).Name("warm-up").SubResource("exec").
			VersionedParams(&corev1.PodExecOptions{Command: []string{"true"}, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
		e, err := remotecommand.NewWebSocketExecutor(c.config, "GET", url.String())
		if err != nil {
			return err
		}
		if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		took = append(took, time.Since(began))
	}
	r.duration("exec of true, p50", quantile(took, 0.5))
	return nil
}

// deployment starts many at once.
func (r *round) deployment(ctx context.Context, c *cluster) error {
	n := int32(replicas)
	labels := map[string]string{"app": "many"}
	began := time.Now()
	_, err := c.client.AppsV1().Deployments(metav1.NamespaceDefault).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "many"},
		Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: c.sleeper("").Spec}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	w, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).Watch(ctx, metav1.ListOptions{LabelSelector: "app=many"})
	if err != nil {
		return err
	}
	defer w.Stop()
	up := map[string]bool{}
	err = await(w, func(_ watch.Event, p *corev1.Pod) bool {
		if p.Status.Phase == corev1.PodRunning {
			up[p.Name] = true
		}
		return len(up) == replicas
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%d of %d pods of a Deployment are Running", len(up), replicas), err)
	}
	r.duration(fmt.Sprintf("Deployment of %d, all Running", replicas), time.Since(began))
	return nil
}
