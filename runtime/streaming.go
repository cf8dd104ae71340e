package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// streams serves exec, attach and port-forward to whoever holds a one-time URL.
type streams struct{ r *Runtime }

func (r *Runtime) startStreaming() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	conf := streaming.DefaultConfig
	conf.Addr = l.Addr().String()
	conf.BaseURL = &url.URL{Scheme: "http", Host: conf.Addr}
	if r.stream, err = streaming.NewServer(conf, streams{r}); err != nil {
		l.Close()
		return err
	}
	r.listener = l
	r.streamer = &http.Server{Handler: r.stream, ReadHeaderTimeout: 10 * time.Second}
	go r.streamer.Serve(l)
	return nil
}

func (r *Runtime) stopStreaming() {
	if r.streamer != nil {
		r.streamer.Close()
	}
}

// Exec implements CRI.
func (r *Runtime) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := r.running(c); err != nil {
		return nil, err
	}
	return r.stream.GetExec(req)
}

// Attach implements CRI.
func (r *Runtime) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := r.running(c); err != nil {
		return nil, err
	}
	return r.stream.GetAttach(req)
}

// PortForward implements CRI.
func (r *Runtime) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := r.sandbox(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return r.stream.GetPortForward(req)
}

func (r *Runtime) running(c *container) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %q is in %s state", c.rec.ID, c.state)
	}
	return nil
}

func (s streams) Exec(ctx context.Context, id string, cmd []string, in io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.r.container(id)
	if err != nil {
		return err
	}
	var code int
	if tty {
		code, err = s.r.execTTY(ctx, c, cmd, in, writer(stdout), resize)
	} else {
		code, err = s.r.execPipes(ctx, c, cmd, in, orDiscard(stdout), orDiscard(stderr))
	}
	if err == nil && code != 0 {
		err = &utilexec.CodeExitError{Err: fmt.Errorf("error executing command %v, exit code %d", cmd, code), Code: code}
	}
	return err
}

// writer keeps a nil interface nil when its type changes.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func orDiscard(w io.WriteCloser) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func (s streams) Attach(ctx context.Context, id string, in io.Reader, stdout, stderr io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.r.container(id)
	if err != nil {
		return err
	}
	return s.r.attach(ctx, c, in, writer(stdout), writer(stderr), resize)
}

func (s streams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	sb, err := s.r.sandbox(id)
	if err != nil {
		return err
	}
	if port <= 0 || port > 65535 {
		return fmt.Errorf("port %d is out of range", port)
	}
	conn, err := dialInPod(ctx, sb, int(port))
	if err != nil {
		return fmt.Errorf("failed to connect to port %d inside sandbox %q: %w", port, id, err)
	}
	defer conn.Close()
	return pipe(ctx, conn, stream)
}

// pipe copies both ways. The pod's end decides: when it has said all, the stream ends.
func pipe(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) error {
	out := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, conn)
		out <- err
	}()
	go func() {
		io.Copy(conn, stream)
		conn.CloseWrite()
	}()
	select {
	case err := <-out:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dialInPod connects to the pod's loopback, IPv4 first. Only the socket is made in the
// pod's namespace; it stays there whichever thread uses it.
func dialInPod(ctx context.Context, s *sandbox, port int) (*net.TCPConn, error) {
	var errs []error
	for _, addr := range []unix.Sockaddr{&unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}} {
		conn, err := dialOne(ctx, s, addr)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialOne(ctx context.Context, s *sandbox, addr unix.Sockaddr) (*net.TCPConn, error) {
	family := unix.AF_INET
	if _, ok := addr.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd := -1
	err := onThread(func() error {
		if !s.hostNetwork() {
			ns, err := unix.Open(s.netns(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		var err error
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(int64(10 * time.Second))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "port-forward")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a TCP connection")
	}
	return tcp, ctx.Err()
}
