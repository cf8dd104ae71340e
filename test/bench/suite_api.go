//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
)

var apiSuite = suite{
	name: "api", limit: 10 * time.Minute, run: runAPI,
	about: "Control plane and database, all processes together, on a fresh cluster. The clients are 20 at a time over 4 connections, bare HTTP/2 but where client-go is named. " +
		"No answer is compressed. The pods are no scheduler's. Memory is measured in the first round, as the least it is at rest.",
	budgets: map[string]string{
		"pod create, protobuf: server CPU": "250 µs, 1/12", "pod GET, protobuf: server CPU": "1/15",
		"LIST of all pods, protobuf: server CPU": "1/20", "LIST of all pods, JSON: server CPU": "1/4",
		"event to one of 1,000 watchers: server CPU": "3 µs, 1/8", "memory per 10,000 pods": "1/8",
	},
}

const (
	mergePatch = "application/merge-patch+json"
	jsonType   = "application/json"
	podsPath   = "/api/v1/namespaces/default/pods"
)

func runAPI(ctx context.Context, r *round) error {
	return r.with(ctx, parts{}, func(c *cluster) error {
		wires, err := c.dial(4)
		if err != nil {
			return err
		}
		defer hangUp(wires)
		for _, part := range []func(context.Context, *cluster, []*wire) error{
			r.configMaps, r.podCreates, r.podRequests, r.leases, r.podLists, r.watchers,
		} {
			if err := part(ctx, c, wires); err != nil {
				return err
			}
		}
		return nil
	})
}

const clients = 20

func (r *round) configMaps(ctx context.Context, c *cluster, _ []*wire) error {
	plain, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	maps := plain.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	return r.measure(ctx, "ConfigMap create, client-go, JSON", load{workers: clients, count: 2000}, func(ctx context.Context, _, i int) error {
		_, err := maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("map-%d", i)}, Data: map[string]string{"key": "value"},
		}, metav1.CreateOptions{})
		return err
	})
}

// podCreates makes the pods that the parts after it use.
func (r *round) podCreates(ctx context.Context, c *cluster, wires []*wire) error {
	before, err := r.rested(ctx, 20*time.Second)
	if err != nil {
		return err
	}
	err = r.measure(ctx, "pod create, protobuf", load{workers: clients, count: r.Pods}, func(ctx context.Context, w, i int) error {
		body, err := encode(typicalPod(fmt.Sprintf("pod-%05d", i)))
		if err != nil {
			return err
		}
		return wires[w%len(wires)].do(ctx, "POST", podsPath, protobuf, protobuf, body)
	})
	if err != nil {
		return err
	}
	if r.Round > 0 {
		return nil
	}
	after, err := r.rested(ctx, 150*time.Second) // Go collects a calm program's garbage every two minutes
	if err != nil {
		return err
	}
	r.figure("memory per 10,000 pods", "MB", (after-before)*10_000/float64(r.Pods))
	return nil
}

// rested is the least memory the servers have in a span, in the first round: most of what a busy
// one has is garbage.
func (r *round) rested(ctx context.Context, span time.Duration) (least float64, err error) {
	least = math.Inf(1)
	for began := time.Now(); r.Round == 0 && time.Since(began) < span && err == nil; err = sleep(ctx, 2*time.Second) {
		least = min(least, memory(servers()))
	}
	return least, err
}

func (r *round) podRequests(ctx context.Context, c *cluster, wires []*wire) error {
	span := load{workers: clients, span: 2 * time.Second}
	err := r.measure(ctx, "pod GET, protobuf", span, func(ctx context.Context, w, i int) error {
		return wires[w%len(wires)].do(ctx, "GET", fmt.Sprintf("%s/pod-%05d", podsPath, i*7919%r.Pods), protobuf, "", nil)
	})
	if err != nil {
		return err
	}
	return r.measure(ctx, "pod merge patch, JSON", span, func(ctx context.Context, w, i int) error {
		body := fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i)
		return wires[w%len(wires)].do(ctx, "PATCH", fmt.Sprintf("%s/pod-%05d", podsPath, i%r.Pods), jsonType, mergePatch, body)
	})
}

