package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The tests below are named after the vulnerabilities whose lesson they keep.

func privileged(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }

func TestCVE2019_5736_HelperCannotBeOverwritten(t *testing.T) {
	w := newWorld(t)
	// Shares a PID namespace with podinit, whose program is the helper.
	pod, cfg := w.pod()
	c := containerConfig("overwrite", "1")
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c.Linux.SecurityContext.Privileged = true
	id := w.start(pod, cfg, c)
	w.ended(id)
	if out := w.logText(id); strings.Contains(out, "<nil>") {
		t.Fatalf("the helper's program was opened for writing: %s", out)
	}
	seals, err := unix.FcntlInt(uintptr(w.helper), unix.F_GET_SEALS, 0)
	if err != nil || seals != unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE {
		t.Errorf("seals %#x %v", seals, err)
	}
}

func TestCVE2024_21626_NoDescriptorsLeak(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	w.ready(id, "ready")
	for name, out := range map[string]string{"exec": w.exec(id, "fds")} {
		for line := range strings.Lines(out) {
			n, target, _ := strings.Cut(strings.TrimSpace(line), " ")
			if fd, _ := strconv.Atoi(n); fd > 2 && !strings.Contains(target, "eventpoll") && !strings.Contains(target, "eventfd") && !strings.Contains(target, "/proc/") && !strings.HasPrefix(target, "/sys/fs/cgroup/") { // Go's own
				t.Errorf("%s: descriptor %s leaks: %s", name, n, target)
			}
		}
	}
	for _, cwd := range []string{"/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/fd/9"} {
		pod, cfg := w.pod()
		c := containerConfig("ls", ".")
		c.WorkingDir = cwd
		cid, err := w.CreateContainer(w.ctx, pod, c, cfg)
		if err == nil {
			err = w.StartContainer(w.ctx, cid)
		}
		if err == nil {
			w.ended(cid)
			t.Errorf("working directory %s was accepted: %s", cwd, w.logText(cid))
		}
	}
}

func TestCVE2021_30465_MountTargetsStayInside(t *testing.T) {
	w := newWorld(t)
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "hello"), []byte("hi"), 0o644)
	// /evil is a link to ../../../../etc in the image: it must mean the image's /etc.
	out, st := w.output([]string{"cat", "/etc/sub/hello"}, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: src, ContainerPath: "/evil/sub"}}
	})
	if out != "hi" || st.ExitCode != 0 {
		t.Errorf("out %q %v", out, st)
	}
	if _, err := os.Stat("/etc/sub"); err == nil {
		t.Error("mount target escaped to the host")
	}
	pod, cfg := w.pod()
	c := containerConfig("echo")
	c.Mounts = []*runtimeapi.Mount{{HostPath: src, ContainerPath: "/proc/sys"}}
	id, err := w.CreateContainer(w.ctx, pod, c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.StartContainer(w.ctx, id); err == nil {
		t.Error("a mount over procfs was accepted")
	}
}

func TestCVE2025_31133_MaskedAndReadOnlyPaths(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	w.ready(id, "ready")
	if out := w.exec(id, "stat", "/proc/kallsyms"); !strings.HasPrefix(out, "20666 0:0") {
		t.Errorf("/proc/kallsyms is not a null device: %s", out)
	}
	if out := w.exec(id, "ls", "/sys/firmware"); out != "" {
		t.Errorf("/sys/firmware shows %q", out)
	}
	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/profiling"} {
		if _, _, err := w.ExecSync(w.ctx, id, []string{"/bin/prog", "write", p, "x"}, 0); err == nil {
			t.Errorf("%s is writable", p)
		}
	}
}

func TestCVE2020_15257_SocketPermissions(t *testing.T) {
	w := newWorld(t)
	pod, _ := w.pod()
	s, _ := w.sandbox(pod)
	for path, want := range map[string]os.FileMode{s.run: 0o700, s.run + "/m.sock": 0o600, w.conf.Root: 0o700} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, st.Mode(), err, want)
		}
	}
	b, _ := os.ReadFile("/proc/net/unix")
	if strings.Contains(string(b), "@"+w.conf.Root) {
		t.Error("an abstract socket is open")
	}
}

