package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/skiff-project/skiff/apiserver/admission"
)

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// target is where a proxied request goes.
type target struct {
	url *url.URL
	tls *tls.Config
}

// kubelet returns the address of a node's kubelet.
func (s *Server) kubelet(nodeName string) (target, string, error) {
	if s.cfg.KubeletTLS == nil {
		return target{}, "", apierrors.NewServiceUnavailable("this API server has no client certificate for kubelets; configure KubeletTLS")
	}
	obj, err := s.reader.Get("", "nodes", "", nodeName)
	if err != nil {
		return target{}, "", err
	}
	node, ok := obj.(*corev1.Node)
	if !ok {
		return target{}, "", fmt.Errorf("nodes are stored as %T", obj)
	}
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 {
		port = 10250
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName} {
		for _, a := range node.Status.Addresses {
			if a.Type == kind && a.Address != "" {
				host := net.JoinHostPort(a.Address, strconv.Itoa(int(port)))
				return target{&url.URL{Scheme: "https", Host: host}, s.cfg.KubeletTLS}, a.Address, nil
			}
		}
	}
	return target{}, "", apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has no address yet", nodeName))
}

func (s *Server) getPod(c *call) (*corev1.Pod, error) {
	obj, err := s.reader.Get("", "pods", c.info.Namespace, c.info.Name)
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("pods are stored as %T", obj)
	}
	return pod, nil
}

