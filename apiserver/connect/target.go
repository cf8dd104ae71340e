package connect

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/api"
)

// Proxyable tells the addresses the proxy may be led to: not the API server's
// own loopback, and nothing link-local.
func Proxyable(ip netip.Addr) bool { return ip.Unmap().IsGlobalUnicast() }

// Container picks the container a request is about.
func Container(pod *corev1.Pod, asked string) (string, error) {
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
		if !slices.Contains(names, asked) {
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

// StreamPath is the path at the kubelet of an exec, attach or portforward.
func StreamPath(pod *corev1.Pod, what string, q url.Values) (string, error) {
	if what == "portforward" {
		return fmt.Sprintf("/portForward/%s/%s", pod.Namespace, pod.Name), nil
	}
	container, err := Container(pod, q.Get("container"))
	if err != nil {
		return "", err
	}
	if what == "exec" && len(q["command"]) == 0 {
		return "", apierrors.NewBadRequest("you must specify at least 1 command")
	}
	return fmt.Sprintf("/%s/%s/%s/%s", what, pod.Namespace, pod.Name, container), nil
}

// ReadyHosts are the host:port of a slice's ready endpoints on a named port;
// an empty name means the only or unnamed one.
func ReadyHosts(slice *discoveryv1.EndpointSlice, port string) []string {
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
			if ip, err := netip.ParseAddr(e.Addresses[0]); err == nil && Proxyable(ip) {
				out = append(out, net.JoinHostPort(ip.String(), strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return out
}

// Reader reads stored objects; see admission.Reader.
type Reader interface {
	Get(group, resource, namespace, name string) (api.Object, error)
	List(group, resource, namespace string) ([]api.Object, error)
}

// ServiceHost is the address ("host:port") of one ready endpoint of a Service's
// port, given by name or number.
func ServiceHost(read Reader, namespace, name, port string) (string, error) {
	obj, err := read.Get("", "services", namespace, name)
	if err != nil {
		return "", err
	}
	svc := obj.(*corev1.Service)
	if n, err := strconv.ParseInt(port, 10, 64); err == nil {
		i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return int64(p.Port) == n })
		if i < 0 {
			return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, name))
		}
		port = svc.Spec.Ports[i].Name
	}
	list, err := read.List("discovery.k8s.io", "endpointslices", namespace)
	if err != nil {
		return "", err
	}
	var hosts []string
	for _, o := range list {
		slice := o.(*discoveryv1.EndpointSlice)
		if slice.Labels[discoveryv1.LabelServiceName] == name {
			hosts = append(hosts, ReadyHosts(slice, port)...)
		}
	}
	if len(hosts) == 0 {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return hosts[rand.IntN(len(hosts))], nil
}
