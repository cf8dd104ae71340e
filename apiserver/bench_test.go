package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
)

func benchPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web", "pod-template-hash": "6d4cf56db6"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Image: "nginx:1.14.2", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
			Env:       []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}},
		}}},
	}
}

func (r raw) fast(b *testing.B, method, path string, body []byte) int {
	return r.send(b, method, path, codec.Protobuf, body)
}

func (r raw) send(b *testing.B, method, path, media string, body []byte) int {
	req, _ := http.NewRequestWithContext(context.Background(), method, "http://x"+path, bytes.NewReader(body))
	req.Header.Set("Content-Type", media)
	req.Header.Set("Accept", codec.Protobuf)
	req.Header.Set("User-Agent", "bench/1")
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		b.Fatal(err)
	}
	n, _ := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		b.Fatalf("%s %s: %d", method, path, resp.StatusCode)
	}
	return int(n)
}

func BenchmarkPodCreate(b *testing.B) {
	c := newRaw(newServer(b, nil))
	i := 0
	for b.Loop() {
		i++
		body, err := wire.Seal("v1", "Pod", benchPod(fmt.Sprintf("p-%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		c.fast(b, "POST", "/api/v1/namespaces/default/pods", body)
	}
}

func BenchmarkPodGet(b *testing.B) {
	c := newRaw(newServer(b, nil))
	body, _ := wire.Seal("v1", "Pod", benchPod("p"))
	c.fast(b, "POST", "/api/v1/namespaces/default/pods", body)
	for b.Loop() {
		c.fast(b, "GET", "/api/v1/namespaces/default/pods/p", nil)
	}
}

func BenchmarkPodMergePatch(b *testing.B) {
	c := newRaw(newServer(b, nil))
	fill(b, c, 1)
	for i := 0; b.Loop(); i++ {
		c.send(b, "PATCH", "/api/v1/namespaces/default/pods/p-0", "application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i))
	}
}

// benchDefinition has what definitions mostly have: a schema with a rule and a default.
const benchDefinition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"things.bench.example.com"},
"spec":{"group":"bench.example.com","scope":"Namespaced","names":{"plural":"things","singular":"thing","kind":"Thing","listKind":"ThingList"},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},"schema":{"openAPIV3Schema":{"type":"object","properties":{
"spec":{"type":"object","required":["size"],"x-kubernetes-validations":[{"rule":"self.size <= self.limit"}],"properties":{
"size":{"type":"integer","minimum":0},"limit":{"type":"integer","default":100},"name":{"type":"string","maxLength":64,"pattern":"^[a-z]*$"},
"parts":{"type":"array","maxItems":16,"items":{"type":"object","properties":{"key":{"type":"string"},"value":{"type":"string"}}}}}},
"status":{"type":"object","properties":{"phase":{"type":"string"}}}}}}}]}}`

func BenchmarkCustomResourceCreate(b *testing.B) {
	c := newRaw(newServer(b, nil))
	const media, things = "application/json", "/apis/bench.example.com/v1/namespaces/default/things"
	define(b, c, []byte(benchDefinition), things)
	for i := 0; b.Loop(); i++ {
		code, body := c.do(b, "POST", things, media, fmt.Appendf(nil, `{"apiVersion":"bench.example.com/v1","kind":"Thing","metadata":{"name":"thing-%d","labels":{"app":"web"}},
			"spec":{"size":3,"name":"abc","parts":[{"key":"a","value":"1"},{"key":"b","value":"2"}]}}`, i))
		if code != 201 {
			b.Fatal(body)
		}
	}
}

func BenchmarkPodApply(b *testing.B) {
	c := newRaw(newServer(b, nil))
	fill(b, c, 1)
	pod := benchPod("p-0")
	pod.APIVersion, pod.Kind = "v1", "Pod"
	for i := 0; b.Loop(); i++ {
		pod.Annotations = map[string]string{"turn": fmt.Sprint(i)}
		body, err := json.Marshal(pod)
		if err != nil {
			b.Fatal(err)
		}
		c.send(b, "PATCH", "/api/v1/namespaces/default/pods/p-0?fieldManager=bench&force=true", "application/apply-patch+yaml", body)
	}
}

func fill(b *testing.B, c raw, n int) {
	for i := range n {
		body, _ := wire.Seal("v1", "Pod", benchPod(fmt.Sprintf("p-%d", i)))
		c.fast(b, "POST", "/api/v1/namespaces/default/pods", body)
	}
}

func BenchmarkPodList10k(b *testing.B) {
	c := newRaw(newServer(b, nil))
	fill(b, c, 10000)
	for b.Loop() {
		b.SetBytes(int64(c.fast(b, "GET", "/api/v1/pods", nil)))
	}
}

// BenchmarkPodListSelected finds one pod among 10,000.
func BenchmarkPodListSelected(b *testing.B) {
	c := newRaw(newServer(b, nil))
	fill(b, c, 10000)
	for name, query := range map[string]string{"label": "labelSelector=none%3Dsuch", "node": "fieldSelector=spec.nodeName%3Dnone"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.fast(b, "GET", "/api/v1/namespaces/default/pods?"+query, nil)
			}
		})
	}
}

func BenchmarkPodList10kJSON(b *testing.B) {
	c := newRaw(newServer(b, nil))
	fill(b, c, 10000)
	for b.Loop() {
		req, _ := http.NewRequestWithContext(context.Background(), "GET", "http://x/api/v1/pods", http.NoBody)
		resp, err := c.rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkPodListOverTLS is a LIST of 3,000 pods, client included.
func BenchmarkPodListOverTLS(b *testing.B) {
	s, cfg := newTLSServer(b, nil)
	fill(b, newRaw(s), 3000)
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		b.Fatal(err)
	}
	for name, media := range map[string]string{"protobuf": codec.Protobuf, "JSON": codec.JSON, "Table": "application/json;as=Table;v=v1;g=meta.k8s.io"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				req, _ := http.NewRequestWithContext(b.Context(), "GET", cfg.Host+"/api/v1/pods", http.NoBody)
				req.Header.Set("Accept", media)
				req.Header.Set("Accept-Encoding", "identity")
				resp, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				n, _ := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				b.SetBytes(n)
			}
		})
	}
}

// BenchmarkWatch1000 is one pod write seen by 1,000 watchers; ns/op divided by
// 1,000 is the cost per watcher (with the reader's end of the in-memory pipe).
func BenchmarkWatch1000(b *testing.B) {
	c := newRaw(newServer(b, nil))
	const watchers = 1000
	got := make(chan int, watchers)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range watchers {
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://x/api/v1/pods?watch=1", http.NoBody)
		req.Header.Set("Accept", codec.Protobuf+";stream=watch")
		resp, err := c.rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			defer resp.Body.Close()
			head := make([]byte, 4)
			buf := make([]byte, 1<<16)
			for {
				if _, err := io.ReadFull(resp.Body, head); err != nil {
					return
				}
				n := int(head[2])<<8 | int(head[3])
				if _, err := io.ReadFull(resp.Body, buf[:n]); err != nil {
					return
				}
				got <- n
			}
		}()
	}
	i := 0
	for b.Loop() {
		i++
		body, _ := wire.Seal("v1", "Pod", benchPod(fmt.Sprintf("p-%d", i)))
		c.fast(b, "POST", "/api/v1/namespaces/default/pods", body)
		for range watchers {
			<-got
		}
	}
}

// BenchmarkWatchOverTLS is a pod's changes on their way to 1,000 watchers over 10 connections. The client, which is
// counted too, only counts frames. "each" waits for an event to arrive before the next, "burst" does not; with "gzip"
// they are compressed streaming lists.
func BenchmarkWatchOverTLS(b *testing.B) {
	const conns, each = 10, 100
	const list = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
	for name, ahead := range map[string]int{"each": 1, "burst": 100, "each, gzip": 1, "burst, gzip": 100} {
		b.Run(name, func(b *testing.B) {
			s, cfg := newTLSServer(b, nil)
			c := newRaw(s)
			fill(b, c, 1)
			bytesPerEvent := c.fast(b, "GET", "/api/v1/namespaces/default/pods/p-0", nil)
			arrived := make(chan int, conns*ahead)
			idle := memory()
			for range conns {
				nc := dialRaw(b, cfg.Host)
				nc.takeAll()
				for i := range each {
					if strings.HasSuffix(name, "gzip") {
						nc.watch(uint32(2*i+1), codec.Protobuf, "/api/v1/namespaces/default/pods?watch=1"+list, [2]string{"accept-encoding", "gzip"})
					} else {
						nc.watch(uint32(2*i+1), codec.Protobuf, "/api/v1/namespaces/default/pods?watch=1")
					}
				}
				go nc.count(each, arrived)
			}
			await := func(n int) {
				for range n * conns {
					<-arrived
				}
			}
			await(1)
			held := float64(memory()-idle) / conns / each
			b.ResetTimer()
			before, sent := cpu(b), 0
			for i := range b.N {
				c.send(b, "PATCH", "/api/v1/namespaces/default/pods/p-0", "application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{"turn":"%d"}}}`, i))
				if sent++; sent == ahead {
					await(sent)
					sent = 0
				}
			}
			await(sent)
			b.StopTimer()
			b.ReportMetric(held, "B/watcher")
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N*conns*each), "cpu-ns/event")
			b.ReportMetric(float64(bytesPerEvent), "B/event")
		})
	}
}