// containerOf picks the container a request is about.
func containerOf(pod *corev1.Pod, asked string) (string, error) {
	var names []string
	for i := range pod.Spec.InitContainers {
		names = append(names, pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.Containers {
		names = append(names, pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	if asked != "" {
		if !contains(names, asked) {
			return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", asked, pod.Name))
		}
		return asked, nil
	}
	switch len(pod.Spec.Containers) {
	case 1:
		return pod.Spec.Containers[0].Name, nil
	case 0:
		return "", apierrors.NewBadRequest("a container name must be specified for pod " + pod.Name)
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: %s", pod.Name, names))
}

// podLog serves pods/log from the kubelet's containerLogs.
func (s *Server) podLog(c *call) {
	pod, err := s.getPod(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	params, err := logParams(c.query)
	if err != nil {
		s.fail(c, err)
		return
	}
	container, err := containerOf(pod, c.query.Get("container"))
	if err != nil {
		s.fail(c, err)
		return
	}
	if pod.Spec.NodeName == "" {
		s.write(c, "text/plain", http.StatusOK, nil) // not scheduled: there is no log yet
		return
	}
	t, _, err := s.kubelet(pod.Spec.NodeName)
	if err != nil {
		s.fail(c, err)
		return
	}
	if parseBool(c.query.Get("insecureSkipTLSVerifyBackend")) {
		t.tls = t.tls.Clone()
		t.tls.InsecureSkipVerify = true
	}
	t.url.Path = fmt.Sprintf("/containerLogs/%s/%s/%s", pod.Namespace, pod.Name, container)
	t.url.RawQuery = params.Encode()
	if c.req.Header.Get("Upgrade") != "" {
		s.streamLogWebsocket(c, t)
		return
	}
	s.copyFrom(c, t)
}

// logParams checks and passes on PodLogOptions.
func logParams(q url.Values) (url.Values, error) {
	out := url.Values{}
	for _, name := range []string{"follow", "previous", "timestamps"} {
		if v, err := queryBool(q, name); err != nil {
			return nil, err
		} else if v {
			out.Set(name, "true")
		}
	}
	for _, name := range []string{"sinceSeconds", "tailLines", "limitBytes"} {
		v, err := queryInt(q, name)
		if err != nil {
			return nil, err
		}
		if v == nil {
			continue
		}
		if *v < 0 || name != "tailLines" && *v < 1 {
			return nil, invalidLogOption(name, *v)
		}
		out.Set(name, strconv.FormatInt(*v, 10))
	}
	if v := q.Get("sinceTime"); v != "" {
		if out.Has("sinceSeconds") {
			return nil, forbiddenLogOption()
		}
		out.Set("sinceTime", v)
	}
	if v := q.Get("stream"); v != "" {
		out.Set("stream", v)
	}
	return out, nil
}

// copyFrom passes a kubelet's plain answer on, flushing as it comes.
func (s *Server) copyFrom(c *call, t target) {
	client := &http.Client{
		Transport:     s.transport(t.tls),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.ctx(), http.MethodGet, t.url.String(), http.NoBody)
	if err != nil {
		s.fail(c, err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		s.fail(c, apierrors.NewInternalError(fmt.Errorf("Get %q: %w", t.url.String(), errors.Unwrap(err)))) //nolint:staticcheck // upstream's text
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.fail(c, kubeletError(resp))
		return
	}
	c.w.Header().Set("Content-Type", "text/plain")
	c.w.WriteHeader(http.StatusOK)
	copyFlushing(c.w, resp.Body)
}

// kubeletError turns a kubelet's refusal into a Status.
func kubeletError(resp *http.Response) error {
	const most = 2048
	text, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	switch resp.StatusCode {
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(string(text))
	case http.StatusNotFound:
		return statusError(http.StatusNotFound, "NotFound", string(text))
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(string(text)))
	}
	return statusError(int32(resp.StatusCode), "", string(text))
}

func copyFlushing(w http.ResponseWriter, r io.Reader) {
	flush := http.NewResponseController(w)
	flush.Flush() //nolint:errcheck // the next write tells
	buf := make([]byte, 32*1024)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			flush.Flush() //nolint:errcheck // the next write tells
		}
		if err != nil {
			return
		}
	}
}

func (s *Server) transport(conf *tls.Config) *http.Transport {
	t := &http.Transport{DialContext: s.cfg.Dial, TLSClientConfig: conf, DisableCompression: true, MaxResponseHeaderBytes: 1 << 20}
	if conf == nil {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // proxied pods have certificates nobody can check, as upstream
	}
	return t
}

// connect runs admission of a CONNECT.
func (s *Server) connect(c *call) error {
	r := c.admissionRequest(nil, nil, nil, false)
	r.Verb = "connect"
	if err := admission.Admit(c.ctx(), s.cfg.Admission, r); err != nil {
		return err
	}
	return admission.Validate(c.ctx(), s.cfg.Admission, r)
}

// podStream serves exec, attach and portforward: an upgraded connection to the kubelet.
func (s *Server) podStream(c *call, what string) {
	// GET can upgrade too, so what it starts must be allowed as a create.
	attrs := c.info.Attributes(c.user.User)
	attrs.Verb = "create"
	if err := s.allowed(c.ctx(), attrs); err != nil {
		s.fail(c, err)
		return
	}
	pod, err := s.getPod(c)
	if err == nil {
		err = s.connect(c)
	}
	var path string
	if err == nil {
		path, err = streamPath(pod, what, c.query)
	}
	if err == nil && pod.Spec.NodeName == "" {
		err = apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	var t target
	if err == nil {
		t, _, err = s.kubelet(pod.Spec.NodeName)
	}
	if err == nil && c.req.Header.Get("Upgrade") == "" {
		err = apierrors.NewBadRequest("Upgrade request required")
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	t.url.Path = path
	params := streamParams(what, c.query)
	t.url.RawQuery = params.Encode()
	switch {
	case what == "portforward" && len(tunnelProtocols(c.req)) > 0:
		s.tunnel(c, t)
	case what != "portforward" && wsstream.IsWebSocketRequestWithStreamCloseProtocol(c.req):
		s.translate(c, t, params)
	default:
		s.upgrade(c, t)
	}
}

func streamPath(pod *corev1.Pod, what string, q url.Values) (string, error) {
	if what == "portforward" {
		return fmt.Sprintf("/portForward/%s/%s", pod.Namespace, pod.Name), nil
	}
	container, err := containerOf(pod, q.Get("container"))
	if err != nil {
		return "", err
	}
	if what == "exec" && len(q["command"]) == 0 {
		return "", apierrors.NewBadRequest("you must specify at least 1 command")
	}
	return fmt.Sprintf("/%s/%s/%s/%s", what, pod.Namespace, pod.Name, container), nil
}

// streamParams renames the API's parameters to the kubelet's.
func streamParams(what string, q url.Values) url.Values {
	out := url.Values{}
	if what == "portforward" {
		if p := q["ports"]; len(p) > 0 {
			out.Set("port", strings.Join(p, ","))
		}
		return out
	}
	for from, to := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if v, _ := queryBool(q, from); v {
			out.Set(to, "1")
		}
	}
	if what == "attach" && !q.Has("stdout") && !q.Has("stderr") {
		out.Set("output", "1") // the API's defaults
		out.Set("error", "1")
	}
	for _, cmd := range q["command"] {
		out.Add("command", cmd)
	}
	return out
}

// proxyResource serves the proxy subresource of pods, services and nodes.
func (s *Server) proxyResource(c *call) {
	if err := s.connect(c); err != nil {
		s.fail(c, err)
		return
	}
	if !c.info.HasRest && (c.req.Method == http.MethodGet || c.req.Method == http.MethodHead) {
		u := *c.req.URL
		u.Path += "/"
		c.w.Header().Set("Location", u.RequestURI())
		c.w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	t, err := s.proxyTarget(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	t.url.Path = "/" + c.info.Rest
	t.url.RawQuery = c.req.URL.RawQuery
	if c.req.Header.Get("Upgrade") != "" {
		s.upgrade(c, t)
		return
	}
	s.forward(c, t)
}

func (s *Server) proxyTarget(c *call) (target, error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(c.info.Name)
	if !ok {
		return target{}, apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", c.ep.res.Singular, c.info.Name))
	}
	if scheme == "" {
		scheme = "http"
	}
	switch c.info.Resource {
	case "nodes":
		return s.nodeTarget(scheme, name, port)
	case "pods":
		return s.podTarget(c, scheme, name, port)
	case "services":
		return s.serviceTarget(c, scheme, name, port)
	}
	return target{}, apierrors.NewBadRequest("no proxy for " + c.info.Resource)
}

// nodeTarget must not become a way to the API server's own loopback or to
// link-local addresses.
func (s *Server) nodeTarget(scheme, name, port string) (target, error) {
	t, host, err := s.kubelet(name)
	if err != nil {
		return t, err
	}
	if port == "" || port == t.url.Port() {
		return t, nil
	}
	if ip, err := netip.ParseAddr(host); err != nil || !proxyable(ip) {
		return t, apierrors.NewBadRequest("address not allowed")
	}
	return target{&url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}, s.cfg.ProxyTLS}, nil
}

func proxyable(ip netip.Addr) bool { return ip.Unmap().IsGlobalUnicast() }

func (s *Server) podTarget(c *call, scheme, name, port string) (target, error) {
	obj, err := s.reader.Get("", "pods", c.info.Namespace, name)
	if err != nil {
		return target{}, err
	}
	pod := obj.(*corev1.Pod)
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; port == "" && len(ports) > 0 {
			port = strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil || !proxyable(ip) {
		return target{}, apierrors.NewBadRequest("address not allowed")
	}
	host := ip.String()
	if ip.Is6() {
		host = "[" + host + "]"
	}
	if port != "" {
		host = net.JoinHostPort(ip.String(), port)
	}
	return target{&url.URL{Scheme: scheme, Host: host}, s.cfg.ProxyTLS}, nil
}

// serviceTarget picks one ready endpoint of a service port, by name or number.
func (s *Server) serviceTarget(c *call, scheme, name, port string) (target, error) {
	obj, err := s.reader.Get("", "services", c.info.Namespace, name)
	if err != nil {
		return target{}, err
	}
	svc := obj.(*corev1.Service)
	if n, err := strconv.ParseInt(port, 10, 64); err == nil {
		found := false
		for i := range svc.Spec.Ports {
			if int64(svc.Spec.Ports[i].Port) == n {
				port, found = svc.Spec.Ports[i].Name, true
				break
			}
		}
		if !found {
			return target{}, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, name))
		}
	}
	list, err := s.reader.List("discovery.k8s.io", "endpointslices", c.info.Namespace)
	if err != nil {
		return target{}, err
	}
	var hosts []string
	for _, o := range list {
		slice := o.(*discoveryv1.EndpointSlice)
		if slice.Labels[discoveryv1.LabelServiceName] == name {
			hosts = append(hosts, readyHosts(slice, port)...)
		}
	}
	if len(hosts) == 0 {
		return target{}, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return target{&url.URL{Scheme: scheme, Host: hosts[rand.IntN(len(hosts))]}, s.cfg.ProxyTLS}, nil
}

// readyHosts are the host:port of a slice's ready endpoints on a named port;
// an empty name means the only or unnamed one.
func readyHosts(slice *discoveryv1.EndpointSlice, port string) []string {
	var out []string
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if p.Port == nil || p.Name != nil && *p.Name != port && !(port == "" && len(slice.Ports) == 1) {
			continue
		}
		for j := range slice.Endpoints {
			e := &slice.Endpoints[j]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
				continue
			}
			if ip, err := netip.ParseAddr(e.Addresses[0]); err == nil && proxyable(ip) {
				out = append(out, net.JoinHostPort(ip.String(), strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return out
}

// forward proxies one plain request. Redirects go back to the client,
// rewritten to lead through the proxy.
func (s *Server) forward(c *call, t target) {
	tr := s.transport(t.tls)
	defer tr.CloseIdleConnections()
	base := strings.TrimSuffix(c.info.Path, c.info.Rest)
	p := &httputil.ReverseProxy{
		Transport:     tr,
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.Path, r.Out.URL.RawPath = t.url.Scheme, t.url.Host, t.url.Path, ""
			r.Out.Host = t.url.Host
			r.SetXForwarded()
			r.Out.Header.Set("X-Forwarded-Uri", c.info.Path)
			for _, h := range []string{"Authorization", "X-Remote-User", "X-Remote-Group"} {
				r.Out.Header.Del(h)
			}
		},
		ModifyResponse: func(resp *http.Response) error { return rewriteResponse(resp, t.url, base) },
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			s.fail(c, apierrors.NewServiceUnavailable("error trying to reach service: "+err.Error()))
		},
	}
	p.ServeHTTP(c.w, c.req)
}
