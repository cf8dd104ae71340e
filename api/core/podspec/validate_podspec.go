// Package podspec holds the defaults, validation and warnings of pods and of
// the pod templates in other resources: what the groups with workloads share.
package podspec

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// CheckPodTemplate checks a pod template at a path.
func CheckPodTemplate(l *check.List, p *field.Path, t *corev1.PodTemplateSpec) {
	l.Labels(p.Child("labels"), t.Labels)
	l.Annotations(p.Child("annotations"), t.Annotations)
	checkPodAnnotations(l, p.Child("annotations"), &t.ObjectMeta, &t.Spec)
	checkPodSpec(l, p.Child("spec"), &t.Spec, nil)
	if len(t.Spec.EphemeralContainers) > 0 {
		l.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
}

// CheckPod checks what holds for a pod at any time.
func CheckPod(l *check.List, p *corev1.Pod) {
	spec := field.NewPath("spec")
	checkPodAnnotations(l, field.NewPath("metadata", "annotations"), &p.ObjectMeta, &p.Spec)
	checkPodSpec(l, spec, &p.Spec, &p.ObjectMeta)
	if p.Spec.ServiceAccountName == "" {
		for i, v := range p.Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for j, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					l.Forbidden(spec.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"), "must not be specified when serviceAccountName is not set")
				}
			}
		}
	}
	if t := p.Spec.TerminationGracePeriodSeconds; t != nil {
		l.Nonnegative(spec.Child("terminationGracePeriodSeconds"), *t)
	}
	for i := range p.Spec.Containers {
		CheckImageSpace(l, spec.Child("containers").Index(i), &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		CheckImageSpace(l, spec.Child("initContainers").Index(i), &p.Spec.InitContainers[i])
	}
}

func checkPodAnnotations(l *check.List, p *field.Path, meta *metav1.ObjectMeta, s *corev1.PodSpec) {
	if v, ok := meta.Annotations[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		l.Invalid(p.Key(corev1.MirrorPodAnnotationKey), v, "must set spec.nodeName if mirror pod annotation is set")
	}
	if v, ok := meta.Annotations[corev1.PodDeletionCost]; ok && !isCost(v) {
		l.Invalid(p.Key(corev1.PodDeletionCost), v, "must be a 32bit integer")
	}
}

// isCost tells whether a text is a 32-bit integer written plainly.
func isCost(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	return err == nil && strconv.FormatInt(n, 10) == s
}