func TestCVE2024_40635_UserIDs(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		user string
		want string // output of id, or part of an error after "!"
	}{
		{"", "0 0 [0]"}, {"1000", "1000 1000 [1000 2000]"}, {"app", "1000 1000 [1000 2000]"}, {"app:extra", "1000 2000 [2000]"},
		{"1234", "1234 0 [0]"}, {"1234:77", "1234 77 [77]"}, {"4294967294", "4294967294 0 [0]"},
		{"4294967295", "!valid user id"}, {"4294967296", "!valid user id"}, {"-1", "!valid user id"}, {"+0", "!valid user id"},
		{"nobody", "!unable to find user"}, {"bad", "!unable to find user"}, {"app:nogroup", "!unable to find group"},
		{"0:4294967296", "!unable to find group"},
	} {
		ref := "user" + newID()[:6]
		if _, err := w.ImportImage(w.ctx, ref, []File{{Path: "/bin/prog", Host: progPath, Mode: 0o755},
			{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:\nbad:x:4294967296:0::/:\n")},
			{Path: "/etc/group", Data: []byte("app:x:1000:\nextra:x:2000:app\n")}},
			ocispec.ImageConfig{User: tc.user, Entrypoint: []string{"/bin/prog"}}); err != nil {
			t.Fatal(err)
		}
		pod, cfg := w.pod()
		c := containerConfig("id")
		c.Image.Image = ref
		id, err := w.CreateContainer(w.ctx, pod, c, cfg)
		if msg, isErr := strings.CutPrefix(tc.want, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), msg) {
				t.Errorf("user %q: %v, want %q", tc.user, err, msg)
			}
		} else if err != nil {
			t.Errorf("user %q: %v", tc.user, err)
		} else if err := w.StartContainer(w.ctx, id); err != nil {
			t.Errorf("user %q: %v", tc.user, err)
		} else {
			w.ended(id)
			got := strings.TrimSpace(w.logText(id))
			if tc.user == "app:extra" {
				tc.want = "1000 2000 [2000]"
			}
			if got != tc.want {
				t.Errorf("user %q: %q, want %q", tc.user, got, tc.want)
			}
		}
		w.RemovePodSandbox(w.ctx, pod)
	}
	if u := criImageUser(w, "4294967296"); u != "4294967296" {
		t.Errorf("an impossible uid is shown as %q", u)
	}
}

