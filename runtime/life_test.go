package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-project/skiff/runtime/cgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

func TestContainersOutliveTheAgent(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("tick", "5ms"))
	dying := w.start(pod, cfg, containerConfig("sleep", "300ms"))
	w.ready(id, "tick 3")
	before := w.status(id)
	c, _ := w.container(id)
	pid := c.pid

	w.Runtime.Close(w.ctx) // as after kill -9: nothing was said to the monitors
	time.Sleep(400 * time.Millisecond)
	size := func() int64 {
		st, err := os.Stat(before.LogPath)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	was := size()
	eventually(t, func() bool { return size() > was }, "the log to go on without an agent")
	w.open()

	after := w.status(id)
	c, _ = w.container(id)
	if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt || c.pid != pid {
		t.Fatalf("not adopted: before %v (pid %d), after %v (pid %d)", before, pid, after, c.pid)
	}
	if st := w.status(dying); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 0 || st.Reason != "Completed" {
		t.Fatalf("exit while away: %v", st)
	}
	if out := w.exec(id, "echo", "still here"); out != "still here\n" {
		t.Fatalf("exec after adoption: %q", out)
	}
	sb, _ := w.PodSandboxStatus(w.ctx, pod, false)
	if sb.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || sb.Status.Network.Ip != "10.244.0.7" {
		t.Fatalf("sandbox: %v", sb.Status)
	}
	if err := w.StopContainer(w.ctx, id, 5); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.ExitCode != 2 && st.ExitCode != 143 {
		t.Fatalf("stopped: %v", st)
	}
}

func TestExitCodeIsFoundAfterTheAgentsDeath(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	w.ready(id, "ready")
	c, _ := w.container(id)
	pid := c.pid
	w.Runtime.Close(w.ctx)
	unix.Kill(pid, unix.SIGKILL)
	eventually(t, func() bool { _, err := os.Stat(filepath.Join(c.dir, "exited")); return err == nil }, "exit record")
	w.open()
	if st := w.ended(id); st.ExitCode != 137 || st.Reason != "Error" || st.FinishedAt == 0 {
		t.Fatalf("status %v", st)
	}
}

func TestMonitorDeath(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("wait"))
	w.ready(id, "ready")
	s, _ := w.sandbox(pod)
	unix.Kill(s.mon.pid, unix.SIGKILL)
	<-s.mon.gone
	w.restart()
	st := w.status(id)
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("container with a dead monitor: %v", st)
	}
	// A new container of the pod gets a new monitor; exec works too.
	other := w.start(pod, cfg, containerConfig("exit", "3"))
	if st := w.ended(other); st.ExitCode != 3 {
		t.Fatalf("status %v", st)
	}
	if out := w.exec(id, "echo", "x"); out != "x\n" {
		t.Fatalf("exec: %q", out)
	}
	if err := w.StopContainer(w.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 255 && st.ExitCode != 137 {
		t.Fatalf("orphan's end: %v", st)
	}
}

func TestMonitorDeathIsNoticedWhileTheAgentLives(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("wait"))
	w.ready(id, "ready")
	s, _ := w.sandbox(pod)
	unix.Kill(s.mon.pid, unix.SIGKILL)
	<-s.mon.gone
	if err := w.StopContainer(w.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatalf("status %v", st)
	}
}

func TestStop(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	for _, tc := range []struct {
		args    []string
		timeout int64
		code    int32
		edit    func(*runtimeapi.ContainerConfig)
	}{
		{args: []string{"wait"}, timeout: 10, code: 0},
		{args: []string{"wait", "-1"}, timeout: 1, code: 137},
		{args: []string{"wait"}, timeout: 0, code: 137},
		{args: []string{"wait", "10"}, timeout: 10, code: 0, edit: func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1 }},
	} {
		c := containerConfig(tc.args...)
		c.LogPath = newID()[:8] + ".log"
		if tc.edit != nil {
			tc.edit(c)
		}
		id := w.start(pod, cfg, c)
		w.ready(id, "ready")
		if err := w.StopContainer(w.ctx, id, tc.timeout); err != nil {
			t.Fatal(err)
		}
		if st := w.status(id); st.ExitCode != tc.code {
			t.Errorf("%v with timeout %d: exit code %d, want %d", tc.args, tc.timeout, st.ExitCode, tc.code)
		}
		if err := w.StopContainer(w.ctx, id, 1); err != nil {
			t.Errorf("second stop: %v", err)
		}
	}
}

