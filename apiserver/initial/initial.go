// Package initial lists the objects every cluster has from its first moment:
// what they are, not how they are stored.
package initial

import (
	"encoding/json"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Namespaces are the namespaces that must not be missing.
func Namespaces() []string {
	return []string{"default", "kube-system", "kube-public", "kube-node-lease"}
}

// PriorityClasses are the classes of what the cluster itself is made of.
func PriorityClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-node-critical"}, Value: 2000001000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-cluster-critical"}, Value: 2000000000,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

// ServiceCIDR stands for the range the server was configured with.
func ServiceCIDR(name string, p netip.Prefix) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{p.Masked().String()}}}
}

func kubernetes() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault}
}

// Service is default/kubernetes, by which pods find the API server.
func Service(ip netip.Addr, port int32) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: kubernetes(), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()}, SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(port)}},
	}}
	svc.Labels = map[string]string{"provider": "kubernetes", "component": "apiserver"}
	return svc
}

// Endpoints are those of default/kubernetes, one for each server.
func Endpoints(addresses []netip.Addr, port int32) *corev1.Endpoints { //nolint:staticcheck // served as long as upstream serves it
	eps := &corev1.Endpoints{ObjectMeta: kubernetes(), Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // as above
		Ports: []corev1.EndpointPort{{Name: "https", Port: port, Protocol: corev1.ProtocolTCP}}, //nolint:staticcheck // as above
	}}}
	for _, a := range addresses {
		sub := &eps.Subsets[0]
		sub.Addresses = append(sub.Addresses, corev1.EndpointAddress{IP: a.String()}) //nolint:staticcheck // as above
	}
	eps.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	return eps
}

// EndpointSlice is that of default/kubernetes, with one endpoint for each server.
func EndpointSlice(addresses []netip.Addr, port int32) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if len(addresses) > 0 && addresses[0].Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	name, proto, ready := "https", corev1.ProtocolTCP, true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: kubernetes(), AddressType: family,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for _, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "kubernetes"}
	return slice
}

// AuthConfig tells aggregated servers how users are authenticated: the CA of
// clients and that of front proxies (both PEM, empty: none) with the names
// those may have. Nil when there is nothing to tell.
func AuthConfig(clientCA, proxyCA []byte, proxyNames []string) *corev1.ConfigMap {
	data := map[string]string{}
	if len(clientCA) > 0 {
		data["client-ca-file"] = string(clientCA)
	}
	if len(proxyCA) > 0 {
		list := func(v ...string) string { b, _ := json.Marshal(v); return string(b) }
		data["requestheader-client-ca-file"] = string(proxyCA)
		data["requestheader-username-headers"] = list("X-Remote-User")
		data["requestheader-uid-headers"] = list("X-Remote-Uid")
		data["requestheader-group-headers"] = list("X-Remote-Group")
		data["requestheader-extra-headers-prefix"] = list("X-Remote-Extra-")
		data["requestheader-allowed-names"] = list(append([]string{}, proxyNames...)...)
	}
	if len(data) == 0 {
		return nil
	}
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "extension-apiserver-authentication", Namespace: metav1.NamespaceSystem}, Data: data}
}