func criImageUser(w *world, user string) string {
	ref := "u" + newID()[:6]
	if _, err := w.ImportImage(w.ctx, ref, []File{{Path: "/x", Data: []byte("x")}}, ocispec.ImageConfig{User: user}); err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.ImageStatus(w.ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.Image.Uid != nil {
		return "uid " + fmt.Sprint(resp.Image.Uid.Value)
	}
	return resp.Image.Username
}

func TestCVE2022_0811_Sysctls(t *testing.T) {
	w := newWorld(t)
	for name, ok := range map[string]bool{
		"net.ipv4.ip_forward": true, "kernel.shmmax": true, "fs.mqueue.msg_max": true,
		"kernel.core_pattern": false, "kernel.msgmax+x": false, "kernel.shm_rmid_forced+kernel.core_pattern": false,
		"net.ipv4/../../kernel/core_pattern": false, "net/../kernel/core_pattern": false, "vm.swappiness": false, "kernel.hostname": false,
	} {
		cfg := podConfig("s")
		cfg.Linux.Sysctls = map[string]string{name: "1"}
		id, err := w.RunPodSandbox(w.ctx, cfg, "")
		if (err == nil) != ok {
			t.Errorf("sysctl %s: %v, want accepted %v", name, err, ok)
		}
		if err == nil {
			w.RemovePodSandbox(w.ctx, id)
		}
	}
	cfg := podConfig("s")
	cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	if _, err := w.RunPodSandbox(w.ctx, cfg, ""); err == nil {
		t.Error("net sysctl accepted with the host's network")
	}
}

func TestCVE2023_2431_ProfilesFailClosed(t *testing.T) {
	w := newWorld(t)
	bad := filepath.Join(t.TempDir(), "bad.json")
	os.WriteFile(bad, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","surprise":true}`), 0o644)
	for name, p := range map[string]*runtimeapi.SecurityProfile{
		"empty":   {ProfileType: runtimeapi.SecurityProfile_Localhost},
		"missing": {ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"},
		"unknown": {ProfileType: 99},
		"field":   {ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: bad},
	} {
		pod, cfg := w.pod()
		c := containerConfig("echo")
		c.Linux.SecurityContext.Seccomp = p
		if _, err := w.CreateContainer(w.ctx, pod, c, cfg); err == nil {
			t.Errorf("%s profile accepted", name)
		}
	}
}

func TestSeccompCapabilitiesAndPrivileges(t *testing.T) {
	w := newWorld(t)
	unshareNS := []string{"syscall", strconv.Itoa(unix.SYS_UNSHARE), strconv.Itoa(unix.CLONE_NEWUTS)}
	local := filepath.Join(t.TempDir(), "p.json")
	os.WriteFile(local, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getcwd"],"action":"SCMP_ACT_ERRNO","errnoRet":42}]}`), 0o644)
	profile := func(typ runtimeapi.SecurityProfile_ProfileType, ref string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: typ, LocalhostRef: ref}
		}
	}
	caps := func(add, drop []string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
		}
	}
	for name, tc := range map[string]struct {
		args []string
		edit func(*runtimeapi.ContainerConfig)
		want string
	}{
		"default refuses unshare":       {unshareNS, func(*runtimeapi.ContainerConfig) {}, "1"},
		"default with CAP_SYS_ADMIN":    {unshareNS, caps([]string{"SYS_ADMIN"}, nil), "0"},
		"unconfined without capability": {unshareNS, profile(runtimeapi.SecurityProfile_Unconfined, ""), "1"},
		"privileged":                    {unshareNS, privileged, "0"},
		"default refuses kexec_load":    {[]string{"syscall", strconv.Itoa(unix.SYS_KEXEC_LOAD)}, func(*runtimeapi.ContainerConfig) {}, "1"},
		"default refuses AF_VSOCK":      {[]string{"syscall", "41", "40", "1"}, func(*runtimeapi.ContainerConfig) {}, "1"},
		"default allows AF_INET":        {[]string{"syscall", "41", "2", "1"}, func(*runtimeapi.ContainerConfig) {}, "0"},
		"default hides clone3":          {[]string{"syscall", "435"}, func(*runtimeapi.ContainerConfig) {}, strconv.Itoa(int(unix.ENOSYS))},
		"localhost profile":             {[]string{"syscall", strconv.Itoa(unix.SYS_GETCWD)}, profile(runtimeapi.SecurityProfile_Localhost, local), "42"},
		"drop ALL":                      {[]string{"syscall", strconv.Itoa(unix.SYS_CHROOT), "0"}, caps(nil, []string{"ALL"}), "1"},
	} {
		out, st := w.output(tc.args, tc.edit)
		if strings.TrimSpace(out) != tc.want {
			t.Errorf("%s: %q (exit %d), want %s", name, out, st.ExitCode, tc.want)
		}
	}
	out, _ := w.output([]string{"cat", "/proc/self/status"}, func(c *runtimeapi.ContainerConfig) {
		caps([]string{"NET_ADMIN"}, []string{"ALL"})(c)
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	})
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000001000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestReadOnlyRootAndMounts(t *testing.T) {
	w := newWorld(t)
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "f"), []byte("from host"), 0o644)
	id := w.run([]string{"wait"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.ReadonlyRootfs = true
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: src, ContainerPath: "/rw"}, {HostPath: src, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(src, "f"), ContainerPath: "/some/deep/file", Readonly: true},
			{HostPath: filepath.Join(src, "made"), ContainerPath: "/made"},
		}
	})
	w.ready(id, "ready")
	if out := w.exec(id, "cat", "/ro/f", "/some/deep/file"); out != "from hostfrom host" {
		t.Errorf("%q", out)
	}
	w.exec(id, "write", "/rw/new", "x")
	if b, _ := os.ReadFile(filepath.Join(src, "new")); string(b) != "x" {
		t.Error("write through a mount is lost")
	}
	for _, p := range []string{"/x", "/ro/x", "/some/deep/file"} {
		if _, _, err := w.ExecSync(w.ctx, id, []string{"/bin/prog", "write", p, "x"}, 0); err == nil {
			t.Errorf("%s is writable", p)
		}
	}
}

