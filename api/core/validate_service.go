package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

func validateService(s *corev1.Service) field.ErrorList {
	l := &check.List{}
	checkService(l, s, nil)
	return l.Errors
}

func validateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	l := &check.List{}
	if s.Spec.Type != corev1.ServiceTypeExternalName && old.Spec.Type != corev1.ServiceTypeExternalName {
		checkClusterIPChange(l, s, old)
		checkFamilyChange(l, s, old)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer {
		if now, was := s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass; (now == nil) != (was == nil) || now != nil && *now != *was {
			l.Invalid(specPath.Child("loadBalancerClass"), now, "may not change once set")
		}
	}
	if NeedsHealthCheckPort(s) && NeedsHealthCheckPort(old) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		l.Forbidden(specPath.Child("healthCheckNodePort"), "field is immutable")
	}
	checkService(l, s, old)
	return l.Errors
}

func checkClusterIPChange(l *check.List, s, old *corev1.Service) {
	if isHeadless(s) && isHeadless(old) {
		return
	}
	now, was := s.Spec.ClusterIPs, old.Spec.ClusterIPs
	at := specPath.Child("clusterIPs")
	switch {
	case len(now) == len(was):
		for i := range was {
			if now[i] != was[i] {
				l.Invalid(at.Index(i), now, "may not change once set")
			}
		}
	case len(now) == 0:
		l.Invalid(at.Index(0), now, "primary clusterIP can not be unset")
	case len(was) > 0 && now[0] != was[0]:
		l.Invalid(at.Index(0), now, "may not change once set")
	}
	if len(was) > len(now) && len(now) == 1 && !singleStack(s) {
		l.Invalid(specPath.Child("ipFamilyPolicy"), s.Spec.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary clusterIP")
	}
}

func singleStack(s *corev1.Service) bool {
	return s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
}

func checkFamilyChange(l *check.List, s, old *corev1.Service) {
	if isHeadless(s) || isHeadless(old) {
		return
	}
	now, was := s.Spec.IPFamilies, old.Spec.IPFamilies
	at := specPath.Child("ipFamilies").Index(0)
	switch {
	case len(now) == len(was):
		if !slices.Equal(now, was) {
			l.Invalid(at, now, "may not change once set")
		}
	case len(now) == 0:
		l.Invalid(at, now, "primary ipFamily can not be unset")
	case len(was) > 0 && now[0] != was[0]:
		l.Invalid(at, s.Spec.ClusterIPs, "may not change once set")
	}
	if len(was) > len(now) && len(now) == 1 && !singleStack(s) {
		l.Invalid(specPath.Child("ipFamilyPolicy"), s.Spec.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary ipFamily")
	}
}

func checkService(l *check.List, s, old *corev1.Service) {
	spec := &s.Spec
	external := spec.Type == corev1.ServiceTypeExternalName
	if hints, mode := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints], s.Annotations[corev1.AnnotationTopologyMode]; hints != "" && mode != "" && hints != mode {
		l.Invalid(field.NewPath("metadata", "annotations").Key(corev1.AnnotationTopologyMode), mode, fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints))
	}
	if len(spec.Ports) == 0 && !isHeadless(s) && !external {
		l.Required(specPath.Child("ports"), "")
	}
	if mayHaveNodePorts(s) && isHeadless(s) {
		l.Invalid(specPath.Child("clusterIPs").Index(0), spec.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", spec.Type))
	}
	if external {
		checkExternalName(l, spec)
	}
	names := sets.Set[string]{}
	for i := range spec.Ports {
		checkServicePort(l, specPath.Child("ports").Index(i), &spec.Ports[i], len(spec.Ports) > 1, names)
	}
	if spec.Selector != nil {
		l.Labels(specPath.Child("selector"), spec.Selector)
	}
	check.Choice(l, specPath.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	checkSessionAffinity(l, specPath.Child("sessionAffinityConfig"), spec)
	if !external {
		checkClusterIPs(l, spec)
	}
	for i, ip := range spec.ExternalIPs {
		at := specPath.Child("externalIPs").Index(i)
		errs := validation.IsValidIPForLegacyField(at, ip, true, oldExternalIPs(old))
		l.Add(errs)
		if len(errs) == 0 {
			checkEndpointIP(l, at, ip)
		}
	}
	check.Choice(l, specPath.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	checkPortNumbers(l, spec)
	checkLoadBalancer(l, s)
	checkTraffic(l, s)
}

func oldExternalIPs(old *corev1.Service) []string {
	if old == nil {
		return nil
	}
	return old.Spec.ExternalIPs
}

func checkExternalName(l *check.List, spec *corev1.ServiceSpec) {
	const not = "may not be set for ExternalName services"
	l.ForbidIf(specPath.Child("clusterIPs"), len(spec.ClusterIPs) > 0, not)
	l.ForbidIf(specPath.Child("ipFamilies"), len(spec.IPFamilies) > 0, not)
	l.ForbidIf(specPath.Child("ipFamilyPolicy"), spec.IPFamilyPolicy != nil, not)
	if cname := strings.TrimSuffix(spec.ExternalName, "."); cname == "" {
		l.Required(specPath.Child("externalName"), "")
	} else {
		l.Subdomain(specPath.Child("externalName"), cname)
	}
}

func checkServicePort(l *check.List, p *field.Path, port *corev1.ServicePort, needName bool, names sets.Set[string]) {
	if needName && port.Name == "" {
		l.Required(p.Child("name"), "")
	} else if port.Name != "" {
		l.Label(p.Child("name"), port.Name)
		if names.Has(port.Name) {
			l.Duplicate(p.Child("name"), port.Name)
		}
		names.Insert(port.Name)
	}
	l.Port(p.Child("port"), port.Port)
	check.Choice(l, p.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	l.PortNumOrName(p.Child("targetPort"), port.TargetPort)
	if port.AppProtocol != nil {
		l.QualifiedName(p.Child("appProtocol"), *port.AppProtocol)
	}
}

func checkSessionAffinity(l *check.List, p *field.Path, spec *corev1.ServiceSpec) {
	c := spec.SessionAffinityConfig
	when := fmt.Sprintf("when session affinity type is %s", corev1.ServiceAffinityClientIP)
	switch {
	case spec.SessionAffinity == corev1.ServiceAffinityNone:
		l.ForbidIf(p, c != nil, fmt.Sprintf("must not be set when session affinity is %s", corev1.ServiceAffinityNone))
	case spec.SessionAffinity != corev1.ServiceAffinityClientIP:
	case c == nil:
		l.Required(p, when)
	case c.ClientIP == nil:
		l.Required(p.Child("clientIP"), when)
	case c.ClientIP.TimeoutSeconds == nil:
		l.Required(p.Child("clientIP", "timeoutSeconds"), when)
	default:
		if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > 86400 {
			l.Invalid(p.Child("clientIP", "timeoutSeconds"), &t, "must be greater than 0 and less than 86400")
		}
	}
}

func checkClusterIPs(l *check.List, spec *corev1.ServiceSpec) {
	at, families := specPath.Child("clusterIPs"), specPath.Child("ipFamilies")
	switch {
	case spec.ClusterIP == "" && len(spec.ClusterIPs) != 0:
		l.Invalid(at, spec.ClusterIPs, "must be empty when `clusterIP` is not specified")
	case spec.ClusterIP != "" && len(spec.ClusterIPs) == 0:
		l.Required(at, "")
	case spec.ClusterIP != "" && spec.ClusterIPs[0] != spec.ClusterIP:
		l.Invalid(at, spec.ClusterIPs, "first value must match `clusterIP`")
	}
	seen := sets.Set[corev1.IPFamily]{}
	for i, f := range spec.IPFamilies {
		check.OneOf(l, families.Index(i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)
		if seen.Has(f) {
			l.Duplicate(families.Index(i), f)
		}
		seen.Insert(f)
	}
	if p := spec.IPFamilyPolicy; p != nil {
		check.OneOf(l, specPath.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)
	}
	bad := len(l.Errors)
	for i, ip := range spec.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(spec.ClusterIPs) > 1 {
				l.Invalid(at, spec.ClusterIPs, "'None' must be the first and only value")
			}
			continue
		}
		l.IP(at.Index(i), ip)
	}
	invalid := len(l.Errors) > bad
	if len(spec.ClusterIPs) > 2 {
		l.Invalid(at, spec.ClusterIPs, "may only hold up to 2 values")
	}
	if invalid {
		return
	}
	if len(spec.ClusterIPs) > 1 && isIPv6(spec.ClusterIPs[0]) == isIPv6(spec.ClusterIPs[1]) {
		l.Invalid(at, spec.ClusterIPs, "may specify no more than one IP for each IP family")
	}
	for i, ip := range spec.ClusterIPs {
		if i >= len(spec.IPFamilies) || ip == corev1.ClusterIPNone {
			break
		}
		if want := spec.IPFamilies[i]; isIPv6(ip) != (want == corev1.IPv6Protocol) {
			l.Invalid(at.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%v]`", want, i))
		}
	}
}

// portKey is what users are shown of a port that is there twice.
type portKey struct {
	Name        string
	Protocol    corev1.Protocol
	AppProtocol *string
	Port        int32
	TargetPort  int32
	NodePort    int32
}

func checkPortNumbers(l *check.List, spec *corev1.ServiceSpec) {
	ports := specPath.Child("ports")
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, p := range spec.Ports {
			l.ForbidIf(ports.Index(i).Child("nodePort"), p.NodePort != 0, "may not be used when `type` is 'ClusterIP'")
		}
	}
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	nodes, own := map[key]bool{}, map[key]bool{}
	for i, p := range spec.Ports {
		if k := (key{p.Protocol, p.NodePort}); p.NodePort != 0 {
			if nodes[k] {
				l.Duplicate(ports.Index(i).Child("nodePort"), p.NodePort)
			}
			nodes[k] = true
		}
	}
	for i, p := range spec.Ports {
		k := key{p.Protocol, p.Port}
		if own[k] {
			l.Duplicate(ports.Index(i), portKey{Protocol: p.Protocol, Port: p.Port})
		}
		own[k] = true
	}
}

func checkLoadBalancer(l *check.List, s *corev1.Service) {
	spec, balanced := &s.Spec, s.Spec.Type == corev1.ServiceTypeLoadBalancer
	const only = "may only be used when `type` is 'LoadBalancer'"
	if ranges := spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		at := specPath.Child("LoadBalancerSourceRanges")
		l.ForbidIf(at, !balanced, only)
		for i, r := range ranges {
			l.Add(validation.IsValidCIDRForLegacyField(at.Index(i), strings.TrimSpace(r), true, nil))
		}
	} else if val, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; ok {
		at := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
		l.ForbidIf(at, !balanced, only)
		if val = strings.TrimSpace(val); val != "" {
			for _, r := range strings.Split(val, ",") {
				l.Add(validation.IsValidCIDRForLegacyField(at, strings.TrimSpace(r), true, nil))
			}
		}
	}
	l.ForbidIf(specPath.Child("allocateLoadBalancerNodePorts"), spec.AllocateLoadBalancerNodePorts != nil && !balanced, only)
	if c := spec.LoadBalancerClass; c != nil {
		if balanced {
			l.QualifiedName(specPath.Child("loadBalancerClass"), *c)
		} else {
			l.Forbidden(specPath.Child("loadBalancerClass"), only)
		}
	}
}

func checkTraffic(l *check.List, s *corev1.Service) {
	spec := &s.Spec
	at := specPath.Child("externalTrafficPolicy")
	if externallyAccessible(s) {
		check.Choice(l, at, spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	} else if spec.ExternalTrafficPolicy != "" {
		l.Invalid(at, spec.ExternalTrafficPolicy, "may only be set for externally-accessible services")
	}
	at = specPath.Child("healthCheckNodePort")
	switch { // a service that needs the port and has none gets one
	case spec.HealthCheckNodePort == 0:
	case NeedsHealthCheckPort(s):
		l.Port(at, spec.HealthCheckNodePort)
	default:
		l.Invalid(at, spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
	}
	at = specPath.Child("internalTrafficPolicy")
	switch p := spec.InternalTrafficPolicy; {
	case p != nil:
		check.OneOf(l, at, *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	case mayHaveNodePorts(s) || spec.Type == corev1.ServiceTypeClusterIP:
		l.Required(at, "")
	}
	if d := spec.TrafficDistribution; d != nil {
		check.OneOf(l, specPath.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
}

// checkEndpointIP forbids addresses that would point traffic at the node itself or nowhere.
func checkEndpointIP(l *check.List, p *field.Path, s string) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		l.Invalid(p, s, "must be a valid IP address")
		return
	}
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified():
		l.Invalid(p, s, fmt.Sprintf("may not be unspecified (%v)", s))
	case ip.IsLoopback():
		l.Invalid(p, s, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		l.Invalid(p, s, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		l.Invalid(p, s, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

func validateServiceStatusUpdate(s, _ *corev1.Service) field.ErrorList {
	l := &check.List{}
	at := statusPath.Child("loadBalancer", "ingress")
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		l.ForbidIf(at, len(s.Status.LoadBalancer.Ingress) != 0, "may only be used when `spec.type` is 'LoadBalancer'")
		return l.Errors
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		p := at.Index(i)
		if in.IP != "" {
			l.IP(p.Child("ip"), in.IP)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			l.Required(p.Child("ipMode"), "must be specified when `ip` is set")
		case in.IPMode != nil && in.IP == "":
			l.Forbidden(p.Child("ipMode"), "may not be specified when `ip` is not set")
		case in.IPMode != nil:
			check.OneOf(l, p.Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)
		}
		if in.Hostname != "" {
			l.Messages(p.Child("hostname"), in.Hostname, validation.IsDNS1123Subdomain(in.Hostname))
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				l.Invalid(p.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
			}
		}
	}
	return l.Errors
}

func isIPv6(ip string) bool { return strings.Contains(ip, ":") }
