//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
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
	name: "api", limit: 20 * time.Minute, run: runAPI, visits: true,
	about: "Control plane and database, all processes together, on a fresh cluster. The clients are 20 at a time, or as many as a figure says, over 4 connections, " +
		"bare HTTP/2 but where client-go is named; a LIST of all pods is one client's, an event's watchers are over 10 connections. No answer is compressed. " +
		"The pods are no scheduler's; one of 100 has the label and the node that are selected by. An apply sends the whole pod with one annotation changed. " +
		"Memory is measured in the first round, as the least it is at rest; how much ten LISTs need is from there to the peak.",
	budgets: map[string]string{
		"pod create, protobuf: server CPU": "250 µs, 1/12", "pod GET, protobuf: server CPU": "1/15",
		"LIST of all pods, protobuf: server CPU": "1/20", "LIST of all pods, JSON: server CPU": "1/4",
		"event to one of 1,000 watchers: server CPU": "3 µs, 1/8", "memory per 10,000 pods": "1/8",
	},
	limits: "a pod's creation is 100 µs of its handler in process; the rest is what controllers read of each pod, the collector, and caches that " +
		"the clients share the cores with. A protobuf LIST is half TLS and the socket, a quarter one copy of what is stored. " +
		"An event to a watcher is 1.2 µs of the connection's own, half of it TLS and the system call; the rest is a share of the write it tells of.",
}

var bulkSuite = suite{
	name: "bulk", limit: 25 * time.Minute, rounds: 1, run: runBulk, visits: true,
	about: "As api, with 100,000 pods: what they take, and what lists of them cost. One list of all takes upstream seconds, so a figure is of few.",
	budgets: map[string]string{
		"memory per 10,000 pods": "50 MB, 1/8", "LIST of all pods, protobuf: server CPU": "1/20", "LIST of all pods, JSON: server CPU": "1/4",
	},
	limits: "of the 4.8 KB that live per pod 2.9 are the stored version, half of it managed fields that replicas repeat, 1.9 the one copy all controllers " +
		"read; the rest is room between what lives.",
}

func runBulk(ctx context.Context, r *round) error {
	r.Pods = 100_000
	return r.with(ctx, parts{}, func(c *cluster) error {
		wires, err := c.dial(4)
		if err != nil {
			return err
		}
		defer hangUp(wires)
		if err := r.pods(ctx, c, wires); err != nil {
			return err
		}
		return r.podLists(ctx, c, wires)
	})
}

const (
	mergePatch     = "application/merge-patch+json"
	strategicPatch = "application/strategic-merge-patch+json"
	applyPatch     = "application/apply-patch+yaml" // JSON is YAML
	jsonType       = "application/json"
	tableType      = "application/json;as=Table;v=v1;g=meta.k8s.io"
)

func runAPI(ctx context.Context, r *round) error {
	return r.with(ctx, parts{}, func(c *cluster) error {
		wires, err := c.dial(4)
		if err != nil {
			return err
		}
		defer hangUp(wires)
		for _, part := range []func(context.Context, *cluster, []*wire) error{
			r.pods, r.podLists, r.creates, r.podRequests, r.leases, r.watchers,
		} {
			if err := part(ctx, c, wires); err != nil {
				return err
			}
		}
		return nil
	})
}

const clients = 20

// pods makes the pods that the parts after it use.
func (r *round) pods(ctx context.Context, c *cluster, wires []*wire) error {
	before, err := r.rested(ctx, 20*time.Second)
	if err != nil {
		return err
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.name(chosen)}} // pods of a node that is not there are soon deleted
	if _, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	c.nodes = append(c.nodes, node.Name)
	err = r.measure(ctx, "pod create, protobuf", load{workers: clients, count: r.Pods}, func(ctx context.Context, w, i int) error {
		pod := typicalPod(podName(i))
		if i%100 == 0 {
			pod.Labels[chosen], pod.Spec.NodeName = "true", node.Name
			pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} // or they go when the node is not Ready
		}
		return wires[w%len(wires)].create(ctx, c.path("pods"), protobuf, pod)
	})
	if err != nil || r.Round > 0 || len(r.servers()) == 0 {
		return err
	}
	after, err := r.rested(ctx, 150*time.Second) // Go collects a calm program's garbage every two minutes
	if err != nil {
		return err
	}
	r.figure("memory, empty", "MB", before)
	r.figure("memory per 10,000 pods", "MB", (after-before)*10_000/float64(r.Pods))
	peak, err := r.listPeak(ctx, c)
	r.figure("ten LISTs of all pods at once, protobuf: memory above", "MB", peak-after)
	return err
}

// chosen is the name of the node, and of the label, of one pod of a hundred.
const chosen = "chosen"

func podName(i int) string { return fmt.Sprintf("pod-%05d", i) }

// create sends an object in a format.
func (w *wire) create(ctx context.Context, path, format string, obj runtime.Object) error {
	encoder := encode
	if format == jsonType {
		encoder = func(obj runtime.Object) ([]byte, error) { return json.Marshal(obj) }
	}
	body, err := encoder(obj)
	if err != nil {
		return err
	}
	return w.do(ctx, "POST", path, format, format, body)
}

