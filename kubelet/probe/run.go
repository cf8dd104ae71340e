// Package probe runs liveness, readiness and startup probes and lifecycle hooks: by command in the
// container, HTTP, TCP or gRPC.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/kubelet/env"
)

// Outcome is how one run of a probe ended.
type Outcome int

// The outcomes. Unknown runs change nothing; Warning counts as success.
const (
	Success Outcome = iota
	Warning
	Failure
	Unknown
)

const maxBody = 10 << 10 // bytes of a response or a command's output that are looked at

// Exec runs a command in a container; a non-zero exit is an error with an ExitStatus() int method.
type Exec func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (output []byte, err error)

// Target is what is probed.
type Target struct {
	Pod         *v1.Pod
	Container   *v1.Container
	ContainerID string
	PodIP       string
}

// Runner runs probes and hooks.
type Runner struct {
	Exec    Exec
	Version string // minor version for the user agent, e.g. "1.37"
	// PID returns a container's first process, 0 if the runtime does not tell. With it, containers
	// without a readiness probe count as ready once they listen on the ports they declare.
	PID func(ctx context.Context, id string) int
}

// Probe runs a probe once. err is set when the probe itself could not be carried out.
func (r *Runner) Probe(ctx context.Context, p *v1.Probe, t Target) (Outcome, string, error) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	switch {
	case p.Exec != nil:
		return r.exec(ctx, p.Exec.Command, t, timeout)
	case p.HTTPGet != nil:
		return r.http(ctx, p.HTTPGet, t, timeout)
	case p.TCPSocket != nil:
		return tcp(ctx, p.TCPSocket, t, timeout)
	case p.GRPC != nil:
		return r.grpc(ctx, p.GRPC, t, timeout)
	}
	return Unknown, "", fmt.Errorf("missing probe handler for %s/%s:%s", t.Pod.Namespace, t.Pod.Name, t.Container.Name)
}

func (r *Runner) exec(ctx context.Context, cmd []string, t Target, timeout time.Duration) (Outcome, string, error) {
	vars := map[string]string{}
	for _, e := range t.Container.Env {
		if e.ValueFrom == nil {
			vars[e.Name] = e.Value
		}
	}
	out, err := r.Exec(ctx, t.ContainerID, env.ExpandAll(cmd, vars), timeout)
	if len(out) > maxBody {
		out = out[:maxBody]
	}
	var exit interface{ ExitStatus() int }
	switch {
	case err == nil:
		return Success, string(out), nil
	case errors.As(err, &exit):
		if exit.ExitStatus() == 0 {
			return Success, string(out), nil
		}
		return Failure, string(out), nil
	case grpcstatus.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timed out"):
		return Failure, fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(cmd, " "), timeout), nil
	}
	return Unknown, "", err
}

// Port resolves a port by number or by the container's name for it.
func Port(p intstr.IntOrString, c *v1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				return int(cp.ContainerPort), nil
			}
		}
		var err error
		if n, err = strconv.Atoi(p.StrVal); err != nil {
			return 0, fmt.Errorf("invalid port name: couldn't find port: %v in %v/%v", p.StrVal, c.Name, p.StrVal)
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}

func (r *Runner) request(ctx context.Context, a *v1.HTTPGetAction, t Target, agent string) (*http.Request, error) {
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	host := a.Host
	if host == "" {
		host = t.PodIP
	}
	port, err := Port(a.Port, t.Container)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(a.Path)
	if err != nil { // keep what cannot be parsed as a path
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", agent+"/"+r.Version)
	}
	if v, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if len(v) == 1 && v[0] == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// client makes one connection per probe and never goes through a proxy.
func client(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // a probe checks life, not identity
			DisableKeepAlives: true, DisableCompression: true, Proxy: nil,
			DialContext: (&net.Dialer{Timeout: timeout}).DialContext,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

func (r *Runner) http(ctx context.Context, a *v1.HTTPGetAction, t Target, timeout time.Duration) (Outcome, string, error) {
	req, err := r.request(ctx, a, t, "kube-probe")
	if err != nil {
		return Unknown, "", err
	}
	c := client(timeout)
	defer c.CloseIdleConnections()
	res, err := c.Do(req)
	if err != nil {
		return Failure, err.Error(), nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return Failure, "", err
	}
	switch {
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return Warning, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body)), nil
	case res.StatusCode >= 200 && res.StatusCode < 400:
		return Success, string(body), nil
	}
	return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode), nil
}