// leases are renewed as kubelets do: by client-go, from the last answer.
func (r *round) leases(ctx context.Context, c *cluster, _ []*wire) error {
	api := c.client.CoordinationV1().Leases(metav1.NamespaceDefault)
	held := make([]*coordinationv1.Lease, clients)
	seconds := int32(40)
	for i := range held {
		name := fmt.Sprintf("node-%d", i)
		var err error
		held[i], err = api.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: time.Now()}},
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	return r.measure(ctx, "lease update, client-go, protobuf", load{workers: clients, span: 2 * time.Second}, func(ctx context.Context, w, _ int) (err error) {
		held[w].Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		held[w], err = api.Update(ctx, held[w], metav1.UpdateOptions{})
		return err
	})
}

func (r *round) podLists(ctx context.Context, c *cluster, wires []*wire) error {
	for _, kind := range []struct{ name, accept string }{{"protobuf", protobuf}, {"JSON", jsonType}} {
		err := r.measure(ctx, "LIST of all pods, "+kind.name, load{workers: 1, count: 4}, func(ctx context.Context, _, _ int) error {
			return wires[0].do(ctx, "GET", podsPath, kind.accept, "", nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	watchers = 1000 // over 10 connections
	events   = 100
)

// watchers measures one pod's changes on their way to all who watch it.
func (r *round) watchers(ctx context.Context, c *cluster, wires []*wire) error {
	const path = "/api/v1/namespaces/watched/pods"
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "watched"}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, space, metav1.CreateOptions{}); err != nil {
		return err
	}
	pods := c.client.CoreV1().Pods("watched")
	err := within(ctx, 20*time.Second, "a pod in a new namespace", func(ctx context.Context) error {
		_, err := pods.Create(ctx, typicalPod("pod"), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	own, err := c.dial(10)
	if err != nil {
		return err
	}
	defer hangUp(own)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var seen atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for i := range watchers {
		body, err := own[i%len(own)].open(ctx, "GET", path+"?watch=true", protobuf+";stream=watch", "", nil)
		if err != nil {
			return err
		}
		defer body.Close()
		group.Go(func() error { return countFrames(body, events+1, &seen) })
	}
	reach := func(n int64) error {
		return within(ctx, time.Minute, fmt.Sprintf("%d events", n), func(context.Context) error {
			if have := seen.Load(); have < n {
				return fmt.Errorf("%d have come", have)
			}
			return nil
		})
	}
	if err := reach(watchers); err != nil { // the pod as it is
		return err
	}
	list := servers()
	before, began := running(list), time.Now()
	for i := range events {
		body := fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i)
		if err := wires[0].do(ctx, "PATCH", path+"/pod", jsonType, mergePatch, body); err != nil {
			return err
		}
	}
	if err := reach(watchers * (events + 1)); err != nil {
		return err
	}
	r.perOperation("event to one of 1,000 watchers", running(list)-before, watchers*events, time.Since(began))
	return group.Wait()
}

// countFrames reads n events, each behind its length.
func countFrames(from io.Reader, n int, seen *atomic.Int64) error {
	var length [4]byte
	for range n {
		if _, err := io.ReadFull(from, length[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, from, int64(binary.BigEndian.Uint32(length[:]))); err != nil {
			return err
		}
		seen.Add(1)
	}
	return nil
}

var wireFormat = serializer.NewSerializer(scheme.Scheme, scheme.Scheme)

// encode is an object as protobuf.
func encode(obj runtime.Object) ([]byte, error) {
	var buf bytes.Buffer
	if err := wireFormat.Encode(obj, &buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// typicalPod is one of a Deployment's, as to size; no scheduler takes it.
func typicalPod(name string) *corev1.Pod {
	quantity := resource.MustParse
	probe := func(path string) *corev1.Probe {
		return &corev1.Probe{PeriodSeconds: 10, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}}}
	}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{"app": "web", "tier": "frontend", "pod-template-hash": "667f56bf75"},
			Annotations: map[string]string{"example.com/owner": "team-web", "example.com/checksum": "8f14e45fceea167a5a36dedd4bea2543"},
		},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example.com/web:v1.2.3", Args: []string{"--port=8080", "--log-level=info"},
				Ports:         []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Env:           []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
				LivenessProbe: probe("/healthz"), ReadinessProbe: probe("/readyz"),
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: quantity("100m"), corev1.ResourceMemory: quantity("128Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: quantity("256Mi")},
				},
			}},
		},
	}
}
