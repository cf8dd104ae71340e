package scripts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
)

// kills is how often TestKillsDuringChurn kills skiff.
const kills = 30

// TestKillsDuringChurn kills skiff with signal 9 at random moments while pods come and go.
// Afterwards the pods that were there before run on unharmed, and apart from theirs
// nothing is left on the machine: no address, interface, mount, control group, folder
// or process. SKIFF_KILL_SEED repeats a run's moments.
func TestKillsDuringChurn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, network namespaces and nftables are real here")
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SKIFF_KILL_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("SKIFF_KILL_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := newKillCluster(t)
	c.up(t)
	c.connect(t)
	for _, p := range steadyPods(c.image) {
		if _, err := c.pods.Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.settle(t, func() error { return c.running(t.Context(), 4+len(steadyPods(""))) })
	before, census := c.containers(t), c.census(t)

	ctx, stop := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	for i := range 3 {
		churn.Go(func() { c.churn(ctx, i) })
	}
	for range kills {
		time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
		c.kill(t)
		c.up(t)
	}
	stop()
	churn.Wait()
	c.settle(t, func() error {
		return c.pods.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "churn"})
	})
	c.settle(t, func() error { return c.running(t.Context(), 4+len(steadyPods(""))) })

	if after := c.containers(t); !slices.Equal(before, after) {
		t.Errorf("steady pods were touched:\nbefore %v\nafter  %v", before, after)
	}
	c.settle(t, func() error {
		if now := c.census(t); !slices.Equal(now, census) {
			return fmt.Errorf("traces of pods on the machine differ (- before, + now):\n%s", diff(census, now))
		}
		return nil
	})
	if out, err := c.command("down", "--data-dir", c.data).CombinedOutput(); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	for _, trace := range append(c.processes(), c.mounts(t)...) {
		t.Errorf("left after skiff down: %s", trace)
	}
}

// killCluster is one cluster that is killed and started again.
type killCluster struct {
	bin, data string
	ports     []string
	image     string
	cgroup    string
	bridge    string
	pods      podClient
	all       podClient
}

type podClient interface {
	Create(context.Context, *corev1.Pod, metav1.CreateOptions) (*corev1.Pod, error)
	Delete(context.Context, string, metav1.DeleteOptions) error
	DeleteCollection(context.Context, metav1.DeleteOptions, metav1.ListOptions) error
	List(context.Context, metav1.ListOptions) (*corev1.PodList, error)
}

func newKillCluster(t *testing.T) *killCluster {
	data, err := os.MkdirTemp("/tmp", "sk")
	if err != nil {
		t.Fatal(err)
	}
	n, err := freePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	c := &killCluster{bin: binary(t), data: data, ports: []string{fmt.Sprintf("--api-port=%d", n[0]),
		fmt.Sprintf("--kubelet-port=%d", n[1]), fmt.Sprintf("--etcd-port=%d", n[2])}}
	t.Cleanup(func() {
		if out, err := c.command("down", "--purge", "--data-dir", data).CombinedOutput(); err != nil {
			t.Errorf("purge: %v\n%s", err, out)
		}
		os.RemoveAll(data)
	})
	return c
}

func (c *killCluster) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.bin, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.data, "user.conf"))
	return cmd
}

func (c *killCluster) up(t *testing.T) {
	t.Helper()
	out, err := c.command(append([]string{"up", "-d", "--data-dir", c.data}, c.ports...)...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(c.data, "log", "skiff.log"))
		t.Fatalf("up: %v\n%s\n%s", err, out, log[max(0, len(log)-4000):])
	}
}

func (c *killCluster) kill(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.data, "skiff.lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); exists(fmt.Sprintf("/proc/%d/fd", pid)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d does not die", pid)
		}
	}
}

