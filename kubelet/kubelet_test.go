package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api/core/podspec"
	"github.com/skiff-project/skiff/kubelet/fakecri"
	"github.com/skiff-project/skiff/kubelet/node"
	"github.com/skiff-project/skiff/kubelet/podworker"
)

// rig is a kubelet on a fake API and a fake runtime, with real folders and real time.
type rig struct {
	t      *testing.T
	client *fake.Clientset
	rt     *fakecri.Runtime
	dir    string
	stop   func()
	// notReady is set when a container is reported not ready.
	notReady atomic.Bool
}

func newRig(t *testing.T, objs ...runtime.Object) *rig {
	t.Helper()
	r := &rig{t: t, client: fake.NewClientset(objs...), rt: fakecri.New(clock.RealClock{}), dir: t.TempDir()}
	r.rt.AddImage("busybox:latest")
	// Deleting with grace 0 is final; with grace it marks, as the API server does.
	r.client.PrependReactor("delete", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		d := a.(clienttesting.DeleteActionImpl)
		if g := d.DeleteOptions.GracePeriodSeconds; g == nil || *g > 0 {
			return false, nil, errors.New("tests delete with r.delete")
		}
		return false, nil, nil
	})
	r.client.PrependReactor("patch", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if strings.Contains(string(a.(clienttesting.PatchAction).GetPatch()), `"ready":false`) {
			r.notReady.Store(true)
		}
		return false, nil, nil
	})
	r.start(nil)
	return r
}

func (r *rig) config() Config {
	none := ""
	var w = slog.DiscardHandler
	log := slog.New(w)
	if os.Getenv("KUBELET_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return Config{NodeName: "n1", NodeIPs: []string{"192.0.2.1"}, Client: r.client, Runtime: r.rt, Images: r.rt.Images(), Log: log,
		RootDir: filepath.Join(r.dir, "kubelet"), LogDir: filepath.Join(r.dir, "logs"), ServerAddr: "-", NoCgroups: true, ResolvConf: &none,
		StaticPodPath: filepath.Join(r.dir, "manifests"), Eviction: node.Thresholds{MemoryBytes: 1, DiskFraction: 1e-9, InodeFraction: 1e-9},
		Backoff: podworker.Limits{CrashInitial: 300 * time.Millisecond, ImageInitial: 300 * time.Millisecond}}
}

func (r *rig) start(change func(*Config)) {
	r.t.Helper()
	_ = os.MkdirAll(filepath.Join(r.dir, "manifests"), 0o755)
	cfg := r.config()
	if change != nil {
		change(&cfg)
	}
	k, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
	r.eventually("node is registered and ready", func() bool {
		n, err := r.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && len(n.Status.Conditions) == 4 && n.Status.Conditions[3].Status == v1.ConditionTrue
	})
}

func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			pods, _ := r.client.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
			for _, p := range pods.Items {
				r.t.Logf("pod %s: %+v", p.Name, p.Status)
			}
			r.t.Logf("runtime: %s", strings.Join(r.rt.Calls(), "; "))
			r.t.Logf("events: %s", strings.Join(r.events(), "\n"))
			r.t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func pod(name string, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("0123456789abcdef0123456789abcdef-" + name), Generation: 1},
		Spec: v1.PodSpec{NodeName: "n1", Containers: []v1.Container{{Name: "main", Image: "busybox"}}}}
	podspec.DefaultPod(p)
	p.Spec.Containers[0].ImagePullPolicy = v1.PullIfNotPresent
	for _, f := range change {
		f(p)
	}
	return p
}

func (r *rig) create(p *v1.Pod) {
	r.t.Helper()
	if _, err := r.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) get(name string) *v1.Pod {
	p, err := r.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

func (r *rig) phase(name string, want v1.PodPhase) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("pod %s is %s", name, want), func() bool { p := r.get(name); return p != nil && p.Status.Phase == want })
}

// delete does what the API server does with a graceful deletion.
func (r *rig) delete(name string, grace int64) {
	r.t.Helper()
	p := r.get(name)
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	p.Generation++
	if _, err := r.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) events() []string {
	list, _ := r.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	var out []string
	for _, e := range list.Items {
		out = append(out, e.Type+" "+e.Reason+" "+e.Message)
	}
	return out
}

func (r *rig) hasEvent(text string) {
	r.t.Helper()
	r.eventually("event "+text, func() bool {
		for _, e := range r.events() {
			if e == text {
				return true
			}
		}
		return false
	})
}

