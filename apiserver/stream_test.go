package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	streamforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	streamcmd "k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/skiff-project/skiff/apiserver"
)

// fakeKubelet runs commands and forwards ports as a kubelet's streams look:
// a command copies stdin to stdout and its words to stderr, "fail" exits 7.
type fakeKubelet struct{}

func (fakeKubelet) ExecInContainer(_ context.Context, _ string, _ string, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan streamcmd.TerminalSize, _ time.Duration) error {
	if in != nil {
		io.Copy(out, in)
	}
	fmt.Fprint(errs, strings.Join(cmd, " "))
	if cmd[0] == "fail" {
		return exitError{}
	}
	return nil
}

type exitError struct{}

func (exitError) Error() string   { return "exit 7" }
func (exitError) String() string  { return "exit 7" }
func (exitError) Exited() bool    { return true }
func (exitError) ExitStatus() int { return 7 }

func (fakeKubelet) PortForward(_ context.Context, _ string, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(stream, buf); err != nil {
		return err
	}
	fmt.Fprintf(stream, "%s on %d", buf, port)
	return nil
}

func (f fakeKubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const long = time.Minute
	parts := strings.Split(r.URL.Path, "/")
	switch parts[1] {
	case "exec":
		opts, err := streamcmd.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		streamcmd.ServeExec(w, r, f, parts[3], "", parts[4], r.URL.Query()["command"], opts, long, long, streamcmd.SupportedStreamingProtocols)
	case "containerLogs":
		fmt.Fprintln(w, "one short line")
	case "portForward":
		opts, err := streamforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		streamforward.ServePortForward(w, r, f, parts[3], "", opts, long, long, []string{streamforward.ProtocolV1Name})
	}
}

func streamServer(t *testing.T) *rest.Config {
	backend := httptest.NewTLSServer(fakeKubelet{})
	t.Cleanup(backend.Close)
	s, cfg := newTLSServer(t, func(c *apiserver.Config) {
		c.KubeletTLS = &tls.Config{InsecureSkipVerify: true}
		c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, backend.Listener.Addr().String())
		}
	})
	c := typed(t, s)
	n, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	if _, err := c.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := pod("p")
	p.Spec.NodeName = "n1"
	if _, err := c.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A log so short that it comes together with its end arrives all the same.
func TestLogOverWebsocket(t *testing.T) {
	cfg := streamServer(t)
	conf, err := websocket.NewConfig(strings.Replace(cfg.Host, "https", "wss", 1)+"/api/v1/namespaces/default/pods/p/log", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	conf.Protocol = []string{"binary.k8s.io"}
	if conf.TlsConfig, err = rest.TLSConfigFor(cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.BearerToken != "" {
		conf.Header = http.Header{"Authorization": {"Bearer " + cfg.BearerToken}}
	}
	ws, err := websocket.DialConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var got string
	for {
		var msg []byte
		if err := websocket.Message.Receive(ws, &msg); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got += string(msg)
	}
	if got != "one short line\n" {
		t.Errorf("log %q", got)
	}
}

func TestExec(t *testing.T) {
	cfg := streamServer(t)
	c := kubernetes.NewForConfigOrDie(cfg)
	for name, mk := range map[string]func(*rest.Request) (remotecommand.Executor, error){
		"SPDY": func(r *rest.Request) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(cfg, "POST", r.URL())
		},
		"websocket": func(r *rest.Request) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(cfg, "GET", r.URL().String())
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(cmd ...string) (string, string, error) {
				req := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("p").SubResource("exec").
					VersionedParams(&corev1.PodExecOptions{Command: cmd, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec)
				ex, err := mk(req)
				if err != nil {
					t.Fatal(err)
				}
				var out, errs bytes.Buffer
				err = ex.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(strings.Repeat("hello ", 20000)), Stdout: &out, Stderr: &errs})
				return out.String(), errs.String(), err
			}
			out, errs, err := run("echo", "a b")
			if err != nil || len(out) != 120000 || errs != "echo a b" {
				t.Errorf("got %d bytes, %q, %v", len(out), errs, err)
			}
			_, _, err = run("fail")
			if code := (exec.CodeExitError{}); !errors.As(err, &code) || code.Code != 7 {
				t.Errorf("exit code: %v", err)
			}
		})
	}
}

func TestPortForward(t *testing.T) {
	cfg := streamServer(t)
	c := kubernetes.NewForConfigOrDie(cfg)
	u := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("p").SubResource("portforward").URL()
	rt, up, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, dialer := range map[string]httpstream.Dialer{"SPDY": spdy.NewDialer(up, &http.Client{Transport: rt}, "POST", u), "websocket": tunnel} {
		t.Run(name, func(t *testing.T) {
			stop, ready := make(chan struct{}), make(chan struct{})
			fw, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- fw.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports, err := fw.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "hello")
			data, err := io.ReadAll(conn)
			if err != nil || string(data) != "hello on 8080" {
				t.Errorf("forwarded %q, %v", data, err)
			}
			close(stop)
			<-done
		})
	}
}
