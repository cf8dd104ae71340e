package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAgentProcess is the agent of TestKillMinusNine: a process of its own, so that
// it can be killed.
func TestAgentProcess(t *testing.T) {
	root := os.Getenv("SKIFF_TEST_AGENT_ROOT")
	if root == "" {
		t.Skip("only run by TestKillMinusNine")
	}
	net := &fakeNetwork{up: map[string]bool{}}
	r, err := New(Config{Root: root, Network: net, HelperPath: os.Getenv("SKIFF_TEST_AGENT_SHIM")})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Runtime: r, t: t, ctx: context.Background(), net: net, logs: filepath.Join(root, "logs")}
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("tick", "2ms"))
	w.ready(id, "tick 1")
	fmt.Printf("STARTED %s\n", id)
	time.Sleep(time.Hour)
}

func TestKillMinusNine(t *testing.T) {
	w := newWorld(t)
	w.Runtime.Close(w.ctx)
	agent := exec.Command(os.Args[0], "-test.run=TestAgentProcess$", "-test.v")
	agent.Env = append(os.Environ(), "SKIFF_TEST_AGENT_ROOT="+w.conf.Root, "SKIFF_TEST_AGENT_SHIM="+shimPath)
	out := &syncBuffer{}
	agent.Stdout, agent.Stderr = out, out
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer agent.Process.Kill()
	eventually(t, func() bool { return strings.Contains(out.String(), "STARTED ") }, "the agent to start a container")
	_, rest, _ := strings.Cut(out.String(), "STARTED ")
	id := strings.Fields(rest)[0]
	agent.Process.Signal(unix.SIGKILL)
	agent.Wait()
	w.open()
	c, err := w.container(id)
	if err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("status %v", st)
	}
	size := func() int64 { st, _ := os.Stat(w.status(id).LogPath); return st.Size() }
	was := size()
	eventually(t, func() bool { return size() > was }, "the log to go on")
	if err := w.StopContainer(w.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.ExitCode != 137 || unix.Kill(c.pid, 0) == nil {
		t.Errorf("status %v", st)
	}
}

func TestPurgeLeavesNothing(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	shared := containerConfig("wait", "-1")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	a := w.start(pod, cfg, shared)
	other, cfg2 := w.pod()
	w.start(other, cfg2, containerConfig("wait", "-1"))
	w.ready(a, "ready")
	w.restart() // as skiff down --purge after a crash
	var pids []int
	for _, s := range w.sandboxes {
		pids = append(pids, s.mon.pid)
	}
	for _, c := range w.containers {
		pids = append(pids, c.pid)
	}
	parent := w.Runtime.cfg.CgroupParent
	if err := w.Purge(w.ctx); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		eventually(t, func() bool { return !running(pid) }, "process %d to end", pid)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), w.conf.Root) {
		t.Errorf("mounts left:\n%s", b)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	if len(groups) > 0 {
		t.Errorf("control groups left: %v", groups)
	}
	if _, err := os.Stat(w.conf.Root); !os.IsNotExist(err) {
		t.Error("folder left")
	}
}

// running is false for zombies too: this process may not be their parent.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestPropagationHostNetworkAndStdinLeftOpen(t *testing.T) {
	w := newWorld(t)
	host, _ := os.Hostname()
	pod, cfg := w.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		c.Hostname = ""
	})
	c := containerConfig("hostname")
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	id := w.start(pod, cfg, c)
	w.ended(id)
	if out := w.logText(id); strings.TrimSpace(out) != host {
		t.Errorf("host network shows host name %q", out)
	}
	if st, _ := w.PodSandboxStatus(w.ctx, pod, false); st.Status.Network.Ip != "" || len(w.net.up) != 0 {
		t.Errorf("host-network pod was connected: %v", st.Status.Network)
	}
	// HostToContainer: a mount made on the host later shows in the container.
	base := t.TempDir()
	if err := unix.Mount("t", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(base, unix.MNT_DETACH)
	if err := unix.Mount("", base, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(base+"/sub", 0o755)
	cid := w.run([]string{"wait"}, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: base, ContainerPath: "/h2c", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{HostPath: base, ContainerPath: "/priv"},
			{HostPath: base, ContainerPath: "/both", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	})
	w.ready(cid, "ready")
	if err := unix.Mount("t", base+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(base+"/sub", unix.MNT_DETACH)
	os.WriteFile(base+"/sub/new", []byte("x"), 0o644)
	for path, want := range map[string]string{"/h2c/sub": "new\n", "/both/sub": "new\n", "/priv/sub": ""} {
		if out := w.exec(cid, "ls", path); out != want {
			t.Errorf("%s shows %q, want %q", path, out, want)
		}
	}
}