// checkPodSpec checks the spec of a pod; meta is nil in templates.
func checkPodSpec(l *check.List, p *field.Path, s *corev1.PodSpec, meta *metav1.ObjectMeta) {
	if s.TerminationGracePeriodSeconds == nil {
		l.Required(p.Child("terminationGracePeriodSeconds"), "")
	}
	scope := &podScope{spec: s, isPod: meta != nil, claims: sets.Set[string]{}}
	scope.volumes = checkVolumes(l, p.Child("volumes"), s.Volumes, meta)
	scope.checkClaims(l, p.Child("resourceClaims"), meta)
	scope.checkContainers(l, p.Child("containers"))
	scope.checkInitContainers(l, p.Child("initContainers"))
	scope.checkEphemeralContainers(l, p.Child("ephemeralContainers"))
	checkPodResources(l, p, s, scope.claims)
	scope.checkHostNetworkPorts(l, p.Child("containers"))
	check.Choice(l, p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	check.Choice(l, p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	l.Labels(p.Child("nodeSelector"), s.NodeSelector)
	checkPodSecurityContext(l, p.Child("securityContext"), s)
	if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID {
		l.Invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	checkAffinity(l, p.Child("affinity"), s.Affinity)
	checkDNSConfig(l, p.Child("dnsConfig"), s)
	for i, g := range s.ReadinessGates {
		l.QualifiedName(p.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType))
	}
	checkGates(l, p.Child("schedulingGates"), s.SchedulingGates)
	checkSpread(l, p.Child("topologySpreadConstraints"), s.TopologySpreadConstraints)
	checkHostUsers(l, p, s)
	checkHostname(l, p, s)
	checkPodRefs(l, p, s)
	CheckTolerations(l, p.Child("tolerations"), s.Tolerations)
	for i, a := range s.HostAliases {
		at := p.Child("hostAliases").Index(i)
		l.IP(at.Child("ip"), a.IP)
		for j, h := range a.Hostnames {
			l.Subdomain(at.Child("hostnames").Index(j), h)
		}
	}
	checkRequirements(l, p.Child("overhead"), &corev1.ResourceRequirements{Limits: s.Overhead}, CheckContainerResourceName, nil)
	checkOS(l, p, s)
	checkFileKeyVolumes(l, p, s)
}

// checkPodRefs checks what a pod refers to by name, and its deadline.
func checkPodRefs(l *check.List, p *field.Path, s *corev1.PodSpec) {
	subdomain := func(name, value string) {
		if value != "" {
			l.Messages(p.Child(name), value, apivalidation.NameIsDNSSubdomain(value, false))
		}
	}
	subdomain("serviceAccountName", s.ServiceAccountName)
	subdomain("nodeName", s.NodeName)
	if d := s.ActiveDeadlineSeconds; d != nil {
		l.Range(p.Child("activeDeadlineSeconds"), *d, 1, math.MaxInt32)
	}
	if s.Hostname != "" {
		l.Label(p.Child("hostname"), s.Hostname)
	}
	if s.Subdomain != "" {
		l.Label(p.Child("subdomain"), s.Subdomain)
	}
	subdomain("priorityClassName", s.PriorityClassName)
	if s.RuntimeClassName != nil {
		l.Messages(p.Child("runtimeClassName"), *s.RuntimeClassName, apivalidation.NameIsDNSSubdomain(*s.RuntimeClassName, false))
	}
	if s.PreemptionPolicy != nil {
		check.Choice(l, p.Child("preemptionPolicy"), *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
}

func (s *podScope) checkClaims(l *check.List, p *field.Path, meta *metav1.ObjectMeta) {
	for i, c := range s.spec.ResourceClaims {
		at := p.Index(i)
		if meta != nil && meta.Annotations[corev1.MirrorPodAnnotationKey] != "" {
			l.Forbidden(field.NewPath(""), "static pods do not support resource claims")
			continue
		}
		switch {
		case c.Name == "":
			l.Required(at.Child("name"), "")
		case s.claims.Has(c.Name):
			l.Duplicate(at.Child("name"), c.Name)
		default:
			l.Label(at.Child("name"), c.Name)
			s.claims.Insert(c.Name)
		}
		switch byName, byTemplate := c.ResourceClaimName, c.ResourceClaimTemplateName; {
		case byName != nil && byTemplate != nil:
			l.Invalid(at, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case byName == nil && byTemplate == nil:
			l.Invalid(at, c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		case byName != nil:
			l.Messages(at.Child("resourceClaimName"), *byName, apivalidation.NameIsDNSSubdomain(*byName, false))
		default:
			l.Messages(at.Child("resourceClaimTemplateName"), *byTemplate, apivalidation.NameIsDNSSubdomain(*byTemplate, false))
		}
	}
}

func (s *podScope) checkHostNetworkPorts(l *check.List, p *field.Path) {
	if !s.spec.HostNetwork {
		return
	}
	for i := range s.spec.Containers {
		for j, port := range s.spec.Containers[i].Ports {
			if (s.isPod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
				l.Invalid(p.Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
			}
		}
	}
}

func checkGates(l *check.List, p *field.Path, gates []corev1.PodSchedulingGate) {
	seen := sets.Set[string]{}
	for i, g := range gates {
		l.QualifiedName(p.Index(i), g.Name)
		if seen.Has(g.Name) {
			l.Duplicate(p.Index(i), g.Name)
		}
		seen.Insert(g.Name)
	}
}

func checkDNSConfig(l *check.List, p *field.Path, s *corev1.PodSpec) {
	c := s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone {
		if c == nil {
			l.Required(p, fmt.Sprintf("must provide `dnsConfig` when `dnsPolicy` is %s", corev1.DNSNone))
			return
		}
		if len(c.Nameservers) == 0 {
			l.Required(p.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone))
			return
		}
	}
	if c == nil {
		return
	}
	const maxServers, maxSearches, maxChars = 3, 32, 2048
	if len(c.Nameservers) > maxServers {
		l.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxServers))
	}
	for i, ns := range c.Nameservers {
		l.IP(p.Child("nameservers").Index(i), ns)
	}
	if len(c.Searches) > maxSearches {
		l.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	if len(strings.Join(c.Searches, " ")) > maxChars {
		l.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxChars))
	}
	for i, search := range c.Searches {
		if search != "." {
			search = strings.TrimSuffix(search, ".")
			l.Messages(p.Child("searches").Index(i), search, validation.IsDNS1123SubdomainWithUnderscore(search))
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			l.Required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

func checkHostUsers(l *check.List, p *field.Path, s *corev1.PodSpec) {
	if s.HostUsers == nil || *s.HostUsers {
		return
	}
	const when = "when `hostUsers` is false"
	l.ForbidIf(p.Child("hostNetwork"), s.HostNetwork, when)
	l.ForbidIf(p.Child("HostPID"), s.HostPID, when)
	l.ForbidIf(p.Child("HostIPC"), s.HostIPC, when)
	eachContainerPath(s, p, func(c *corev1.Container, at *field.Path) {
		l.ForbidIf(at.Child("volumeDevices"), len(c.VolumeDevices) > 0, when)
	})
}

func checkHostname(l *check.List, p *field.Path, s *corev1.PodSpec) {
	if s.HostnameOverride == nil {
		return
	}
	at := p.Child("hostnameOverride")
	l.ForbidIf(at, s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN, "may not be specified when setHostnameAsFQDN is true")
	l.ForbidIf(at, s.HostNetwork, "may not be specified when hostNetwork is true")
	if len(*s.HostnameOverride) > 64 {
		l.TooLong(at, 64)
	}
	l.Subdomain(at, *s.HostnameOverride)
}

// checkOS forbids what the operating system a pod names does not have.
func checkOS(l *check.List, p *field.Path, s *corev1.PodSpec) {
	switch {
	case s.OS == nil:
	case s.OS.Name == "":
		l.Required(p.Child("os", "name"), "")
	case s.OS.Name == corev1.Linux:
		const not = "windows options cannot be set for a linux pod"
		l.ForbidIf(p.Child("securityContext", "windowsOptions"), s.SecurityContext != nil && s.SecurityContext.WindowsOptions != nil, not)
		eachContainerPath(s, p, func(c *corev1.Container, at *field.Path) {
			l.ForbidIf(at.Child("securityContext", "windowsOptions"), c.SecurityContext != nil && c.SecurityContext.WindowsOptions != nil, not)
		})
	case s.OS.Name == corev1.Windows:
		checkWindows(l, p, s)
	default:
		check.OneOf(l, p.Child("os"), s.OS.Name, corev1.Linux, corev1.Windows)
	}
}

func checkWindows(l *check.List, p *field.Path, s *corev1.PodSpec) {
	const not = "cannot be set for a windows pod"
	if s.SecurityContext != nil {
		checkAllowed(l, p.Child("securityContext"), *s.SecurityContext, sets.New("WindowsOptions", "RunAsNonRoot"), not)
	}
	l.ForbidIf(p.Child("hostUsers"), s.HostUsers != nil, not)
	l.ForbidIf(p.Child("hostPID"), s.HostPID, not)
	l.ForbidIf(p.Child("hostIPC"), s.HostIPC, not)
	l.ForbidIf(p.Child("shareProcessNamespace"), s.ShareProcessNamespace != nil, not)
	eachContainerPath(s, p, func(c *corev1.Container, at *field.Path) {
		if c.SecurityContext != nil {
			checkAllowed(l, at.Child("securityContext"), *c.SecurityContext, sets.New("WindowsOptions", "RunAsNonRoot"), not)
		}
	})
}

func checkFileKeyVolumes(l *check.List, p *field.Path, s *corev1.PodSpec) {
	volumes := map[string]*corev1.Volume{}
	for i := range s.Volumes {
		volumes[s.Volumes[i].Name] = &s.Volumes[i]
	}
	eachContainerPath(s, p, func(c *corev1.Container, at *field.Path) {
		for i, e := range c.Env {
			if e.ValueFrom == nil || e.ValueFrom.FileKeyRef == nil {
				continue
			}
			name, path := e.ValueFrom.FileKeyRef.VolumeName, at.Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName")
			if v := volumes[name]; v == nil {
				l.NotFound(path, name)
			} else if v.EmptyDir == nil {
				l.Invalid(path, name, "referenced volume must be of type emptyDir")
			}
		}
	})
}

// eachContainerPath calls f with every container and its path.
func eachContainerPath(s *corev1.PodSpec, p *field.Path, f func(*corev1.Container, *field.Path)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i], p.Child("initContainers").Index(i))
	}
	for i := range s.Containers {
		f(&s.Containers[i], p.Child("containers").Index(i))
	}
	for i := range s.EphemeralContainers {
		f((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon), p.Child("ephemeralContainers").Index(i))
	}
}
