package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/skiff-project/skiff/api"
)

func serviceResource() *api.Resource {
	return &api.Resource{
		Name: "services", Singular: "service", Kind: "Service",
		ShortNames:    []string{"svc"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.Service, corev1.ServiceList]("v1", defaultService)},
		StoragePrefix: "services/specs",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(s *corev1.Service) {
				s.Status = corev1.ServiceStatus{}
				NormalizeClusterIPs(s, nil)
			}),
			PrepareForUpdate: api.OnUpdate(prepareServiceUpdate),
			Validate:         api.Check(validateService),
			ValidateUpdate:   api.CheckUpdate(validateServiceUpdate),
			NameValid:        apivalidation.NameIsDNSLabel,
			Warnings:         api.Warn(serviceWarnings),
			Selectable: api.Select(func(s *corev1.Service) fields.Set {
				return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
			}),
			AllowCreateOnUpdate: true,
		},
		Subresources: []api.Subresource{
			{Name: "proxy", Verbs: proxyVerbs, Kind: "ServiceProxyOptions"},
			api.StatusView(func(s, old *corev1.Service) { s.Spec = old.Spec }, validateServiceStatusUpdate),
		},
		Columns: serviceColumns(),
		Cells:   api.Row(serviceCells),
	}
}

// NormalizeClusterIPs keeps clusterIP and clusterIPs alike for clients that
// know only the first. old is nil on create.
func NormalizeClusterIPs(s, old *corev1.Service) {
	now := &s.Spec
	if old == nil {
		if now.ClusterIP != "" && len(now.ClusterIPs) == 0 {
			now.ClusterIPs = []string{now.ClusterIP}
		}
		return
	}
	was := &old.Spec
	if len(now.ClusterIPs) == 0 && now.ClusterIP == was.ClusterIP {
		now.ClusterIPs = was.ClusterIPs
	}
	if now.ClusterIP == was.ClusterIP || !slices.Equal(now.ClusterIPs, was.ClusterIPs) {
		return
	}
	if now.ClusterIP == "" {
		now.ClusterIPs = nil
	} else {
		now.ClusterIPs = []string{now.ClusterIP}
	}
}

// KeepAllocated gives an updated service the addresses and ports it has already
// where the client left them out.
func KeepAllocated(s, old *corev1.Service) {
	now, was := &s.Spec, &old.Spec
	if was.Type != corev1.ServiceTypeExternalName && now.Type != corev1.ServiceTypeExternalName {
		api.SetIfEmpty(&now.ClusterIP, was.ClusterIP)
		if len(now.ClusterIPs) == 0 {
			now.ClusterIPs = was.ClusterIPs
		}
	}
	if NeedsNodePorts(old) && NeedsNodePorts(s) {
		keepNodePorts(now.Ports, was.Ports)
	}
	if NeedsHealthCheckPort(old) && NeedsHealthCheckPort(s) {
		api.SetIfEmpty(&now.HealthCheckNodePort, was.HealthCheckNodePort)
	}
}

func keepNodePorts(now, was []corev1.ServicePort) {
	byName, asked := map[string]int32{}, sets.Set[int32]{}
	for _, p := range now {
		asked.Insert(p.NodePort)
	}
	for _, p := range was {
		byName[p.Name] = p.NodePort
	}
	for i := range now {
		if port := byName[now[i].Name]; now[i].NodePort == 0 && !asked.Has(port) {
			now[i].NodePort = port
		}
	}
}

// NeedsNodePorts tells whether each port of a service gets a node port.
func NeedsNodePorts(s *corev1.Service) bool {
	a := s.Spec.AllocateLoadBalancerNodePorts
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer && (a == nil || *a)
}

// NeedsHealthCheckPort tells whether a service gets a port to probe its nodes on.
func NeedsHealthCheckPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func mayHaveNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func prepareServiceUpdate(s, old *corev1.Service) {
	s.Status = old.Status
	NormalizeClusterIPs(s, old)
	KeepAllocated(s, old)
	dropOfOldType(s, old)
}

