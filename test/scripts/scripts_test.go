// Package scripts runs the txtar scripts in testdata: each is a transcript of
// a user at a shell, driving the real binary, real containers and a stock
// kubectl. Scripts run side by side, each with a cluster of its own that is
// purged at its end.
package scripts

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestScripts(t *testing.T) { run(t, "testdata") }

// run runs the scripts of one folder.
func run(t *testing.T, dir string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, network namespaces and nftables are real here")
	}
	bin := binary(t)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setup(env, bin) },
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"retry":     retry,
			"listen":    listen,
			"ports":     ports,
			"kill9":     kill9,
			"same":      same,
			"capture":   capture,
			"post":      post,
			"contains":  contains,
			"leftovers": leftovers,
		},
	})
}

// binary is $SKIFF_BINARY, or ../../bin/skiff as make builds it.
func binary(t *testing.T) string {
	path := os.Getenv("SKIFF_BINARY")
	if path == "" {
		path, _ = filepath.Abs("../../bin/skiff")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no skiff binary at %s: run make build", path)
	}
	return path
}

// setup gives a script its own home, data folder and ports, and ends its
// cluster however the script ends.
func setup(env *testscript.Env, bin string) error {
	dir := filepath.Join(env.WorkDir, ".bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"skiff", "etcdctl"} {
		if err := os.Symlink(bin, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if stock, err := exec.LookPath("kubectl"); err == nil && os.Getenv("SKIFF_STOCK_KUBECTL") != "" {
		bin = stock
	}
	if err := os.Symlink(bin, filepath.Join(dir, "kubectl")); err != nil {
		return err
	}
	data, err := os.MkdirTemp("/tmp", "sk")
	if err != nil {
		return err
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	env.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("DATA", data)
	env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
	env.Setenv("API_PORT", strconv.Itoa(ports[0]))
	env.Setenv("PORTS", fmt.Sprintf("--api-port=%d --kubelet-port=%d --etcd-port=%d", ports[0], ports[1], ports[2]))
	env.Setenv("CLUSTER_ETCD_PORT", strconv.Itoa(ports[2]))
	env.Setenv("ETCD_PORT", strconv.Itoa(ports[3]))
	env.Setenv("ETCDCTL", etcdClient)
	env.Setenv("UP", fmt.Sprintf("--data-dir=%s", data))
	env.Setenv("SKIFF_DATA_DIR", data)
	root, _ := filepath.Abs("../..")
	env.Setenv("REPO", root)
	env.Setenv("NGINX", nginxArchive)
	env.Setenv("EXTENSIONS", programs)
	env.Defer(func() {
		out, err := exec.Command(filepath.Join(dir, "skiff"), "down", "--purge", "--data-dir", data).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "purge of %s: %v\n%s", data, err, out)
		}
		os.RemoveAll(data)
	})
	return nil
}

// nginxArchive is where the condition "nginx" puts the image the script loads.
var nginxArchive = filepath.Join(os.TempDir(), "skiff-nginx-debs", "nginx.tar")

// etcdClient is where the condition "etcdctl" puts Debian's.
var etcdClient = filepath.Join(os.TempDir(), "skiff-etcdctl", "usr", "bin")

// condition knows "nginx": the image could be assembled, "etcdctl", which both
// need Debian's packages, and "extension:NAME", which needs modules. Where
// they cannot be had the script is skipped, but not in CI.
func condition(name string) (bool, error) {
	if extension, ok := strings.CutPrefix(name, "extension:"); ok {
		return haveExtension(extension)
	}
	switch name {
	case "etcdctl":
		return haveEtcdctl()
	case "nginx":
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
	cmd := exec.Command("go", "run", "./test/nginximage", "-o", nginxArchive, "-tag", "nginx:1.14.2", "-tag", "nginx:1.16.1")
	cmd.Dir = "../.."
	out, err := cmd.CombinedOutput()
	if err != nil && os.Getenv("CI") != "" {
		return false, fmt.Errorf("assemble the nginx image: %w\n%s", err, out)
	}
	return err == nil, nil
}

func haveEtcdctl() (bool, error) {
	if exists(filepath.Join(etcdClient, "etcdctl")) {
		return true, nil
	}
	cmd := exec.Command("sh", "-c", "mkdir -p $0 && cd $0 && apt-get download -q -o APT::Sandbox::User=root etcd-client && dpkg-deb -x etcd-client_*.deb .", filepath.Dir(filepath.Dir(etcdClient)))
	out, err := cmd.CombinedOutput()
	if err != nil && os.Getenv("CI") != "" {
		return false, fmt.Errorf("download Debian's etcd-client: %w\n%s", err, out)
	}
	return err == nil, nil
}

// nextPort is where freePorts goes on: no two scripts of this process get the same.
var nextPort atomic.Uint32

// freePorts finds ports nobody listens on, below those the kernel gives to
// connections: one of those can be in use again when a cluster is resumed.
func freePorts(n int) ([]int, error) {
	const first, end = 10_000, 30_000
	nextPort.CompareAndSwap(0, 1+rand.Uint32N(end-first))
	var ports []int
	for range end - first {
		port := first + int(nextPort.Add(1))%(end-first)
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			continue
		}
		l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("no %d free ports from %d to %d", n, first, end)
}

// retry SECONDS command...: runs the command until it succeeds (with !: until
// it fails), at most so long.
func retry(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: retry SECONDS command...")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("still so after %d s: %s: %v", seconds, strings.Join(args[1:], " "), err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// ports NAME... sets each name to a free TCP port.
func ports(ts *testscript.TestScript, neg bool, args []string) {
	free, err := freePorts(len(args))
	ts.Check(err)
	for i, name := range args {
		ts.Setenv(name, strconv.Itoa(free[i]))
	}
}

// listen PORT holds a TCP port until the script ends.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", ":"+args[0])
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// kill9 PIDFILE kills the process whose pid is in the file and waits for its end.
func kill9(ts *testscript.TestScript, neg bool, args []string) {
	data, err := os.ReadFile(args[0])
	ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	ts.Check(err)
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Kill())
	for range 100 {
		if p.Signal(os.Signal(nil)) != nil || !exists(fmt.Sprintf("/proc/%d/fd", pid)) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// capture NAME command... sets $NAME to what the command prints.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec(args[1], args[2:]...))
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// post URL JSON posts a document, half a minute long until someone answers; the answer must be a 200.
func post(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		resp, err := http.Post(args[0], "application/json", strings.NewReader(args[1]))
		if err != nil && time.Now().Before(end) {
			continue
		}
		ts.Check(err)
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			ts.Fatalf("POST %s: %s\n%s", args[0], resp.Status, body)
		}
		return
	}
}

// same A B: the two texts are equal (with !: differ).
func same(ts *testscript.TestScript, neg bool, args []string) {
	if (args[0] == args[1]) == neg {
		ts.Fatalf("%q and %q: equal is %v", args[0], args[1], args[0] == args[1])
	}
}

// contains TEXT PART: the text has the part in it (with !: has not).
func contains(ts *testscript.TestScript, neg bool, args []string) {
	if strings.Contains(args[0], args[1]) == neg {
		ts.Fatalf("%q in %q: %v", args[1], args[0], !neg)
	}
}

// leftovers DATADIR [SUFFIX] fails if anything of a purged cluster is left; by
// the suffix of its names it finds interfaces and control groups too.
func leftovers(ts *testscript.TestScript, neg bool, args []string) {
	dir := args[0]
	if exists(dir) {
		ts.Fatalf("%s is still there", dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	ts.Check(err)
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, dir) {
			ts.Fatalf("mount left: %s", line)
		}
	}
	if len(args) > 1 {
		links, err := os.ReadFile("/proc/net/dev")
		ts.Check(err)
		if strings.Contains(string(links), args[1]+":") {
			ts.Fatalf("interface left:\n%s", links)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
			if left, _ := filepath.Glob(pattern + "-" + args[1] + "*"); len(left) > 0 {
				ts.Fatalf("control groups left: %v", left)
			}
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range cmdlines {
		data, _ := os.ReadFile(c)
		if strings.Contains(string(data), dir) && !strings.Contains(string(data), "scripts.test") {
			ts.Fatalf("process left: %s %q", c, data)
		}
	}
}