func tcp(ctx context.Context, a *v1.TCPSocketAction, t Target, timeout time.Duration) (Outcome, string, error) {
	port, err := Port(a.Port, t.Container)
	if err != nil {
		return Unknown, "", err
	}
	host := a.Host
	if host == "" {
		host = t.PodIP
	}
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Failure, err.Error(), nil
	}
	conn.Close()
	return Success, "", nil
}

func (r *Runner) grpc(ctx context.Context, a *v1.GRPCAction, t Target, timeout time.Duration) (Outcome, string, error) {
	addr := net.JoinHostPort(t.PodIP, strconv.Itoa(int(a.Port)))
	creds := insecure.NewCredentials()
	if a.Mode != nil && *a.Mode == v1.GRPCProbeModeTLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) // as for HTTPS probes
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithUserAgent("kube-probe/"+r.Version))
	if err != nil {
		return Failure, fmt.Sprintf("error: failed to connect service at %q: %+v", addr, err), nil
	}
	defer conn.Close()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
	if err != nil {
		switch grpcstatus.Code(err) {
		case codes.Unimplemented:
			return Failure, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", grpcstatus.Convert(err).Message()), nil
		case codes.DeadlineExceeded:
			return Failure, fmt.Sprintf("timeout: failed to connect service %q within %v: %+v", addr, timeout, err), nil
		}
		return Failure, fmt.Sprintf("error: health rpc probe failed: %+v", err), nil
	}
	if res.Status != healthpb.HealthCheckResponse_SERVING {
		return Failure, fmt.Sprintf("service unhealthy (responded with %q)", res.Status.String()), nil
	}
	return Success, "service healthy", nil
}

// Hook runs a lifecycle hook to its end. The message, for the container's status, may hold output
// of the container: it does not go into events.
func (r *Runner) Hook(ctx context.Context, h *v1.LifecycleHandler, t Target) (message string, err error) {
	switch {
	case h.Exec != nil:
		out, err := r.Exec(ctx, t.ContainerID, h.Exec.Command, 0)
		if err != nil {
			return fmt.Sprintf("Exec lifecycle hook (%v) for Container %q in Pod %q failed - error: %v, message: %q",
				h.Exec.Command, t.Container.Name, t.Pod.Name+"_"+t.Pod.Namespace+"("+string(t.Pod.UID)+")", err, bytes.TrimSpace(out)), err
		}
		return "", nil
	case h.HTTPGet != nil:
		if err := r.httpHook(ctx, h.HTTPGet, t); err != nil {
			return fmt.Sprintf("HTTP lifecycle hook (%s) for Container %q in Pod %q failed - error: %v",
				h.HTTPGet.Path, t.Container.Name, t.Pod.Name+"_"+t.Pod.Namespace+"("+string(t.Pod.UID)+")", err), err
		}
		return "", nil
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return "", nil
		case <-ctx.Done():
			err := errors.New("container terminated before sleep hook finished")
			return fmt.Sprintf("Sleep lifecycle hook (%d) for Container %q in Pod %q failed - error: %v", h.Sleep.Seconds,
				t.Container.Name, t.Pod.Name, err), err
		}
	}
	err = fmt.Errorf("invalid handler: %v", h)
	return "Cannot run handler: " + err.Error(), err
}

// httpHook sends the request; any HTTP answer counts. A hook that asks for HTTPS of a plain HTTP
// server is sent again in the clear, as it always was.
func (r *Runner) httpHook(ctx context.Context, a *v1.HTTPGetAction, t Target) error {
	req, err := r.request(ctx, a, t, "kube-lifecycle")
	if err != nil {
		return err
	}
	if a.Host == "" && t.PodIP == "" {
		return fmt.Errorf("failed to find networking container: pod %s has no address", t.Pod.Name)
	}
	c := client(0)
	defer c.CloseIdleConnections()
	res, err := c.Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(ctx)
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		res, err = c.Do(req)
	}
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxBody)
	return res.Body.Close()
}