func TestSandboxStopAndRemoveAreIdempotentAndLeaveNothing(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("wait"))
	c, _ := w.container(id)
	s, _ := w.sandbox(pod)
	monitor := s.mon.pid
	for range 2 {
		if err := w.StopPodSandbox(w.ctx, pod); err != nil {
			t.Fatal(err)
		}
	}
	st, err := w.PodSandboxStatus(w.ctx, pod, false)
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Fatalf("stopped sandbox: %v %v", st, err)
	}
	if w.status(id).State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatal("container survived its sandbox")
	}
	for range 2 {
		if err := w.RemovePodSandbox(w.ctx, pod); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.net.up) != 0 {
		t.Errorf("network still up: %v", w.net.up)
	}
	for _, dir := range []string{s.dir, s.run, c.dir, "/sys/fs/cgroup/memory" + c.rec.Cgroup} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there", dir)
		}
	}
	if err := unix.Kill(monitor, 0); err == nil {
		t.Error("monitor still runs")
	}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(b), pod) || strings.Contains(string(b), id) {
		t.Errorf("mounts left:\n%s", b)
	}
}

func TestFailedNetworkLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.net.fail = errors.New("no addresses left")
	_, err := w.RunPodSandbox(w.ctx, podConfig("p"), "")
	if err == nil || !strings.Contains(err.Error(), "no addresses left") {
		t.Fatalf("err %v", err)
	}
	w.net.fail = nil
	for _, dir := range []string{w.path("sandboxes"), w.conf.Root + "/run"} {
		if es, _ := os.ReadDir(dir); len(es) != 0 {
			t.Errorf("%s holds %v", dir, es)
		}
	}
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	for _, tc := range []struct {
		cmd  string
		want string
	}{
		{"/no/such", `exec: "/no/such": no such file or directory`},
		{"nosuch", `exec: "nosuch": executable file not found in $PATH`},
		{"/etc/passwd", `exec: "/etc/passwd": permission denied`},
	} {
		c := containerConfig()
		c.Command = []string{tc.cmd}
		id, err := w.CreateContainer(w.ctx, pod, c, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.StartContainer(w.ctx, id); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.cmd, err)
		}
		if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" {
			t.Errorf("%s: %v", tc.cmd, st)
		}
		if err := w.RemoveContainer(w.ctx, id); err != nil {
			t.Error(err)
		}
	}
}

func TestExecSync(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	if out := w.exec(id, "pwd"); out != "/\n" {
		t.Errorf("pwd %q", out)
	}
	_, stderr, err := w.ExecSync(w.ctx, id, []string{"/bin/prog", "err", "bad"}, 0)
	if err != nil || string(stderr) != "bad\n" {
		t.Errorf("stderr %q err %v", stderr, err)
	}
	_, _, err = w.ExecSync(w.ctx, id, []string{"/bin/prog", "exit", "9"}, 0)
	var code utilexec.ExitError
	if !errors.As(err, &code) || code.ExitStatus() != 9 {
		t.Errorf("exit 9: %v", err)
	}
	start := time.Now()
	_, _, err = w.ExecSync(w.ctx, id, []string{"/bin/prog", "sleep", "1h"}, 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "DeadlineExceeded") || time.Since(start) > 5*time.Second {
		t.Errorf("timeout: %v after %v", err, time.Since(start))
	}
	if _, _, err = w.ExecSync(w.ctx, id, []string{"nosuch"}, 0); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("missing command: %v", err)
	}
	// A child in the background holds the pipe: the exec ends all the same.
	start = time.Now()
	if out := w.exec(id, "forkhold"); out != "parent done\n" || time.Since(start) > 5*time.Second {
		t.Errorf("forkhold %q after %v", out, time.Since(start))
	}
}

func TestExecSyncOutputIsBounded(t *testing.T) {
	w := newWorld(t)
	w.cfg.ExecSyncLimit = 1 << 20
	id := w.run([]string{"wait"})
	if out := w.exec(id, "big", "3000000"); len(out) != 1<<20 {
		t.Errorf("got %d bytes", len(out))
	}
}

