package core

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts anew")

// TestTranscripts runs the scripts in testdata. A script is commands, one a
// line, each followed by what came out, indented by a tab:
//
//	node NAME [cpu=N] [memory=Q] [pods=N] [label KEY=VALUE]... [taint KEY=VALUE:EFFECT]... [cordoned] [image NAME=BYTES]...
//	gone NAME                  the node is removed
//	decide NAME {YAML of the spec} [labels=..] [ns=..] [priority=N]   where would it go, and why
//	place NAME ...             decide, and put it there
//	pod NAME NODE ...          a pod that is on a node already
//	delete NAME                the pod is gone
//	namespace NAME LABELS
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("got:\n%s", got)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	c := NewCluster()
	pods := map[string]*Pod{}
	var out strings.Builder
	in := bufio.NewScanner(strings.NewReader(script))
	for in.Scan() {
		line := in.Text()
		if strings.HasPrefix(line, "\t") {
			continue
		}
		fmt.Fprintln(&out, line)
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		switch f[0] {
		case "node":
			c.SetNode(parseNode(f[1:]))
		case "gone":
			c.RemoveNode(f[1])
		case "namespace":
			set, _ := labels.ConvertSelectorToLabelsMap(f[2])
			c.SetNamespace(f[1], set)
		case "pod":
			p := parsePod(t, f[1], strings.Join(f[3:], " "))
			pods[f[1]] = p
			c.AddPod(p, f[2])
		case "delete":
			c.RemovePod(pods[f[1]])
		case "decide", "place":
			p := parsePod(t, f[1], strings.Join(f[2:], " "))
			d := c.Decide(&Request{Pod: p, Preemption: true, Spread: spreadOf(p)})
			fmt.Fprint(&out, show(d))
			if f[0] == "place" && d.Node != "" {
				pods[f[1]] = p
				c.AddPod(p, d.Node)
			}
		default:
			t.Fatalf("unknown command %q", line)
		}
	}
	return out.String()
}

// spreadOf stands in for the pod's service: pods with its label app.
func spreadOf(p *Pod) labels.Selector {
	if app := p.Labels["app"]; app != "" {
		return labels.SelectorFromSet(labels.Set{"app": app})
	}
	return nil
}

func show(d Decision) string {
	if d.Node != "" {
		return fmt.Sprintf("\t%s, score %d, %d feasible\n", d.Node, d.Score, d.Feasible)
	}
	s := fmt.Sprintf("\t%s\n", d.Message)
	for _, v := range d.Victims {
		s += fmt.Sprintf("\tvictim %s\n", v.Name)
	}
	return s
}

func parseNode(f []string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: f[0], Labels: map[string]string{v1.LabelHostname: f[0]}}}
	n.Status.Allocatable = v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("110"),
	}
	for i := 1; i < len(f); i++ {
		key, value, _ := strings.Cut(f[i], "=")
		switch key {
		case "label":
			i++
			k, v, _ := strings.Cut(f[i], "=")
			n.Labels[k] = v
		case "taint":
			i++
			k, rest, _ := strings.Cut(f[i], "=")
			v, effect, _ := strings.Cut(rest, ":")
			n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: k, Value: v, Effect: v1.TaintEffect(effect)})
		case "image":
			i++
			name, size, _ := strings.Cut(f[i], "=")
			bytes, _ := strconv.ParseInt(size, 10, 64)
			n.Status.Images = append(n.Status.Images, v1.ContainerImage{Names: []string{name}, SizeBytes: bytes})
		case "cordoned":
			n.Spec.Unschedulable = true
		default:
			n.Status.Allocatable[v1.ResourceName(key)] = resource.MustParse(value)
		}
	}
	return n
}

var podCount int