func TestPodRunsAndIsDeleted(t *testing.T) {
	r := newRig(t)
	r.create(pod("a"))
	r.phase("a", v1.PodRunning)
	p := r.get("a")
	st := p.Status.ContainerStatuses[0]
	if !st.Ready || st.Started == nil || !*st.Started || st.RestartCount != 0 || !strings.HasPrefix(st.ContainerID, "fake://") {
		t.Errorf("container status: %+v", st)
	}
	if p.Status.PodIP == "" || p.Status.HostIP != "192.0.2.1" || p.Status.QOSClass != v1.PodQOSBestEffort || p.Status.ObservedGeneration != 1 {
		t.Errorf("pod status: %+v", p.Status)
	}
	for _, e := range []string{`Normal Pulled Container image "busybox" already present on machine and can be accessed by the pod`,
		"Normal Created Container created", "Normal Started Container started"} {
		r.hasEvent(e)
	}
	r.delete("a", 5)
	r.eventually("the API object is gone", func() bool { return r.get("a") == nil })
	r.eventually("the runtime is clean", func() bool { return len(r.rt.Containers()) == 0 })
	r.hasEvent("Normal Killing Stopping container main")
	want := "run sandbox a attempt 0; create main attempt 0; start main; stop main grace 5; stop sandbox a; remove main; remove sandbox a"
	if got := strings.Join(r.rt.Calls(), "; "); got != want {
		t.Errorf("calls:\n got %s\nwant %s", got, want)
	}
	r.eventually("the pod's folders are gone", func() bool {
		a, _ := os.ReadDir(filepath.Join(r.dir, "kubelet", "pods"))
		b, _ := os.ReadDir(filepath.Join(r.dir, "logs"))
		return len(a)+len(b) == 0
	})
}

func TestRestartBacksOff(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.start(func(c *Config) { c.Backoff.CrashInitial = 2 * time.Second }) // long enough to be seen
	r.create(pod("a"))
	for i := range 2 {
		r.eventually("it runs", func() bool { return r.rt.Running("main") != nil })
		c := r.rt.Running("main")
		c.Exit(int32(i + 1))
	}
	r.eventually("CrashLoopBackOff", func() bool {
		p := r.get("a")
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff" && s[0].LastTerminationState.Terminated.ExitCode == 2
	})
	r.hasEvent("Warning BackOff Back-off restarting failed container main in pod a_default(0123456789abcdef0123456789abcdef-a)")
	r.eventually("it runs a third time", func() bool {
		p := r.get("a")
		return p.Status.Phase == v1.PodRunning && p.Status.ContainerStatuses[0].RestartCount == 2 && p.Status.ContainerStatuses[0].State.Running != nil
	})
}

func TestRestartNeverSucceeds(t *testing.T) {
	r := newRig(t)
	r.rt.OnStart = func(c *fakecri.Container) { c.Log("hello"); c.Exit(0) }
	r.create(pod("a", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }))
	r.phase("a", v1.PodSucceeded)
	p := r.get("a")
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady && c.Reason != "PodCompleted" {
			t.Errorf("Ready: %+v", c)
		}
	}
	if got := len(r.rt.Containers()); got != 1 {
		t.Errorf("%d containers are kept for their logs, want 1", got)
	}
}

func TestInitContainersRunInOrder(t *testing.T) {
	r := newRig(t)
	r.rt.OnStart = func(c *fakecri.Container) {
		if strings.HasPrefix(c.Name, "init") {
			c.Exit(0)
		}
	}
	always := v1.ContainerRestartPolicyAlways
	r.create(pod("a", func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{{Name: "init1", Image: "busybox", ImagePullPolicy: v1.PullIfNotPresent},
			{Name: "side", Image: "busybox", ImagePullPolicy: v1.PullIfNotPresent, RestartPolicy: &always},
			{Name: "init2", Image: "busybox", ImagePullPolicy: v1.PullIfNotPresent}}
	}))
	r.phase("a", v1.PodRunning)
	r.delete("a", 1)
	r.eventually("the API object is gone", func() bool { return r.get("a") == nil })
	var order []string
	for _, c := range r.rt.Calls() {
		if strings.HasPrefix(c, "start") || strings.HasPrefix(c, "stop ") {
			order = append(order, c)
		}
	}
	want := "start init1; start side; start init2; start main; stop main grace 2; stop side grace 2; stop sandbox a"
	if got := strings.Join(order, "; "); got != want {
		t.Errorf("order:\n got %s\nwant %s", got, want)
	}
}