// On a machine with both versions, v1 has the limits: v2 must not be seen inside.
func TestOneVersionOfControlGroupsInside(t *testing.T) {
	w := newWorld(t)
	out, _ := w.output([]string{"cat", "/proc/mounts"})
	if v1, v2 := strings.Contains(out, " cgroup "), strings.Contains(out, " cgroup2 "); v1 == v2 {
		t.Errorf("v1 %v, v2 %v:\n%s", v1, v2, out)
	}
}

func TestLogFormat(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"raw", "no newline"})
	w.ended(id)
	b, _ := os.ReadFile(w.status(id).LogPath)
	if !bytes.HasSuffix(b, []byte(" stdout P no newline\n")) {
		t.Errorf("unterminated output: %q", b)
	}
	if _, err := time.Parse(time.RFC3339Nano, strings.Fields(string(b))[0]); err != nil {
		t.Error(err)
	}
	out, st := w.output([]string{"big", "40000"})
	if len(out) != 40000 {
		t.Errorf("%d bytes of 40000", len(out))
	}
	b, _ = os.ReadFile(st.LogPath)
	if !bytes.Contains(b, []byte(" stdout P x")) || bytes.Count(b, []byte(" F ")) != 0 {
		t.Errorf("partial lines: %.80q", b)
	}
	out, _ = w.output([]string{"lines", "20000"})
	if n := strings.Count(out, "\n"); n != 20000 || !strings.HasSuffix(out, "line 19999\n") {
		t.Errorf("%d lines of 20000", n)
	}
}

func TestReopenLog(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"tick", "2ms"})
	w.ready(id, "tick 2")
	path := w.status(id).LogPath
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := w.ReopenContainerLog(w.ctx, id); err != nil {
		t.Fatal(err)
	}
	w.ready(id, "tick")
	old, _ := os.ReadFile(path + ".1")
	new1, _ := os.ReadFile(path)
	last := old[bytes.LastIndex(old, []byte("tick ")):]
	first := strings.SplitN(string(new1), "\n", 2)[0]
	if len(last) == 0 || first == "" || bytes.Contains(new1, append([]byte(" F "), last...)) {
		t.Errorf("old ends %q, new starts %q", last, first)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	ch := make(chan *runtimeapi.ContainerEventResponse, 64)
	connected := make(chan struct{})
	go w.GetContainerEvents(w.ctx, ch, func(runtimeapi.RuntimeService_GetContainerEventsClient) { close(connected) })
	<-connected
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("exit", "4"))
	w.ended(id)
	if err := w.RemovePodSandbox(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < 8 {
		select {
		case e := <-ch:
			name := "pod"
			if e.ContainerId == id {
				name = "container"
			}
			if e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && name == "container" && e.ContainersStatuses[0].ExitCode != 4 {
				t.Errorf("stop event: %v", e)
			}
			got = append(got, name+" "+strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		case <-time.After(10 * time.Second):
			t.Fatalf("events so far: %v", got)
		}
	}
	want := "pod CREATED,pod STARTED,container CREATED,container STARTED,container STOPPED,pod STOPPED,container DELETED,pod DELETED"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestOOMKilled(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"eat", "200"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 32 << 20
	})
	if st := w.ended(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Fatalf("status %v", st)
	}
}

func TestAPodShrinksBelowWhatADeadContainerHad(t *testing.T) {
	w := newWorld(t)
	parent, err := w.tree.Open(w.cfg.CgroupParent + "/podx")
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Create(); err != nil {
		t.Fatal(err)
	}
	quota := func(q int64) error { return parent.Set(cgroup.Resources{CPUQuota: q, CPUPeriod: 100000}) }
	if err := quota(50000); err != nil {
		t.Fatal(err)
	}
	pod, cfg := w.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = w.cfg.CgroupParent + "/podx" })
	for _, cut := range []int64{40000, 30000, 20000} {
		c := containerConfig("wait")
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuQuota: cut + 10000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
		id := w.start(pod, cfg, c)
		w.ready(id, "ready")
		if err := w.StopContainer(w.ctx, id, 0); err != nil {
			t.Fatal(err)
		}
		if err := quota(cut); err != nil {
			t.Errorf("the container is dead, but the pod cannot shrink: %v", err)
		}
		if st := w.status(id); st.ExitCode != 137 || st.Reason != "Error" {
			t.Errorf("status %v", st)
		}
	}
}