// parsePod reads what follows a pod's name: settings, then its spec in YAML's
// flow style.
func parsePod(t testing.TB, name, text string) *Pod {
	podCount++
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(fmt.Sprint(name, podCount))}}
	settings, spec, _ := strings.Cut(text, "{")
	for _, s := range strings.Fields(settings) {
		key, value, _ := strings.Cut(s, "=")
		switch key {
		case "labels":
			pod.Labels, _ = labels.ConvertSelectorToLabelsMap(value)
		case "ns":
			pod.Namespace = value
		case "started":
			sec, _ := strconv.ParseInt(value, 10, 64)
			pod.Status.StartTime = &metav1.Time{Time: time.Unix(sec, 0)}
		case "priority":
			n, _ := strconv.Atoi(value)
			pod.Spec.Priority = new(int32(n))
		case "cpu", "memory":
			if pod.Spec.Containers == nil {
				pod.Spec.Containers = []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{}}}}
			}
			pod.Spec.Containers[0].Resources.Requests[v1.ResourceName(key)] = resource.MustParse(value)
		default:
			t.Fatalf("pod %s: unknown setting %q", name, s)
		}
	}
	if spec != "" {
		if err := yaml.UnmarshalStrict([]byte("{"+spec), &pod.Spec); err != nil {
			t.Fatalf("pod %s: %v", name, err)
		}
	}
	p, err := Compile(pod)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRequests(t *testing.T) {
	cases := []struct{ name, spec, want string }{
		{"containers add up", `{containers: [{resources: {requests: {cpu: 100m, memory: 1Mi}}}, {resources: {requests: {cpu: 200m, a/b: 2}}}]}`, "300 1048576 map[a/b:2]"},
		{"an init container runs alone", `{initContainers: [{resources: {requests: {cpu: "1"}}}], containers: [{resources: {requests: {cpu: 100m}}}]}`, "1000 0 map[]"},
		{"a sidecar runs beside", `{initContainers: [{restartPolicy: Always, resources: {requests: {cpu: 300m}}}], containers: [{resources: {requests: {cpu: 100m}}}]}`, "400 0 map[]"},
		{"init after sidecar", `{initContainers: [{restartPolicy: Always, resources: {requests: {cpu: 300m}}}, {resources: {requests: {cpu: 500m}}}], containers: [{resources: {requests: {cpu: 100m}}}]}`, "800 0 map[]"},
		{"init before sidecar", `{initContainers: [{resources: {requests: {cpu: 350m}}}, {restartPolicy: Always, resources: {requests: {cpu: 300m}}}], containers: [{resources: {requests: {cpu: 100m}}}]}`, "400 0 map[]"},
		{"overhead comes on top", `{overhead: {cpu: 50m, memory: 1Ki}, containers: [{resources: {requests: {cpu: 100m}}}]}`, "150 1024 map[]"},
		{"the pod's own requests replace", `{resources: {requests: {cpu: "2"}}, containers: [{resources: {requests: {cpu: 100m, memory: 1Ki}}}]}`, "2000 1024 map[]"},
	}
	for _, tt := range cases {
		p := parsePod(t, "p", tt.spec)
		if got := fmt.Sprint(p.req.cpu, p.req.memory, p.req.scalars); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Whatever comes and goes, the columns must be what they would be if the
// cluster were built from scratch, and so must decisions, which remember what
// nodes meant for earlier pods of the template.
func TestColumnsStayTrue(t *testing.T) {
	c := NewCluster()
	nodes, pods := map[string]*v1.Node{}, map[string]*Pod{}
	seed := uint64(1)
	next := func(n int) int {
		seed = seed*6364136223846793005 + 1442695040888963407
		return int(seed>>33) % n
	}
	for step := range 3000 {
		node := fmt.Sprint("n", next(8))
		pod := fmt.Sprint("p", next(30))
		switch next(5) {
		case 0:
			nodes[node] = parseNode([]string{node, "label", fmt.Sprint("zone=", next(3)), "image", fmt.Sprintf("i%d=100", next(3)), fmt.Sprint("x/y=", next(4)), "taint", fmt.Sprintf("t=%d:NoSchedule", next(2))})
			c.SetNode(nodes[node])
		case 1:
			delete(nodes, node)
			c.RemoveNode(node)
		case 2:
			if p := pods[pod]; p != nil {
				c.RemovePod(p)
				delete(pods, pod)
			}
		default:
			if p := pods[pod]; p != nil {
				c.AddPod(p, node) // moved
				continue
			}
			pods[pod] = parsePod(t, pod, fmt.Sprintf("cpu=%dm labels=app=%d {containers: [{ports: [{hostPort: %d}], resources: {requests: {cpu: 1m, x/y: 1}}}]}", next(100), next(3), 1+next(5)))
			c.AddPod(pods[pod], node)
		}
		c.label("zone")
		for app := range 3 {
			c.counter("default", labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(app)}))
		}
		var got []string
		for i, text := range templates {
			got = append(got, decided(t, c, i, text))
		}
		if step%10 != 0 {
			continue
		}
		fresh := NewCluster()
		for _, n := range nodes {
			fresh.SetNode(n)
		}
		for _, p := range pods {
			cp := *p
			fresh.AddPod(&cp, p.Node)
		}
		if got, want := describe(c), describe(fresh); got != want {
			t.Fatalf("step %d:\n got %s\nwant %s", step, got, want)
		}
		for i, text := range templates {
			if want := decided(t, fresh, i, text); got[i] != want {
				t.Fatalf("step %d, pod %s:\n got %s\nwant %s", step, text, got[i], want)
			}
		}
	}
}

