package runtime

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	progPath string // static test program
	shimPath string // helper under test
)

// TestMain builds the helper and the program the containers run.
func TestMain(m *testing.M) {
	if os.Getenv("SKIFF_TEST_AGENT_ROOT") != "" {
		os.Exit(m.Run()) // the agent of TestKillMinusNine needs neither
	}
	dir, err := os.MkdirTemp("", "skiff-runtime-")
	if err != nil {
		panic(err)
	}
	progPath, shimPath = filepath.Join(dir, "prog"), filepath.Join(dir, "skiff-shim")
	for _, cmd := range [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", progPath, "./testdata/prog"},
		{"sh", "embedded/build.sh", shimPath},
	} {
		c := exec.Command(cmd[0], cmd[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", cmd, err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// fakeNetwork hands out addresses and remembers what it was told.
type fakeNetwork struct {
	mu    sync.Mutex
	up    map[string]bool
	downs int
	fail  error
}

func (f *fakeNetwork) Setup(_ context.Context, s Sandbox) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	if !pinned(s.NetnsPath) {
		return nil, fmt.Errorf("no namespace at %s", s.NetnsPath)
	}
	f.up[s.ID] = true
	return []netip.Addr{netip.MustParseAddr("10.244.0.7")}, nil
}

func (f *fakeNetwork) Teardown(_ context.Context, s Sandbox) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.up, s.ID)
	f.downs++
	return nil
}

func (f *fakeNetwork) Ready() error { return f.fail }

// world is a runtime with a test image and the means to look at it.
type world struct {
	*Runtime
	t    testing.TB
	ctx  context.Context
	conf Config
	net  *fakeNetwork
	logs string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	w := &world{t: t, ctx: context.Background(), net: &fakeNetwork{up: map[string]bool{}}, logs: t.TempDir()}
	w.conf = Config{Root: filepath.Join(t.TempDir(), "runtime"), Network: w.net, HelperPath: shimPath}
	w.open()
	t.Cleanup(func() {
		crashes, _ := filepath.Glob(filepath.Join(w.conf.Root, "run", "*", "monitor.log"))
		for _, f := range crashes {
			if b, _ := os.ReadFile(f); len(b) > 0 {
				t.Errorf("monitor said: %s", b)
			}
		}
		if w.closed.Load() {
			w.open()
		}
		if err := w.Purge(w.ctx); err != nil {
			t.Errorf("purge: %v", err)
		}
	})
	if _, err := w.ImportImage(w.ctx, "prog", []File{
		{Path: "/bin/prog", Host: progPath, Mode: 0o755},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:App:/home/app:/bin/sh\nbad:x:4294967296:0::/:\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\napp:x:1000:\nextra:x:2000:app\n")},
		{Path: "/tmp", Mode: os.ModeDir | 0o777 | os.ModeSticky},
		{Path: "/evil", Link: "/../../../../etc"},
	}, ocispec.ImageConfig{Entrypoint: []string{"/bin/prog"}, Cmd: []string{"wait"}, Env: []string{"FROM_IMAGE=yes"}}); err != nil {
		t.Fatal(err)
	}
	return w
}

// open starts an agent on the world's folder.
func (w *world) open() {
	w.t.Helper()
	r, err := New(w.conf)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Runtime = r
}

// restart stands for kill -9 of the agent and a new start: the old one is cut off
// without a word to its monitors.
func (w *world) restart() {
	w.t.Helper()
	w.Runtime.Close(w.ctx)
	w.open()
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, Labels: map[string]string{"app": name},
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

func containerConfig(args ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "prog"},
		Args: args, LogPath: "c/0.log", Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore", "/proc/kallsyms", "/proc/acpi", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger"},
			}},
	}
}

func (w *world) pod(edit ...func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	w.t.Helper()
	cfg := podConfig("pod")
	cfg.LogDirectory = filepath.Join(w.logs, newID()[:8])
	for _, f := range edit {
		f(cfg)
	}
	id, err := w.RunPodSandbox(w.ctx, cfg, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return id, cfg
}

// start runs a container in pod and returns its id.
func (w *world) start(pod string, cfg *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	w.t.Helper()
	id, err := w.CreateContainer(w.ctx, pod, c, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.StartContainer(w.ctx, id); err != nil {
		w.t.Fatal(err)
	}
	return id
}

// run starts a container in a new pod.
func (w *world) run(args []string, edit ...func(*runtimeapi.ContainerConfig)) string {
	w.t.Helper()
	pod, cfg := w.pod()
	c := containerConfig(args...)
	for _, f := range edit {
		f(c)
	}
	return w.start(pod, cfg, c)
}

// output runs a container to its end and returns its log's text and its status.
func (w *world) output(args []string, edit ...func(*runtimeapi.ContainerConfig)) (string, *runtimeapi.ContainerStatus) {
	w.t.Helper()
	id := w.run(args, edit...)
	st := w.ended(id)
	return w.logText(id), st
}

func (w *world) status(id string) *runtimeapi.ContainerStatus {
	w.t.Helper()
	resp, err := w.ContainerStatus(w.ctx, id, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Status
}

// ended waits for a container's end.
func (w *world) ended(id string) *runtimeapi.ContainerStatus {
	w.t.Helper()
	c, err := w.container(id)
	if err != nil {
		w.t.Fatal(err)
	}
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("container %s does not end; log:\n%s", id, w.logText(id))
	}
	return w.status(id)
}

func (w *world) logText(id string) string {
	b, err := os.ReadFile(w.status(id).LogPath)
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			w.t.Fatalf("bad log line %q", line)
		}
		text := f[3]
		if f[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		out.WriteString(text)
	}
	return out.String()
}

// ready waits until the container's log holds want.
func (w *world) ready(id, want string) {
	w.t.Helper()
	eventually(w.t, func() bool { return strings.Contains(w.logText(id), want) }, "log of %s to hold %q", id, want)
}

func eventually(t testing.TB, ok func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for "+what, args...)
		}
	}
}

func (w *world) exec(id string, cmd ...string) string {
	w.t.Helper()
	out, errOut, err := w.ExecSync(w.ctx, id, append([]string{"/bin/prog"}, cmd...), 10*time.Second)
	if err != nil {
		w.t.Fatalf("exec %v: %v %s", cmd, err, errOut)
	}
	return string(out)
}

func TestRunContainerToItsEnd(t *testing.T) {
	w := newWorld(t)
	out, st := w.output([]string{"echo", "hello", "world"})
	if out != "hello world\n" || st.ExitCode != 0 || st.Reason != "Completed" || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatalf("out %q status %v", out, st)
	}
	if st.FinishedAt < st.StartedAt || st.StartedAt < st.CreatedAt {
		t.Errorf("times out of order: %v", st)
	}
	_, st = w.output([]string{"exit", "7"})
	if st.ExitCode != 7 || st.Reason != "Error" {
		t.Fatalf("status %v", st)
	}
}