func TestUpdateResourcesAndStats(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000}
	})
	w.ready(id, "ready")
	c, _ := w.container(id)
	limit := func() string {
		b, err := os.ReadFile("/sys/fs/cgroup/memory" + c.rec.Cgroup + "/memory.limit_in_bytes")
		if err != nil {
			t.Skip("control groups v1 only")
		}
		return strings.TrimSpace(string(b))
	}
	if l := limit(); l != "67108864" {
		t.Errorf("limit %s", l)
	}
	if err := w.UpdateContainerResources(w.ctx, id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}); err != nil {
		t.Fatal(err)
	}
	if l := limit(); l != "134217728" {
		t.Errorf("limit %s", l)
	}
	if res := w.status(id).Resources.Linux; res.MemoryLimitInBytes != 128<<20 || res.CpuShares != 512 {
		t.Errorf("status %v", res)
	}
	st, err := w.ContainerStats(w.ctx, id)
	if err != nil || st.Memory.WorkingSetBytes.Value == 0 || st.Cpu.UsageCoreNanoSeconds.Value == 0 {
		t.Errorf("stats %v %v", st, err)
	}
	pods, err := w.ListPodSandboxStats(w.ctx, nil)
	if err != nil || len(pods) != 1 || len(pods[0].Linux.Containers) != 1 || pods[0].Linux.Network == nil {
		t.Errorf("pod stats %v %v", pods, err)
	}
	if _, err := w.ImageFsInfo(w.ctx); err != nil {
		t.Error(err)
	}
}

func TestStoppedSandboxKeepsNoMonitor(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("wait"))
	w.ready(id, "ready")
	s, _ := w.sandbox(pod)
	pid := s.mon.pid
	late, err := w.CreateContainer(w.ctx, pod, containerConfig("wait"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.StopPodSandbox(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Fatalf("the monitor lives on after its sandbox was stopped: %v", err)
	}
	// What it knew is on disk: an agent that comes later tells the same.
	before := w.status(id)
	w.restart()
	after := w.status(id)
	if before.ExitCode != after.ExitCode || before.FinishedAt != after.FinishedAt || after.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatalf("before %v, after %v", before, after)
	}
	if err := w.StartContainer(w.ctx, late); err == nil {
		t.Fatal("a container started in a stopped sandbox")
	}
}

func TestMonitorOfAStoppedSandboxEndsAtAdoption(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("exit", "3"))
	w.ended(id)
	s, _ := w.sandbox(pod)
	pid := s.mon.pid
	// As if killed between the stop's record and the monitor's end.
	s.rec.Stopped = true
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	w.restart()
	eventually(t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH || zombie(pid) }, "the monitor to end")
	if st := w.status(id); st.ExitCode != 3 {
		t.Fatalf("status %v", st)
	}
}

// A power failure may leave records of its last seconds empty: what they were of is gone
// too, and New goes on.
func TestTornRecordsAreRemoved(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("exit", "0"))
	w.ended(id)
	whole, wholeCfg := w.pod()
	kept := w.start(whole, wholeCfg, containerConfig("exit", "4"))
	w.ended(kept)
	torn, err := w.CreateContainer(w.ctx, whole, containerConfig("wait"), wholeCfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Runtime.Close(w.ctx)
	for _, dir := range []string{w.path("sandboxes", pod), w.path("containers", torn)} {
		if err := os.Truncate(filepath.Join(dir, "record.json"), 0); err != nil {
			t.Fatal(err)
		}
	}
	w.open()
	if _, err := w.container(id); err == nil {
		t.Error("a container of a torn sandbox is still there")
	}
	for _, dir := range []string{w.path("sandboxes", pod), w.path("containers", id), w.path("containers", torn), filepath.Join(w.cfg.StateDir, pod)} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if st := w.status(kept); st.ExitCode != 4 {
		t.Errorf("the whole one: %v", st)
	}
	// While it runs, a container without a record can only be ended.
	lost := w.start(whole, wholeCfg, containerConfig("wait", "-1"))
	w.ready(lost, "ready")
	c, _ := w.container(lost)
	if err := os.Truncate(filepath.Join(c.dir, "record.json"), 0); err != nil {
		t.Fatal(err)
	}
	pid := c.pid
	w.restart()
	eventually(t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }, "the lost container to end")
}

// zombie: the first agent of the test is this process, and does not wait any more.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}