// templates are of pods that look at everything a node has.
var templates = []string{
	"cpu=100m memory=1Gi", "cpu=2", "labels=app=1", "labels=app=2 {nodeSelector: {zone: '1'}}",
	"{tolerations: [{key: t, value: '1'}]}", "{containers: [{ports: [{hostPort: 2}], image: i1}]}",
	"{containers: [{image: 'i2:latest', resources: {requests: {x/y: 2}}}]}",
	"{affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: NotIn, values: ['2']}]}]}}}}",
}

// decided is all of a decision but which of equal nodes was taken.
func decided(t *testing.T, c *Cluster, i int, text string) string {
	p := parsePod(t, fmt.Sprint("template", i), text)
	d := c.Decide(&Request{Pod: p, Spread: spreadOf(p)})
	return fmt.Sprintln(d.Node != "", d.Score, d.Feasible, d.Message, d.Rejected)
}

// describe writes every column by node name.
func describe(c *Cluster) string {
	var lines []string
	for name, row := range c.index {
		line := fmt.Sprintf("%s known=%v cpu %d/%d nz %d x/y %d/%d slots %d/%d taints %v ports %d", name, c.nodes[row] != nil,
			c.cpu.used[row], c.cpu.total[row], c.nonzeroCPU[row], c.scalar("x/y").used[row], c.scalar("x/y").total[row],
			c.podSlots.used[row], c.podSlots.total[row], c.sets[c.taints[row]], len(c.ports[row]))
		if c.nodes[row] == nil {
			line = fmt.Sprintf("%s unknown, %d pods", name, c.podSlots.used[row])
		} else {
			zone := c.label("zone")
			line += " zone " + zone.names[zone.values[row]]
		}
		for i := range 3 {
			if im := c.images[fmt.Sprint("i", i)]; im != nil {
				line += fmt.Sprintf(" i%d %v of %d", i, im.on.has(row), im.n)
			}
			line += fmt.Sprint(" app", i, ":", c.counter("default", labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(i)})).byRow[row])
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func benchCluster(nodes int) *Cluster {
	c := NewCluster()
	for i := range nodes {
		c.SetNode(parseNode([]string{fmt.Sprintf("n%04d", i), "label", fmt.Sprintf("%s=z%d", v1.LabelTopologyZone, i%3)}))
	}
	return c
}

func benchDecide(b *testing.B, nodes int, text string) {
	c := benchCluster(nodes)
	pod := parsePod(b, "p", text).Pod
	spread := labels.SelectorFromSet(pod.Labels)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		cp := *pod
		cp.UID = types.UID(strconv.Itoa(i))
		p, _ := Compile(&cp)
		d := c.Decide(&Request{Pod: p, Spread: spread})
		if d.Node == "" {
			b.Fatal(d.Message)
		}
		c.AddPod(p, d.Node)
		if i >= 20*nodes {
			b.StopTimer()
			c = benchCluster(nodes)
			i = 0
			b.StartTimer()
		}
	}
}

func BenchmarkPlain1000(b *testing.B)  { benchDecide(b, 1000, "cpu=100m memory=100Mi") }
func BenchmarkSpread1000(b *testing.B) { benchDecide(b, 1000, "cpu=100m memory=100Mi labels=app=a") }
func BenchmarkPlain5000(b *testing.B)  { benchDecide(b, 5000, "cpu=100m memory=100Mi") }
func BenchmarkRefused5000(b *testing.B) {
	c := benchCluster(5000)
	p := parsePod(b, "p", "cpu=100")
	for b.Loop() {
		c.Decide(&Request{Pod: p})
	}
}