func TestPodFilesNamespacesAndEnvironment(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("wait"))
	w.ready(id, "ready")
	if out := w.exec(id, "cat", "/etc/resolv.conf"); out != "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n" {
		t.Errorf("resolv.conf %q", out)
	}
	if out := w.exec(id, "hostname"); out != "pod\n" {
		t.Errorf("hostname %q", out)
	}
	if out := w.exec(id, "env"); !strings.Contains(out, "FROM_IMAGE=yes\n") || !strings.Contains(out, "HOSTNAME=pod\n") || !strings.Contains(out, "HOME=/root\n") || !strings.Contains(out, "PATH=/usr/local/sbin:") {
		t.Errorf("env %q", out)
	}
	// Two containers of a pod share network, IPC and /dev/shm, and not their processes.
	other := w.start(pod, cfg, containerConfig("wait"))
	w.exec(id, "write", "/dev/shm/x", "shared")
	if out := w.exec(other, "cat", "/dev/shm/x"); out != "shared" {
		t.Errorf("/dev/shm %q", out)
	}
	c1, _ := w.container(id)
	c2, _ := w.container(other)
	for _, ns := range []string{"net", "ipc", "uts", "pid", "mnt"} {
		a, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c1.pid, ns))
		b, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c2.pid, ns))
		own, _ := os.Readlink("/proc/self/ns/" + ns)
		if shared := ns == "net" || ns == "ipc" || ns == "uts"; (a == b) != shared || a == own {
			t.Errorf("namespace %s: %s %s, host %s", ns, a, b, own)
		}
	}
}

func TestSharedAndTargetPIDNamespaces(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	mode := func(m runtimeapi.NamespaceMode, target string, args ...string) string {
		c := containerConfig(args...)
		c.LogPath = newID()[:8] + ".log"
		c.Linux.SecurityContext.NamespaceOptions.Pid = m
		c.Linux.SecurityContext.NamespaceOptions.TargetId = target
		return w.start(pod, cfg, c)
	}
	a := mode(runtimeapi.NamespaceMode_POD, "", "wait")
	w.ready(a, "ready")
	b := mode(runtimeapi.NamespaceMode_POD, "", "pid")
	w.ended(b)
	if pid, _ := strconv.Atoi(strings.TrimSpace(w.logText(b))); pid < 2 || pid > 50 {
		t.Errorf("pid in the shared namespace: %d", pid)
	}
	alone := mode(runtimeapi.NamespaceMode_CONTAINER, "", "wait")
	w.ready(alone, "ready")
	dbg := mode(runtimeapi.NamespaceMode_TARGET, alone, "cat", "/proc/1/cmdline")
	w.ended(dbg)
	if out := w.logText(dbg); !strings.Contains(out, "wait") {
		t.Errorf("target's process 1 is %q", out)
	}
	host := mode(runtimeapi.NamespaceMode_NODE, "", "fork")
	w.ended(host)
	child, _ := strconv.Atoi(strings.TrimSpace(w.logText(host)))
	eventually(t, func() bool { return unix.Kill(child, 0) != nil }, "the host-PID container's child %d to be killed", child)
}