func (c *killCluster) connect(t *testing.T) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.data, "admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Timeout = -1, 5*time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c.pods, c.all = client.CoreV1().Pods(metav1.NamespaceDefault), client.CoreV1().Pods("")
	c.settle(t, func() error { // the node is Ready a moment before its static pods are shown
		system, err := c.all.List(t.Context(), metav1.ListOptions{LabelSelector: "tier=control-plane"})
		if err != nil {
			return err
		}
		if len(system.Items) == 0 {
			return errors.New("no control plane pods are shown")
		}
		c.image = system.Items[0].Spec.Containers[0].Image
		return nil
	})
	var made struct{ Suffix string }
	b, err := os.ReadFile(filepath.Join(c.data, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.bridge, c.cgroup = "skiff0"+made.Suffix, "kubepods-"+made.Suffix
	if made.Suffix == "" {
		c.cgroup = "kubepods"
	}
}

// steadyPods are one of each kind that leaves traces of its own.
func steadyPods(image string) []*corev1.Pod {
	pod := func(name string, edit func(*corev1.PodSpec)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "a", Image: image, Command: []string{"sleep", "3600"}}}}}
		edit(&p.Spec)
		return p
	}
	return []*corev1.Pod{
		pod("plain", func(*corev1.PodSpec) {}),
		pod("host", func(s *corev1.PodSpec) { s.HostNetwork = true }),
		pod("shared", func(s *corev1.PodSpec) { s.ShareProcessNamespace = ptr.To(true) }),
		pod("memory", func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}}
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}),
	}
}

// churn makes pods of all kinds and deletes them; while skiff is down it fails and goes on.
func (c *killCluster) churn(ctx context.Context, lane int) {
	for i := 0; ctx.Err() == nil; i++ {
		p := steadyPods(c.image)[i%len(steadyPods(""))]
		p.Name = fmt.Sprintf("churn-%d-%d", lane, i)
		p.Labels = map[string]string{"churn": "yes"}
		if i%3 == 2 {
			p.Spec.Containers[0].Command = []string{"true"} // restarts, and backs off
		}
		if _, err := c.pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		time.Sleep(time.Duration(i*37%300) * time.Millisecond)
		for ctx.Err() == nil && c.pods.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(i % 2))}) != nil {
			if _, err := c.pods.List(ctx, metav1.ListOptions{Limit: 1}); err == nil {
				break // it was the pod, not the API
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// settle repeats f until it succeeds; at most half a minute.
func (c *killCluster) settle(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// running says why not exactly n pods exist, all running.
func (c *killCluster) running(ctx context.Context, n int) error {
	list, err := c.all.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
			return fmt.Errorf("pod %s is %s (deleted %v)", p.Name, p.Status.Phase, p.DeletionTimestamp)
		}
	}
	if len(list.Items) != n {
		return fmt.Errorf("%d pods, want %d", len(list.Items), n)
	}
	return nil
}

// containers are the names, ids, restarts and addresses of all pods.
func (c *killCluster) containers(t *testing.T) []string {
	t.Helper()
	list, err := c.all.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		p := &list.Items[i]
		for _, s := range p.Status.ContainerStatuses {
			out = append(out, fmt.Sprintf("%s %s %d %s", p.Name, s.ContainerID, s.RestartCount, p.Status.PodIP))
		}
	}
	slices.Sort(out)
	return out
}

// census lists what pods leave on a machine, one trace a line, sorted.
func (c *killCluster) census(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"runtime/sandboxes", "runtime/containers", "runtime/state", "network/sandboxes", "kubelet/pods", "log/pods"} {
		entries, err := os.ReadDir(filepath.Join(c.data, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, "file "+dir+"/"+e.Name())
		}
	}
	out = append(append(out, c.mounts(t)...), c.processes()...)
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/"+c.cgroup+"/") {
			out = append(out, "cgroup "+path)
		}
		return nil
	})
	br, err := netlink.LinkByName(c.bridge)
	if err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) && t.Context().Err() == nil { // an interface came or went meanwhile
		links, err = netlink.LinkList()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index {
			out = append(out, "interface "+l.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out
}

func (c *killCluster) mounts(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], c.data) {
			out = append(out, "mount "+f[4])
		}
	}
	return out
}

// processes are the cluster's monitors.
func (c *killCluster) processes() []string {
	var out []string
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, c.data) {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(exe), "cmdline"))
			out = append(out, fmt.Sprintf("process %s %s", exe, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		}
	}
	return out
}

func diff(a, b []string) string {
	var out strings.Builder
	for _, s := range a {
		if !slices.Contains(b, s) {
			out.WriteString("- " + s + "\n")
		}
	}
	for _, s := range b {
		if !slices.Contains(a, s) {
			out.WriteString("+ " + s + "\n")
		}
	}
	return out.String()
}
