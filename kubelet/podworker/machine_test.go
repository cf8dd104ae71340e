package podworker

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/kubelet/allocation"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/status"
)

var rewrite = flag.Bool("rewrite", false, "write what happens to the transcripts")

// TestTranscripts runs the scripts in testdata. A script is a pod in YAML, "---", then commands,
// one a line, each followed by what the machine did. Commands:
//
//	step                  ask the machine
//	done <action>         the action ended well; the fake runtime follows suit
//	fail <action> R M     it failed with reason R and message M
//	exit <container> N    a running container ends by itself
//	wait D                time passes
//	probe <container> liveness|readiness|startup ok|bad
//	delete N              the pod is deleted with N seconds of grace
//	remove                the pod is gone from the API
//	image <container> I   the spec's image changes
//	ask <container> R Q   the spec asks for Q of resource R, which is deferred
//	grant                 what the spec asks for is granted
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(data))
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(data) {
				t.Errorf("transcript differs (run with -rewrite and review the diff); got:\n%s", got)
			}
		})
	}
}

type world struct {
	t      *testing.T
	pod    *v1.Pod
	m      *Machine
	rt     podstate.Runtime
	probes map[string]status.Probes
	busy   map[string]Action
	now    time.Time
	next   int
	gone   bool

	asked   *v1.Pod
	pending *Pending
	granted bool
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func play(t *testing.T, script string) string {
	head, body, ok := strings.Cut(script, "---\n")
	if !ok {
		t.Fatal("no --- after the pod")
	}
	w := &world{t: t, pod: &v1.Pod{}, probes: map[string]status.Probes{}, busy: map[string]Action{}, now: epoch}
	if err := yaml.UnmarshalStrict([]byte(head), w.pod); err != nil {
		t.Fatal(err)
	}
	w.pod.Namespace, w.pod.UID = "ns", "uid"
	w.asked = w.pod
	w.m = New(w.pod.Status, allocation.Set{}, Limits{})
	out := head + "---\n"
	for _, line := range strings.Split(body, "\n") {
		if line == "" || strings.HasPrefix(line, "  ") {
			continue
		}
		out += line + "\n"
		if strings.HasPrefix(line, "#") {
			continue
		}
		out += w.command(strings.Fields(line))
	}
	return out
}

func (w *world) command(f []string) string {
	switch f[0] {
	case "step":
		return w.step()
	case "done":
		a := w.take(strings.Join(f[1:], " "))
		w.effect(a)
		w.m.Done(a, Result{}, w.now)
	case "fail":
		n := len(f)
		w.m.Done(w.take(strings.Join(f[1:n-2], " ")), Result{Reason: f[n-2], Message: f[n-1]}, w.now)
	case "exit":
		code, _ := strconv.Atoi(f[2])
		w.end(w.rt.Latest(f[1]).ID, int32(code))
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "probe":
		w.probe(f[1], f[2], f[3] == "ok")
	case "delete":
		g, _ := strconv.ParseInt(f[1], 10, 64)
		t := metav1.NewTime(w.now)
		w.pod = w.pod.DeepCopy()
		w.pod.DeletionTimestamp, w.pod.DeletionGracePeriodSeconds = &t, &g
	case "remove":
		w.gone = true
	case "image":
		w.pod = w.pod.DeepCopy()
		w.pod.Generation++
		podstate.FindContainer(w.pod, f[1]).Image = f[2]
	case "ask":
		w.asked = w.asked.DeepCopy()
		w.asked.Generation++
		podstate.FindContainer(w.asked, f[1]).Resources.Requests = v1.ResourceList{v1.ResourceName(f[2]): resource.MustParse(f[3])}
		w.pod, _ = allocation.Of(w.pod).Apply(w.asked)
		w.pending = &Pending{Reason: v1.PodReasonDeferred, Message: "full"}
	case "grant":
		w.pod, w.pending, w.granted = w.asked, nil, true
	default:
		w.t.Fatalf("unknown command %q", f[0])
	}
	return ""
}

func show(a Action) string {
	s := string(a.Kind)
	if a.Container != "" {
		s += " " + a.Container
	}
	switch a.Kind {
	case Stop, PreStop:
		s += fmt.Sprintf(" grace=%d", a.Grace)
	case CreateSandbox:
		s += fmt.Sprintf(" attempt=%d", a.Attempt)
	case StopSandbox:
		s += " " + a.ID
	}
	return s
}

func (w *world) take(text string) Action {
	for k, a := range w.busy {
		if show(a) == text {
			delete(w.busy, k)
			return a
		}
	}
	w.t.Fatalf("no action %q in flight: %v", text, w.busy)
	return Action{}
}

// effect is what the runtime does when an action ends well.
func (w *world) effect(a Action) {
	w.next++
	id := fmt.Sprintf("%d", w.next)
	switch a.Kind {
	case CreateSandbox:
		w.rt.Sandboxes = append([]podstate.Sandbox{{ID: "s" + id, Ready: true, Attempt: a.Attempt, CreatedAt: w.now, IPs: []string{"10.0.0.1"}}}, w.rt.Sandboxes...)
	case StopSandbox:
		for i := range w.rt.Sandboxes {
			if w.rt.Sandboxes[i].ID == a.ID {
				w.rt.Sandboxes[i].Ready = false
			}
		}
	case Start:
		c := podstate.FindContainer(w.pod, a.Container)
		n := int32(0)
		if l := w.rt.Latest(c.Name); l != nil {
			n = l.RestartCount + 1
		}
		w.rt.Containers = append([]podstate.Container{{ID: "c" + id, Name: c.Name, SandboxID: w.rt.Sandboxes[0].ID, Image: c.Image,
			Hash: podstate.ContainerHash(c), RestartCount: n, State: podstate.Running, CreatedAt: w.now, StartedAt: w.now}}, w.rt.Containers...)
	case Stop:
		w.end(a.ID, 143)
	}
}

func (w *world) end(id string, code int32) {
	for i := range w.rt.Containers {
		if c := &w.rt.Containers[i]; c.ID == id && c.State == podstate.Running {
			c.State, c.ExitCode, c.FinishedAt, c.Reason = podstate.Exited, code, w.now, "Error"
			if code == 0 {
				c.Reason = "Completed"
			}
		}
	}
}

func (w *world) probe(container, kind string, ok bool) {
	id := w.rt.Latest(container).ID
	p := w.probes[id]
	switch kind {
	case "liveness":
		p.Liveness = &ok
	case "readiness":
		p.Readiness = &ok
	case "startup":
		p.Startup = &ok
	}
	w.probes[id] = p
}

func (w *world) step() string {
	o := w.m.Step(Input{Pod: w.pod, Asked: w.asked, Pending: w.pending, Granted: w.granted, Runtime: w.rt, Probes: w.probes, Removed: w.gone, NodeIPs: []string{"192.0.2.1"}, Scheme: "x", Now: w.now})
	w.granted = false
	var b strings.Builder
	for _, e := range o.Events {
		fmt.Fprintf(&b, "  event %s %s: %s\n", e.Type, e.Reason, e.Message)
	}
	for _, a := range o.Actions {
		fmt.Fprintf(&b, "  do %s\n", show(a))
		w.busy[a.Key()] = a
	}
	fmt.Fprintf(&b, "  status %s", o.Status.Phase)
	if o.Status.Reason != "" {
		fmt.Fprintf(&b, " (%s)", o.Status.Reason)
	}
	for _, list := range [][]v1.ContainerStatus{o.Status.InitContainerStatuses, o.Status.ContainerStatuses, o.Status.EphemeralContainerStatuses} {
		for _, s := range list {
			fmt.Fprintf(&b, "; %s %s", s.Name, state(s))
		}
	}
	for _, c := range o.Status.Conditions {
		if c.Type == v1.PodResizePending || c.Type == v1.PodResizeInProgress {
			fmt.Fprintf(&b, "; %s %s %s gen=%d", c.Type, c.Reason, c.Message, c.ObservedGeneration)
		}
	}
	b.WriteByte('\n')
	if !o.Wake.IsZero() {
		fmt.Fprintf(&b, "  wake in %s\n", o.Wake.Sub(w.now))
	}
	if o.Finished {
		b.WriteString("  finished\n")
	}
	return b.String()
}

func state(s v1.ContainerStatus) string {
	out := ""
	switch {
	case s.State.Running != nil:
		out = "running"
		if s.Ready {
			out += " ready"
		}
	case s.State.Terminated != nil:
		out = fmt.Sprintf("exited %d", s.State.Terminated.ExitCode)
	case s.State.Waiting != nil:
		out = "waiting " + s.State.Waiting.Reason
	}
	if s.RestartCount > 0 {
		out += fmt.Sprintf(" restarts=%d", s.RestartCount)
	}
	return out
}