func TestImagePullBackOff(t *testing.T) {
	r := newRig(t)
	r.rt.FailPull("nope:v1", errors.New("no such image"))
	r.create(pod("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "nope:v1" }))
	waiting := func(reason string) func() bool {
		return func() bool {
			p := r.get("a")
			s := p.Status.ContainerStatuses
			return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == reason
		}
	}
	r.eventually("ErrImagePull", waiting("ErrImagePull"))
	r.hasEvent(`Warning Failed Failed to pull image "nope:v1": no such image`)
	r.hasEvent("Warning Failed Error: ErrImagePull")
	r.eventually("ImagePullBackOff", waiting("ImagePullBackOff"))
	r.hasEvent(`Normal BackOff Back-off pulling image "nope:v1"`)
	r.rt.FailPull("nope:v1", nil)
	r.phase("a", v1.PodRunning)
}

func TestRestartAdoptsContainers(t *testing.T) {
	r := newRig(t)
	r.create(pod("a", func(p *v1.Pod) { p.Spec.Containers[0].ReadinessProbe = execProbe() }))
	r.phase("a", v1.PodRunning)
	r.eventually("ready", func() bool { p := r.get("a"); return p.Status.ContainerStatuses[0].Ready })
	before := r.get("a").Status.ContainerStatuses[0]
	calls := len(r.rt.Calls())
	r.stop()
	r.notReady.Store(false)
	r.start(nil)
	time.Sleep(300 * time.Millisecond) // nothing is to happen
	after := r.get("a").Status.ContainerStatuses[0]
	if after.ContainerID != before.ContainerID || after.RestartCount != before.RestartCount || !after.Ready || r.notReady.Load() {
		t.Errorf("after the restart: %+v (was not ready in between: %v)", after, r.notReady.Load())
	}
	if got := r.rt.Calls()[calls:]; len(got) != 0 {
		t.Errorf("the restart did: %v", got)
	}
}

func execProbe() *v1.Probe {
	return &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}, PeriodSeconds: 1, TimeoutSeconds: 1,
		SuccessThreshold: 1, FailureThreshold: 1}
}

type exitError struct{}

func (exitError) Error() string   { return "command exited with 1" }
func (exitError) ExitStatus() int { return 1 }

func TestLivenessFailureRestarts(t *testing.T) {
	r := newRig(t)
	r.rt.OnExec = func(id string, _ []string) (string, error) {
		if c := r.rt.Running("main"); c != nil && c.ID == id && c.Config.Metadata.Attempt == 0 {
			return "sick", exitError{}
		}
		return "", nil
	}
	r.create(pod("a", func(p *v1.Pod) { p.Spec.Containers[0].LivenessProbe = execProbe() }))
	r.hasEvent("Warning Unhealthy Liveness probe failed: sick")
	r.hasEvent("Normal Killing Container main failed liveness probe, will be restarted")
	r.eventually("it runs again", func() bool {
		p := r.get("a")
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
}

func TestHostPortConflictIsRejected(t *testing.T) {
	r := newRig(t)
	port := func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: v1.ProtocolTCP}}
	}
	r.create(pod("a", port))
	r.phase("a", v1.PodRunning)
	r.create(pod("b", port))
	r.phase("b", v1.PodFailed)
	p := r.get("b")
	if p.Status.Reason != "NodePorts" || p.Status.Message != "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports" {
		t.Errorf("reason %q message %q", p.Status.Reason, p.Status.Message)
	}
}

func TestTooMuchCPUIsRejected(t *testing.T) {
	r := newRig(t)
	r.create(pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1000")}
	}))
	r.phase("a", v1.PodFailed)
	if got := r.get("a").Status.Reason; got != "OutOfcpu" {
		t.Errorf("reason %q, want OutOfcpu", got)
	}
}

func TestMissingConfigMapKeepsContainerWaiting(t *testing.T) {
	r := newRig(t)
	r.create(pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}
	}))
	r.eventually("CreateContainerConfigError", func() bool {
		p := r.get("a")
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError" &&
			s[0].State.Waiting.Message == `configmap "cm" not found`
	})
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}, Data: map[string]string{"KEY": "value"}}
	if _, err := r.client.CoreV1().ConfigMaps("default").Create(context.Background(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.phase("a", v1.PodRunning)
	for _, e := range r.rt.Running("main").Config.Envs {
		if e.Key == "KEY" && string(e.Value) == "value" {
			return
		}
	}
	t.Error("the variable of the ConfigMap is missing")
}

func TestUnsupportedVolumeNamesItsKind(t *testing.T) {
	r := newRig(t)
	r.create(pod("a", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{Server: "s", Path: "/"}}}}
	}))
	r.hasEvent(`Warning FailedMount MountVolume.SetUp failed for volume "v" : volumes of kind nfs are not supported by this node`)
}