// cpu is what the process has used, in nanoseconds.
func cpu(tb testing.TB) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// memory is what the heap and the stacks hold.
func memory() int64 {
	runtime.GC()
	runtime.GC() // pools empty at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// rawConn is the client's end of an HTTP/2 connection, frame by frame.
type rawConn struct {
	net.Conn
	*http2.Framer
	tb    testing.TB
	addr  string
	block bytes.Buffer
	hp    *hpack.Encoder
}

// dialRaw connects with a window of 1 byte for each stream.
func dialRaw(tb testing.TB, host string) *rawConn {
	addr := strings.TrimPrefix(host, "https://")
	nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		tb.Fatal(err)
	}
	c := &rawConn{Conn: nc, Framer: http2.NewFramer(nc, bufio.NewReaderSize(nc, 64<<10)), tb: tb, addr: addr}
	c.SetReuseFrames()
	c.hp = hpack.NewEncoder(&c.block)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
	return c
}

func (c *rawConn) must(err error) {
	if err != nil {
		c.tb.Error(err)
	}
}

// takeAll opens the windows as far as they go.
func (c *rawConn) takeAll() {
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	c.must(c.WriteWindowUpdate(0, 1<<30))
}

func (c *rawConn) watch(id uint32, media, path string, more ...[2]string) {
	c.block.Reset()
	for _, f := range append([][2]string{
		{":method", "GET"}, {":scheme", "https"}, {":authority", c.addr}, {":path", path},
		{"accept", media + ";stream=watch"}, {"authorization", "Bearer secret"}, {"user-agent", "bench/1"},
	}, more...) {
		c.must(c.hp.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: true}))
}

