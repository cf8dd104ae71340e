package connect

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Routes finds where Services are reached.
type Routes struct {
	// Reader reads Services and EndpointSlices.
	Reader Reader
	// ClusterIP makes Route send to the cluster IP instead of to an endpoint.
	ClusterIP bool
}

// Route is where what the server itself sends to a service port goes ("address:port"): webhooks' and
// aggregated servers' requests. The port is a number.
func (r Routes) Route(namespace, name, port string) (string, error) {
	obj, err := r.Reader.Get("", "services", namespace, name)
	if err != nil {
		return "", err
	}
	svc, ok := obj.(*corev1.Service)
	switch {
	case !ok:
		return "", fmt.Errorf("services are stored as %T", obj)
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return net.JoinHostPort(svc.Spec.ExternalName, port), nil
	case !r.ClusterIP:
		return ServiceHost(r.Reader, namespace, name, port)
	case svc.Spec.ClusterIP == corev1.ClusterIPNone:
		return "", errors.New(`cannot route to service with ClusterIP "None"`)
	case !slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return strconv.Itoa(int(p.Port)) == port }):
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %s found for service %q", port, name))
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, port), nil
}
