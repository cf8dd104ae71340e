package apiserver

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/skiff-project/skiff/apiserver/connect"
)

// kubelet returns the address of a node's kubelet.
func (s *Server) kubelet(nodeName string) (connect.Target, string, error) {
	if s.cfg.KubeletTLS == nil {
		return connect.Target{}, "", apierrors.NewServiceUnavailable("this API server has no client certificate for kubelets; configure KubeletTLS")
	}
	obj, err := s.reader.Get("", "nodes", "", nodeName)
	if err != nil {
		return connect.Target{}, "", err
	}
	node, ok := obj.(*corev1.Node)
	if !ok {
		return connect.Target{}, "", fmt.Errorf("nodes are stored as %T", obj)
	}
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 {
		port = 10250
	}
	for _, kind := range s.cfg.KubeletAddresses {
		for _, a := range node.Status.Addresses {
			if a.Type == kind && a.Address != "" {
				host := net.JoinHostPort(a.Address, strconv.Itoa(int(port)))
				return connect.Target{URL: &url.URL{Scheme: "https", Host: host}, TLS: s.cfg.KubeletTLS}, a.Address, nil
			}
		}
	}
	return connect.Target{}, "", apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has no address yet", nodeName))
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

// podLog serves pods/log from the kubelet's containerLogs.
func (s *Server) podLog(c *call) {
	pod, err := s.getPod(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	params, err := connect.LogParams(c.query)
	if err != nil {
		s.fail(c, err)
		return
	}
	container, err := connect.Container(pod, c.query.Get("container"))
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
		t.TLS = t.TLS.Clone()
		t.TLS.InsecureSkipVerify = true
	}
	t.URL.Path = fmt.Sprintf("/containerLogs/%s/%s/%s", pod.Namespace, pod.Name, container)
	t.URL.RawQuery = params.Encode()
	if c.req.Header.Get("Upgrade") != "" {
		s.proxy.LogWebsocket(s.via(c), t)
		return
	}
	s.proxy.Copy(s.via(c), t)
}

// via hands a call to the proxy.
func (s *Server) via(c *call) connect.Call {
	return connect.Call{Req: c.req, W: c.w, Fail: func(err error) { s.fail(c, err) }}
}

// admitConnect runs admission of a CONNECT.
func (s *Server) admitConnect(c *call) error {
	options, kind, err := connect.Options(c.info.Resource, c.info.Subresource, c.query, c.info.Path, c.info.Rest)
	if err != nil {
		return err
	}
	r := s.admissionRequest(c, nil, nil, options, false)
	r.Verb, r.Kind, r.Forms = "connect", kind, nil
	if err := s.admission.Admit(c.ctx(), r); err != nil {
		return err
	}
	return s.admission.Validate(c.ctx(), r)
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
		err = s.admitConnect(c)
	}
	var path string
	if err == nil {
		path, err = connect.StreamPath(pod, what, c.query)
	}
	if err == nil && pod.Spec.NodeName == "" {
		err = apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	var t connect.Target
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
	t.URL.Path = path
	params := connect.StreamParams(what, c.query)
	t.URL.RawQuery = params.Encode()
	switch {
	case what == "portforward" && len(connect.TunnelProtocols(c.req)) > 0:
		s.proxy.Tunnel(s.via(c), t)
	case what != "portforward" && wsstream.IsWebSocketRequestWithStreamCloseProtocol(c.req):
		s.proxy.Translate(s.via(c), t, params)
	default:
		s.proxy.Upgrade(s.via(c), t)
	}
}

// proxyResource serves the proxy subresource of pods, services and nodes.
func (s *Server) proxyResource(c *call) {
	if err := s.admitConnect(c); err != nil {
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
	t.URL.Path = "/" + c.info.Rest
	t.URL.RawQuery = c.req.URL.RawQuery
	if c.req.Header.Get("Upgrade") != "" {
		s.proxy.Upgrade(s.via(c), t)
		return
	}
	s.proxy.Forward(s.via(c), t, strings.TrimSuffix(c.info.Path, c.info.Rest))
}

func (s *Server) proxyTarget(c *call) (connect.Target, error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(c.info.Name)
	if !ok {
		return connect.Target{}, apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", c.ep.res.Singular, c.info.Name))
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
	return connect.Target{}, apierrors.NewBadRequest("no proxy for " + c.info.Resource)
}

// nodeTarget must not become a way to the API server's own loopback or to
// link-local addresses.
func (s *Server) nodeTarget(scheme, name, port string) (connect.Target, error) {
	t, host, err := s.kubelet(name)
	if err != nil {
		return t, err
	}
	if port == "" || port == t.URL.Port() {
		return t, nil
	}
	if ip, err := netip.ParseAddr(host); err != nil || !connect.Proxyable(ip) {
		return t, apierrors.NewBadRequest("address not allowed")
	}
	return connect.Target{URL: &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}}, nil
}

func (s *Server) podTarget(c *call, scheme, name, port string) (connect.Target, error) {
	obj, err := s.reader.Get("", "pods", c.info.Namespace, name)
	if err != nil {
		return connect.Target{}, err
	}
	pod := obj.(*corev1.Pod)
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; port == "" && len(ports) > 0 {
			port = strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil || !connect.Proxyable(ip) {
		return connect.Target{}, apierrors.NewBadRequest("address not allowed")
	}
	host := ip.String()
	if ip.Is6() {
		host = "[" + host + "]"
	}
	if port != "" {
		host = net.JoinHostPort(ip.String(), port)
	}
	return connect.Target{URL: &url.URL{Scheme: scheme, Host: host}}, nil
}

// serviceTarget picks one ready endpoint of a service port, by name or number.
func (s *Server) serviceTarget(c *call, scheme, name, port string) (connect.Target, error) {
	host, err := connect.ServiceHost(s.reader, c.info.Namespace, name, port)
	if err != nil {
		return connect.Target{}, err
	}
	return connect.Target{URL: &url.URL{Scheme: scheme, Host: host}}, nil
}
