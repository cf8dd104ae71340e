package runtime

import (
	"bytes"
	"context"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// syncBuffer is a buffer two goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func streamTo(t *testing.T, u string, o remotecommand.StreamOptions) error {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&restclient.Config{Host: parsed.Host}, "POST", parsed)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return e.StreamWithContext(ctx, o)
}

func TestStreamingExec(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	resp, err := w.Exec(w.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/prog", "cat"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(resp.Url, "http://127.0.0.1:") {
		t.Errorf("streams are served at %s", resp.Url)
	}
	var out, errOut bytes.Buffer
	in := strings.Repeat("0123456789", 50000)
	if err := streamTo(t, resp.Url, remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errOut}); err != nil {
		t.Fatal(err)
	}
	if out.String() != in {
		t.Errorf("%d bytes came back of %d", out.Len(), len(in))
	}
	resp, _ = w.Exec(w.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/prog", "exit", "5"}, Stdout: true})
	if err := streamTo(t, resp.Url, remotecommand.StreamOptions{Stdout: &out}); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		t.Errorf("exit 5: %v", err)
	}
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	v, ok := <-s
	if !ok {
		return nil
	}
	return &v
}

func TestExecOnATerminal(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"wait"})
	resp, err := w.Exec(w.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/prog", "cat"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	out := &syncBuffer{}
	in, typed := io.Pipe()
	q := make(sizes, 1)
	q <- remotecommand.TerminalSize{Width: 132, Height: 43}
	done := make(chan error, 1)
	go func() {
		done <- streamTo(t, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: q})
	}()
	typed.Write([]byte("hello\r"))
	eventually(t, func() bool { return strings.Count(out.String(), "hello") >= 2 }, "echo and answer in %q", out)
	typed.Write([]byte{4}) // end of file
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(q)
}

func TestAttach(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"cat"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	resp, err := w.Attach(w.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut syncBuffer
	if err := streamTo(t, resp.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: &errOut}); err != nil {
		t.Fatal(err)
	}
	if st := w.ended(id); st.ExitCode != 0 {
		t.Errorf("stdinOnce did not end the container: %v", st)
	}
	if out.String() != "one\ntwo\n" || w.logText(id) != "one\ntwo\n" {
		t.Errorf("attached %q, logged %q", out.String(), w.logText(id))
	}
}

// A client whose input ends is let go; the process keeps its own, and the next client is heard.
func TestAttachLeavesStdinOpen(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"cat"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	for i, text := range []string{"one\n", "two\n"} {
		resp, err := w.Attach(w.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			done <- streamTo(t, resp.Url, remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: io.Discard, Stderr: io.Discard})
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("client %d is not let go", i)
		}
	}
	eventually(t, func() bool { return w.logText(id) == "one\ntwo\n" }, "both lines in the log")
}

func TestContainerOnATerminal(t *testing.T) {
	w := newWorld(t)
	id := w.run([]string{"cat"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	resp, err := w.Attach(w.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	out := &syncBuffer{}
	in, typed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- streamTo(t, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true})
	}()
	typed.Write([]byte("hi\r"))
	eventually(t, func() bool { return strings.Count(out.String(), "hi") >= 2 }, "echo and answer in %q", out)
	typed.Write([]byte{4})
	if st := w.ended(id); st.ExitCode != 0 {
		t.Errorf("status %v", st)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPortForwardReachesThePodsLoopback(t *testing.T) {
	w := newWorld(t)
	pod, cfg := w.pod()
	id := w.start(pod, cfg, containerConfig("listen", "8080"))
	w.ready(id, "ready")
	a, b := newPipe()
	done := make(chan error, 1)
	go func() { done <- streams{w.Runtime}.PortForward(w.ctx, pod, 8080, b) }()
	a.Write([]byte("ping"))
	buf := make([]byte, 4)
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("%q %v", buf, err)
	}
	a.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (streams{w.Runtime}).PortForward(w.ctx, pod, 9999, b); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("closed port: %v", err)
	}
}

type duplex struct {
	io.Reader
	io.WriteCloser
}

func newPipe() (duplex, duplex) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return duplex{r1, w2}, duplex{r2, w1}
}

func TestServeOverASocket(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "s", "cri.sock")
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, path) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rt, im := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	v, err := rt.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil || v.RuntimeName != "skiff" {
		t.Fatalf("%v %v", v, err)
	}
	list, err := im.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 {
		t.Errorf("%v %v", list, err)
	}
	id := w.run([]string{"wait"})
	ex, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/prog", "exit", "3"}})
	if err != nil || ex.ExitCode != 3 {
		t.Errorf("%v %v", ex, err)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
}
