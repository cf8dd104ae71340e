package reference

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// needRoot skips tests of namespaces where there is no root, but not in CI.
func needRoot(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("needs root: namespaces are real here")
	}
}

// boxed is a cluster that has its namespaces, and no component yet.
func boxed(t *testing.T) *Cluster {
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "skref")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Dir: dir, ownsDir: true, ports: map[string]int{}}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := c.enterBox(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBoxEndsWithAllThatIsInIt(t *testing.T) {
	c := boxed(t)
	p, err := spawn("sleeper", Program{Path: "/bin/sh"}, []string{"-c", "mount -t tmpfs tmpfs /mnt && setsid sleep 1000 & ps -o pid=; echo $$; ip -4 addr show eth0; exec sleep 1000"}, c.Dir, c.box)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = p.waitReady(ctx, 10*time.Second, func(context.Context) error {
		data, err := os.ReadFile(p.Log)
		if err == nil && !bytes.Contains(data, []byte("inet "+c.ip)) {
			err = errors.New(string(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Not "self": that is the first thread, which may be the one that entered the box.
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), " /mnt ") || strings.Contains(string(mounts), c.Dir) {
		t.Errorf("mounts of the box are seen outside:\n%s", mounts)
	}
	dir, cgroup := c.Dir, c.cgroup
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.PID, 0); err == nil {
		t.Errorf("process %d lives on", p.PID)
	}
	for _, root := range append(cgroupRoots(), filepath.Dir(dir)) {
		if _, err := os.Stat(filepath.Join(root, cgroup)); err == nil {
			t.Errorf("%s is left in %s", cgroup, root)
		}
	}
}

func TestReadinessShowsTheLog(t *testing.T) {
	p, err := spawn("failing", Program{Path: "/bin/sh"}, []string{"-c", "echo the reason >&2; exit 3"}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = p.waitReady(t.Context(), 10*time.Second, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "failing ended") || !strings.Contains(err.Error(), "exit status 3") || !strings.HasSuffix(err.Error(), "the reason") {
		t.Errorf("got %v", err)
	}
}

func TestStopTellsWhoHadEnded(t *testing.T) {
	var c Cluster
	for name, script := range map[string]string{"healthy": "sleep 100", "leaderless": "echo leaderelection lost; exit 1"} {
		p, err := spawn(name, Program{Path: "/bin/sh"}, []string{"-c", script}, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c.procs = append(c.procs, p)
		if name == "leaderless" {
			<-p.exited
		}
	}
	want := "leaderless ended by itself: exit status 1; the end of its log:\nleaderelection lost"
	if err := c.Stop(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	p := Program{Path: "/bin/false"}
	for want, o := range map[string]Options{
		"a cluster needs an etcd and an API server": {Etcd: p},
		"a kubelet needs a runtime":                 {Etcd: p, APIServer: p, Kubelet: p},
	} {
		if _, err := Start(t.Context(), o); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