// listPeak is the most memory the servers have while ten clients list all pods.
func (r *round) listPeak(ctx context.Context, c *cluster) (peak float64, err error) {
	const lists = 10
	own, err := c.dial(lists)
	if err != nil {
		return 0, err
	}
	defer hangUp(own)
	done := make(chan error, 1)
	go func() {
		_, _, err := load{workers: lists, count: lists}.do(ctx, func(ctx context.Context, w, _ int) error {
			return own[w].do(ctx, "GET", c.path("pods"), protobuf, "", nil)
		})
		done <- err
	}()
	for list := r.servers(); ; {
		peak = max(peak, memory(list))
		select {
		case err := <-done:
			return peak, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// podLists measures before anything changes the pods: who changes more would have longer lists.
func (r *round) podLists(ctx context.Context, c *cluster, wires []*wire) error {
	byLabel, byNode := chosen+"=true", "spec.nodeName="+c.name(chosen)
	for _, k := range []struct {
		name, query, accept string
		clients             int
	}{
		{"LIST of all pods, protobuf", "", protobuf, 1},
		{"LIST of all pods, JSON", "", jsonType, 1},
		{"LIST of all pods, Table", "", tableType, 1},
		{"LIST of 1 % of pods by label, protobuf", "?labelSelector=" + byLabel, protobuf, clients},
		{"LIST of 1 % of pods by label, JSON", "?labelSelector=" + byLabel, jsonType, clients},
		{"LIST of 1 % of pods by label, Table", "?labelSelector=" + byLabel, tableType, clients},
		{"LIST of 1 % of pods by node, protobuf", "?fieldSelector=" + byNode, protobuf, clients},
		{"LIST of 1 % of pods by node, JSON", "?fieldSelector=" + byNode, jsonType, clients},
		{"LIST of 1 % of pods by node, Table", "?fieldSelector=" + byNode, tableType, clients},
	} {
		err := r.measure(ctx, k.name, load{workers: k.clients, span: r.Burst}, func(ctx context.Context, w, _ int) error {
			return wires[w%len(wires)].do(ctx, "GET", c.path("pods")+k.query, k.accept, "", nil)
		})
		if err != nil {
			return err
		}
	}
	for _, o := range []metav1.ListOptions{{LabelSelector: byLabel}, {FieldSelector: byNode}} { // that it was they
		list, err := c.client.CoreV1().Pods(c.namespace()).List(ctx, o)
		if err != nil {
			return err
		}
		if want := (r.Pods + 99) / 100; len(list.Items) != want {
			return fmt.Errorf("LIST with %+v: %d pods, want %d", o, len(list.Items), want)
		}
	}
	return nil
}

// creates measures what the memory was not to be measured after.
func (r *round) creates(ctx context.Context, c *cluster, wires []*wire) error {
	count := min(2000, r.Pods)
	mapsPath := c.path("configmaps")
	plain, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	configMap := func(name string, i int) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i)}, Data: map[string]string{"key": "value"},
		}
	}
	maps := plain.CoreV1().ConfigMaps(c.namespace())
	err = r.measure(ctx, "ConfigMap create, client-go, JSON", load{workers: clients, count: count}, func(ctx context.Context, _, i int) error {
		_, err := maps.Create(ctx, configMap("map", i), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	otherPods, err := c.newNamespace(ctx, "others")
	if err != nil {
		return err
	}
	for _, k := range []struct {
		name, path, format string
		clients            int
		object             func(i int) runtime.Object
	}{
		{"ConfigMap create, JSON", mapsPath, jsonType, clients, func(i int) runtime.Object { return configMap("few", i) }},
		{"ConfigMap create, JSON, 200 clients", mapsPath, jsonType, 200, func(i int) runtime.Object { return configMap("many", i) }},
		{"ConfigMap create, protobuf", mapsPath, protobuf, clients, func(i int) runtime.Object { return configMap("binary", i) }},
		{"pod create, JSON, 200 clients", otherPods, jsonType, 200, func(i int) runtime.Object { return typicalPod(fmt.Sprintf("crowd-%d", i)) }},
		{"pod create, JSON", otherPods, jsonType, clients, func(i int) runtime.Object { return typicalPod(fmt.Sprintf("json-%d", i)) }},
		{"pod create, protobuf, 200 clients", otherPods, protobuf, 200, func(i int) runtime.Object { return typicalPod(fmt.Sprintf("many-%d", i)) }},
	} {
		err := r.measure(ctx, k.name, load{workers: k.clients, count: count}, func(ctx context.Context, w, i int) error {
			return wires[w%len(wires)].create(ctx, k.path, k.format, k.object(i))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// newNamespace makes one that pods can be made in, and returns the path of its pods.
func (c *cluster) newNamespace(ctx context.Context, name string) (string, error) {
	name = c.name(name)
	path, err := c.makeNamespace(ctx, name)
	if err != nil {
		return "", err
	}
	return path, within(ctx, 20*time.Second, "a pod in a new namespace", func(ctx context.Context) error {
		_, err := c.client.CoreV1().Pods(name).Create(ctx, typicalPod("pod"), metav1.CreateOptions{})
		return err
	})
}

// makeNamespace makes a namespace, waits for its account, without which no pod can be made, and returns the path of its pods.
func (c *cluster) makeNamespace(ctx context.Context, name string) (string, error) {
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, space, metav1.CreateOptions{}); err != nil {
		return "", err
	}
	c.spaces = append(c.spaces, name)
	return "/api/v1/namespaces/" + name + "/pods", within(ctx, 20*time.Second, "the account of namespace "+name, func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// rested is the least memory the servers have in a span, in the first round: most of what a busy
// one has is garbage.
func (r *round) rested(ctx context.Context, span time.Duration) (least float64, err error) {
	least = math.Inf(1)
	for began := time.Now(); r.Round == 0 && len(r.servers()) > 0 && time.Since(began) < span && err == nil; err = sleep(ctx, 2*time.Second) {
		least = min(least, memory(r.servers()))
	}
	return least, err
}

func (r *round) podRequests(ctx context.Context, c *cluster, wires []*wire) error {
	span := load{workers: clients, span: r.Burst}
	err := r.measure(ctx, "pod GET, protobuf", span, func(ctx context.Context, w, i int) error {
		return wires[w%len(wires)].do(ctx, "GET", c.path("pods")+"/"+podName(i*7919%r.Pods), protobuf, "", nil)
	})
	if err != nil {
		return err
	}
	for _, k := range []struct {
		name, query, format string
		body                func(i int) ([]byte, error)
	}{
		{"pod merge patch, JSON", "", mergePatch, func(i int) ([]byte, error) {
			return fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i), nil
		}},
		{"pod status patch, JSON", "/status", strategicPatch, func(i int) ([]byte, error) {
			return fmt.Appendf(nil, `{"status":{"message":"turn %d"}}`, i), nil
		}},
		{"pod apply, JSON", "?fieldManager=bench", applyPatch, func(i int) ([]byte, error) {
			pod := typicalPod(podName(i % r.Pods))
			pod.Annotations["turn"] = strconv.Itoa(i)
			return json.Marshal(pod)
		}},
	} {
		err := r.measure(ctx, k.name, span, func(ctx context.Context, w, i int) error {
			body, err := k.body(i)
			if err != nil {
				return err
			}
			return wires[w%len(wires)].do(ctx, "PATCH", c.path("pods")+"/"+podName(i%r.Pods)+k.query, jsonType, k.format, body)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// leases are renewed as kubelets do: by client-go, from the last answer.
func (r *round) leases(ctx context.Context, c *cluster, _ []*wire) error {
	api := c.client.CoordinationV1().Leases(c.namespace())
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
	return r.measure(ctx, "lease update, client-go, protobuf", load{workers: clients, span: r.Burst}, func(ctx context.Context, w, _ int) (err error) {
		held[w].Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		held[w], err = api.Update(ctx, held[w], metav1.UpdateOptions{})
		return err
	})
}

// watchers measures one pod's changes on their way to all who watch it.
func (r *round) watchers(ctx context.Context, c *cluster, wires []*wire) error {
	pods, err := c.newNamespace(ctx, "watched")
	if err != nil {
		return err
	}
	for _, k := range []struct {
		name             string
		watchers, events int
	}{
		{"event to the only watcher", 1, 500},
		{"event to one of 100 watchers", 100, 200},
		{"event to one of 1,000 watchers", 1000, 100},
	} {
		if err := r.watch(ctx, c, wires[0], pods, k.name, k.watchers, k.events); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return nil
}

func (r *round) watch(ctx context.Context, c *cluster, writer *wire, pods, name string, watchers, events int) error {
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
		body, err := own[i%len(own)].open(ctx, "GET", pods+"?watch=true", protobuf+";stream=watch", "", nil)
		if err != nil {
			return err
		}
		defer body.Close()
		group.Go(func() error { return countFrames(body, events+1, &seen) })
	}
	reach := func(n int) error {
		return within(ctx, time.Minute, fmt.Sprintf("%d events", n), func(context.Context) error {
			if have := seen.Load(); have < int64(n) {
				return fmt.Errorf("%d have come", have)
			}
			return nil
		})
	}
	if err := reach(watchers); err != nil { // the pod as it is
		return err
	}
	list := r.servers()
	before, began := running(list), time.Now()
	for i := range events {
		body := fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i)
		if err := writer.do(ctx, "PATCH", pods+"/pod", jsonType, mergePatch, body); err != nil {
			return err
		}
	}
	if err := reach(watchers * (events + 1)); err != nil {
		return err
	}
	r.perOperation(name, running(list)-before, watchers*events, time.Since(began))
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
				Env:           []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}},
				LivenessProbe: probe("/healthz"), ReadinessProbe: probe("/readyz"),
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: quantity("100m"), corev1.ResourceMemory: quantity("128Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: quantity("256Mi")},
				},
			}},
		},
	}
}
