package robustness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-project/skiff/cli/etcd"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
	"github.com/skiff-project/skiff/store/vfs"
)

// TestMain lets the test's own program be the server: `skiff etcd`, or, told
// so, one whose disk fails at a certain sync.
func TestMain(m *testing.M) {
	if nth := os.Getenv("ROBUSTNESS_FAIL_SYNC"); nth != "" {
		n, _ := strconv.Atoi(nth)
		fmt.Fprintln(os.Stderr, failingServer(os.Args[1], os.Args[2], int64(n)))
		os.Exit(1)
	}
	if os.Getenv("ROBUSTNESS_SERVER") != "" {
		os.Exit(etcd.Main(os.Args[1:]))
	}
	os.Setenv("ETCD_CLIENT_DEBUG", "fatal") // every refusal is a log line otherwise
	os.Exit(m.Run())
}

func failingServer(dir, url string, nth int64) error {
	var n atomic.Int64
	fs := vfs.Faulty(vfs.Disk(), func(op vfs.Op, name string) error {
		if op == vfs.OpSync && n.Add(1) == nth {
			return syscall.EIO
		}
		return nil
	})
	return standalone.Run(context.Background(), standalone.Config{DataDir: dir, Listen: []string{url}, FS: fs,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, nil)
}

// server is a server process that can be started again on its data.
type server struct {
	t    testing.TB
	dir  string
	url  string
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error

	// mem, if set, is the disk of a server inside the test, which can lose power.
	mem    *vfs.Mem
	noSync bool
	cancel context.CancelFunc
	// startErr is why the server inside did not start.
	startErr error
}

// startInside starts the server of a disk in memory.
func (s *server) startInside() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	ready := make(chan []net.Addr, 1)
	go func(mem *vfs.Mem) {
		s.done <- standalone.Run(ctx, standalone.Config{DataDir: "/data", FS: mem, NoSync: s.noSync, Listen: []string{s.url}},
			func(addrs []net.Addr) { ready <- addrs })
	}(s.mem)
	select {
	case <-ready:
	case err := <-s.done:
		s.done <- err
		s.startErr = err
	}
}

// cutPower ends a server inside the test as a power cut does. Of what was not
// synced the part keep is on the disk afterwards.
func (s *server) cutPower(rng *rand.Rand, keep float64) {
	s.mem = s.mem.PowerOff(rng, keep)
	s.cancel()
	<-s.done
}

// newServer gives a server a port below those the kernel gives to connections:
// one of those can be in use when the server is started again.
func newServer(t testing.TB) *server {
	const first, end, tries = 10_000, 30_000, 1000
	var lis net.Listener
	for try := 0; lis == nil; try++ {
		var err error
		if lis, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", first+rand.IntN(end-first))); err != nil && try == tries {
			t.Fatal(err)
		}
	}
	defer lis.Close()
	s := &server{t: t, dir: filepath.Join(t.TempDir(), "data"), url: "http://" + lis.Addr().String()}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.cmd.Process.Signal(syscall.SIGCONT)
			s.kill()
		}
	})
	return s
}

// start starts the server and returns when it answers. failSync, if not 0, is
// the sync that fails.
func (s *server) start(failSync int) {
	s.t.Helper()
	program, args, env := os.Args[0], []string{"--data-dir", s.dir, "--listen-client-urls", s.url, "--advertise-client-urls", s.url, "--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "warn"}, "ROBUSTNESS_SERVER=1"
	if binary := os.Getenv("SKIFF_BINARY"); binary != "" {
		program, args = binary, append([]string{"etcd"}, args...)
	}
	if failSync > 0 {
		program, args, env = os.Args[0], []string{s.dir, s.url}, fmt.Sprint("ROBUSTNESS_FAIL_SYNC=", failSync)
	}
	s.cmd = exec.Command(program, args...)
	s.cmd.Env = append(os.Environ(), env)
	s.out.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(s.cmd, s.done)
	c, err := newClient(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := c.Get(ctx, "/other")
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || s.exited() {
			s.t.Fatalf("the server does not start: %v\n%s", err, s.out.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *server) exited() bool {
	select {
	case err := <-s.done:
		s.done <- err
		return true
	default:
		return false
	}
}

func (s *server) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		<-s.done
		s.cmd = nil
	}
}

// stop ends the server as an operator does.
func (s *server) stop() {
	s.t.Helper()
	if s.mem != nil {
		s.cancel()
		s.done <- <-s.done
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.done:
		if err != nil {
			s.t.Errorf("the server ends with %v\n%s", err, s.out.String())
		}
	case <-time.After(20 * time.Second):
		s.t.Error("the server does not end")
		s.cmd.Process.Kill()
		<-s.done
	}
	s.cmd = nil
}

// waitForFailure waits until the server has ended by itself, with an error.
func (s *server) waitForFailure() {
	s.t.Helper()
	select {
	case err := <-s.done:
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
			s.t.Errorf("after a failed sync the server ends with %v, want a status\n%s", err, s.out.String())
		}
		s.cmd = nil
	case <-time.After(time.Minute):
		s.cmd.Process.Signal(syscall.SIGQUIT) // for its goroutines
		<-s.done
		s.cmd = nil
		s.t.Errorf("the server goes on after a failed sync\n%s", s.out.String())
	}
}

func (s *server) storeDir() string { return filepath.Join(s.dir, standalone.StoreFolder) }