// count tells arrived of every n events in protobuf, or of every n frames that are gzip, and gives back what they took of the connection's window.
func (c *rawConn) count(n int, arrived chan<- int) {
	events := make([]frames, 2*n)
	for seen, taken := 0, 0; ; {
		f, err := c.ReadFrame()
		if err != nil {
			return
		}
		data, ok := f.(*http2.DataFrame)
		if !ok {
			continue
		}
		if taken += len(data.Data()); taken > 1<<28 {
			c.must(c.WriteWindowUpdate(0, uint32(taken)))
			taken = 0
		}
		ended := 1
		if !bytes.HasPrefix(data.Data(), []byte{0x1f, 0x8b}) {
			ended = events[data.StreamID].take(data.Data())
		}
		for range ended {
			if seen++; seen%n == 0 {
				arrived <- seen
			}
		}
	}
}

// frames counts events, each behind its length.
type frames struct {
	head []byte
	left int
}

func (f *frames) take(p []byte) (ended int) {
	for len(p) > 0 {
		if f.left == 0 {
			n := min(4-len(f.head), len(p))
			f.head, p = append(f.head, p[:n]...), p[n:]
			if len(f.head) < 4 {
				break
			}
			f.left, f.head = int(binary.BigEndian.Uint32(f.head)), f.head[:0]
		}
		n := min(f.left, len(p))
		if f.left, p = f.left-n, p[n:]; f.left == 0 {
			ended++
		}
	}
	return ended
}

// BenchmarkPodCreateAdmitted is BenchmarkPodCreate with the plugins that are on by default.
func BenchmarkPodCreateAdmitted(b *testing.B) {
	s := admitted(b)
	c := newRaw(s)
	if _, err := typed(b, s).CoreV1().ServiceAccounts("default").Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		body, err := wire.Seal("v1", "Pod", benchPod(fmt.Sprintf("p-%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		c.fast(b, "POST", "/api/v1/namespaces/default/pods", body)
	}
}