// dropOfOldType clears what only the former type of the service had, unless
// the client changed it too.
func dropOfOldType(s, old *corev1.Service) {
	now, was := &s.Spec, &old.Spec
	if now.Type == corev1.ServiceTypeExternalName && was.Type != corev1.ServiceTypeExternalName {
		if now.ClusterIP == was.ClusterIP && slices.Equal(now.ClusterIPs, was.ClusterIPs) {
			now.ClusterIP, now.ClusterIPs = "", nil
		}
		if slices.Equal(now.IPFamilies, was.IPFamilies) {
			now.IPFamilies = nil
		}
		clearIfSame(&now.IPFamilyPolicy, was.IPFamilyPolicy)
	}
	if mayHaveNodePorts(old) && !mayHaveNodePorts(s) && nodePorts(old).IsSuperset(nodePorts(s)) {
		for i := range now.Ports {
			now.Ports[i].NodePort = 0
		}
	}
	if NeedsHealthCheckPort(old) && !NeedsHealthCheckPort(s) && now.HealthCheckNodePort == was.HealthCheckNodePort {
		now.HealthCheckNodePort = 0
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && now.Type != corev1.ServiceTypeLoadBalancer {
		clearIfSame(&now.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts)
		clearIfSame(&now.LoadBalancerClass, was.LoadBalancerClass)
	}
	if externallyAccessible(old) && !externallyAccessible(s) && now.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		now.ExternalTrafficPolicy = ""
	}
	if now.Type != corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
}

func nodePorts(s *corev1.Service) sets.Set[int32] {
	out := sets.Set[int32]{}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out.Insert(p.NodePort)
		}
	}
	return out
}

func clearIfSame[T comparable](now **T, was *T) {
	if *now != nil && was != nil && **now == *was {
		*now = nil
	}
}

func isHeadless(s *corev1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

func serviceWarnings(s, _ *corev1.Service) []string {
	var out []string
	warn := func(when bool, format string, args ...any) {
		if when {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	spec := &s.Spec
	_, hints := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	warn(hints, "annotation %s is deprecated, please use %s instead", corev1.DeprecatedAnnotationTopologyAwareHints, corev1.AnnotationTopologyMode)
	if isHeadless(s) {
		warn(spec.LoadBalancerIP != "", "spec.loadBalancerIP is ignored for headless services")
		warn(len(spec.ExternalIPs) > 0, "spec.externalIPs is ignored for headless services")
		warn(spec.SessionAffinity != corev1.ServiceAffinityNone, "spec.SessionAffinity is ignored for headless services")
	}
	external := spec.Type == corev1.ServiceTypeExternalName
	warn(len(spec.ExternalIPs) > 0 && !isHeadless(s) && !external, "spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	warn(external && len(spec.ExternalIPs) > 0, "spec.externalIPs is ignored when spec.type is %q", corev1.ServiceTypeExternalName)
	warn(!external && spec.ExternalName != "", "spec.externalName is ignored when spec.type is not %q", corev1.ServiceTypeExternalName)
	d := spec.TrafficDistribution
	warn(d != nil && *d == corev1.ServiceTrafficDistributionPreferClose, "spec.trafficDistribution: %q is deprecated; use %q", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone)
	return out
}

func serviceColumns() []metav1.TableColumnDefinition {
	doc := corev1.ServiceSpec{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		api.Column("Type", "string", doc["type"]),
		api.Column("Cluster-IP", "string", doc["clusterIP"]),
		api.Column("External-IP", "string", doc["externalIPs"]),
		api.Column("Port(s)", "string", doc["ports"]),
		api.AgeColumn(),
		api.Wide("Selector", doc["selector"]),
	}
}

func serviceCells(s *corev1.Service, now metav1.Time) []any {
	ip := "<none>"
	if len(s.Spec.ClusterIPs) > 0 {
		ip = s.Spec.ClusterIPs[0]
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		if p.NodePort > 0 {
			ports = append(ports, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		} else {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
	}
	return []any{s.Name, string(s.Spec.Type), ip, externalAddress(s), api.OrNone(ports), api.Age(s.CreationTimestamp, now), labels.FormatLabels(s.Spec.Selector)}
}

func externalAddress(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return api.OrNone(s.Spec.ExternalIPs)
	case corev1.ServiceTypeLoadBalancer:
		all := append(LoadBalancerAddresses(s.Status.LoadBalancer.Ingress), s.Spec.ExternalIPs...)
		if len(all) == 0 {
			return "<pending>"
		}
		return strings.Join(all, ",")
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	}
	return "<unknown>"
}

// LoadBalancerAddresses lists the addresses or names of ingress points, sorted.
func LoadBalancerAddresses(points []corev1.LoadBalancerIngress) []string {
	out := sets.Set[string]{}
	for _, p := range points {
		if p.IP != "" {
			out.Insert(p.IP)
		} else if p.Hostname != "" {
			out.Insert(p.Hostname)
		}
	}
	return sets.List(out)
}