func TestFullEmptyDirIsEvicted(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.start(func(c *Config) { c.EvictionPeriod = 20 * time.Millisecond })
	limit := resource.MustParse("64Ki")
	p := pod("full", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
	})
	r.create(p)
	r.phase("full", v1.PodRunning)
	dir := filepath.Join(r.dir, "kubelet", "pods", string(p.UID), "volumes", "kubernetes.io~empty-dir", "v")
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	r.phase("full", v1.PodFailed)
	const message = `Usage of EmptyDir volume "v" exceeds the limit "64Ki". `
	if st := r.get("full").Status; st.Reason != "Evicted" || st.Message != message {
		t.Errorf("status %s: %q", st.Reason, st.Message)
	}
	r.hasEvent("Warning Evicted " + message)
}

func TestStaticPodHasMirror(t *testing.T) {
	r := newRig(t)
	manifest := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: default\nspec:\n  containers:\n  - name: main\n    image: busybox\n    imagePullPolicy: IfNotPresent\n"
	file := filepath.Join(r.dir, "manifests", "web.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	r.phase("web-n1", v1.PodRunning)
	m := r.get("web-n1")
	if m.Annotations["kubernetes.io/config.mirror"] == "" || m.Annotations["kubernetes.io/config.source"] != "file" {
		t.Errorf("mirror's annotations: %v", m.Annotations)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mirror is gone", func() bool { return r.get("web-n1") == nil })
	r.eventually("the pod is gone", func() bool { return len(r.rt.Containers()) == 0 })
}

// A kubelet that starts must not take running static pods for orphans, or their mirrors for
// left-overs, before it has read the manifests.
func TestRestartKeepsStaticPods(t *testing.T) {
	r := newRig(t)
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent}]}\n"
	if err := os.WriteFile(filepath.Join(r.dir, "manifests", "web.yaml"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	r.phase("web-n1", v1.PodRunning)
	r.stop()
	k, err := New(r.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k.ctx = ctx
	go k.pods.Run(ctx.Done())
	r.eventually("the API's pods are known", k.pods.HasSynced)
	k.node.Store(&v1.Node{})
	k.adoptOrphans(ctx)
	k.reconcileMirrors(ctx)
	if n := len(k.allWorkers()); n != 0 {
		t.Errorf("%d pods taken for orphans", n)
	}
	if r.get("web-n1") == nil {
		t.Error("the mirror was deleted")
	}
}

func TestOrphanIsRemoved(t *testing.T) {
	r := newRig(t)
	r.create(pod("a"))
	r.phase("a", v1.PodRunning)
	r.stop()
	zero := int64(0)
	if err := r.client.CoreV1().Pods("default").Delete(context.Background(), "a", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	r.start(nil)
	r.eventually("the orphan is gone", func() bool { return len(r.rt.Containers()) == 0 })
}

func TestSandboxDeathMakesANewOne(t *testing.T) {
	r := newRig(t)
	r.create(pod("a"))
	r.phase("a", v1.PodRunning)
	list, _ := r.rt.ListPodSandbox(context.Background(), nil)
	r.rt.KillSandbox(list[0].Id)
	r.eventually("it runs in a new sandbox", func() bool {
		p := r.get("a")
		s := p.Status.ContainerStatuses[0]
		return s.State.Running != nil && s.RestartCount == 1
	})
	r.hasEvent("Normal SandboxChanged Pod sandbox changed, it will be killed and re-created.")
}

func TestPostStartHookDelaysRunning(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	r.rt.OnExec = func(string, []string) (string, error) { <-release; return "", nil }
	r.create(pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"x"}}}}
	}))
	r.eventually("the container is up", func() bool { return r.rt.Running("main") != nil })
	time.Sleep(100 * time.Millisecond)
	if got := r.get("a").Status.Phase; got != v1.PodPending {
		t.Errorf("phase %s while the hook runs, want Pending", got)
	}
	close(release)
	r.phase("a", v1.PodRunning)
}

// The runtime hears which addresses the node's pods get, also when the answer to the
// kubelet's own write of the node is older than the event that tells them.
func TestRuntimeIsToldThePodRange(t *testing.T) {
	r := newRig(t)
	told := func(want string) func() bool {
		return func() bool { return slices.Contains(r.rt.Calls(), "UpdateRuntimeConfig "+want) }
	}
	assign := func(ranges ...string) {
		n, err := r.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n.Spec.PodCIDRs = ranges
		if _, err := r.client.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	assign("10.9.1.0/24", "fd09::/64")
	r.eventually("the runtime knows the range", told("10.9.1.0/24,fd09::/64"))
	r.stop()
	r.start(func(c *Config) { c.StatusPeriod = time.Hour })
	assign("10.9.2.0/24")
	r.eventually("the runtime knows the new range", told("10.9.2.0/24"))
}
