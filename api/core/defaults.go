package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/core/podspec"
)

// DefaultVolumeSource fills the unset fields of a persistent volume's source,
// which volume attachments may carry inline too.
func DefaultVolumeSource(s *corev1.PersistentVolumeSource) {
	if s.HostPath != nil {
		api.SetIfNil(&s.HostPath.Type, corev1.HostPathUnset)
	}
	if s.ISCSI != nil {
		api.SetIfEmpty(&s.ISCSI.ISCSIInterface, "default")
	}
	if s.RBD != nil {
		api.SetIfEmpty(&s.RBD.RBDPool, "rbd")
		api.SetIfEmpty(&s.RBD.RadosUser, "admin")
		api.SetIfEmpty(&s.RBD.Keyring, "/etc/ceph/keyring")
	}
	if s.AzureDisk != nil {
		podspec.DefaultAzureDisk(s.AzureDisk)
	}
	if s.ScaleIO != nil {
		api.SetIfEmpty(&s.ScaleIO.StorageMode, "ThinProvisioned")
		api.SetIfEmpty(&s.ScaleIO.FSType, "xfs")
	}
}

// DefaultVolumeSpec fills the quantities and source of a persistent volume's spec.
func DefaultVolumeSpec(s *corev1.PersistentVolumeSpec) {
	podspec.RoundResources(s.Capacity)
	DefaultVolumeSource(&s.PersistentVolumeSource)
}

func defaultPersistentVolume(v *corev1.PersistentVolume) {
	api.SetIfEmpty(&v.Status.Phase, corev1.VolumePending)
	api.SetIfEmpty(&v.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	api.SetIfNil(&v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	DefaultVolumeSpec(&v.Spec)
}

// DefaultPersistentVolumeClaim fills the unset fields of a claim; stateful
// sets default their claim templates with it.
func DefaultPersistentVolumeClaim(c *corev1.PersistentVolumeClaim) {
	api.SetIfEmpty(&c.Status.Phase, corev1.ClaimPending)
	podspec.DefaultClaimSpec(&c.Spec)
	podspec.RoundResources(c.Status.Capacity)
	podspec.RoundResources(c.Status.AllocatedResources)
}

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	api.SetIfEmpty(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		c := spec.SessionAffinityConfig
		if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout},
			}
		}
	}
	api.SetIfEmpty(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		api.SetIfEmpty(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) {
		api.SetIfEmpty(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	switch spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeClusterIP:
		api.SetIfNil(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		api.SetIfNil(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				api.SetIfNil(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

// externallyAccessible tells whether traffic from outside the cluster may
// arrive at the service.
func externallyAccessible(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		return true
	}
	return s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func defaultNamespace(n *corev1.Namespace) {
	if n.Name != "" {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
	api.SetIfEmpty(&n.Status.Phase, corev1.NamespaceActive)
}

// defaultNode also keeps podCIDR and podCIDRs alike; podCIDR wins.
func defaultNode(n *corev1.Node) {
	switch s := &n.Spec; {
	case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
		s.PodCIDR = s.PodCIDRs[0]
	case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
		s.PodCIDRs = []string{s.PodCIDR}
	}
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	podspec.RoundResources(n.Status.Capacity)
	podspec.RoundResources(n.Status.Allocatable)
}

func defaultEndpoints(e *corev1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			api.SetIfEmpty(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

func defaultConfigMap(c *corev1.ConfigMap) {
	if c.Data == nil {
		c.Data = map[string]string{}
	}
}

// defaultSecret also moves stringData, which is for writing only, into data.
func defaultSecret(s *corev1.Secret) {
	api.SetIfEmpty(&s.Type, corev1.SecretTypeOpaque)
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for k, v := range s.StringData {
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}

func defaultReplicationController(rc *corev1.ReplicationController) {
	api.SetIfNil(&rc.Spec.Replicas, 1)
	if rc.Spec.Template == nil {
		return
	}
	podspec.DefaultPodTemplate(rc.Spec.Template)
	if labels := rc.Spec.Template.Labels; labels != nil {
		if len(rc.Spec.Selector) == 0 {
			rc.Spec.Selector = labels
		}
		if len(rc.Labels) == 0 {
			rc.Labels = labels
		}
	}
}

func defaultResourceQuota(q *corev1.ResourceQuota) {
	podspec.RoundResources(q.Spec.Hard)
	podspec.RoundResources(q.Status.Hard)
	podspec.RoundResources(q.Status.Used)
}

// defaultLimitRange derives default limits from max, and default requests from
// default limits and min, for container limits.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		it := &l.Spec.Limits[i]
		if it.Type == corev1.LimitTypeContainer {
			if it.Default == nil {
				it.Default = corev1.ResourceList{}
			}
			if it.DefaultRequest == nil {
				it.DefaultRequest = corev1.ResourceList{}
			}
			podspec.FillFrom(it.Default, it.Max)
			podspec.FillFrom(it.DefaultRequest, it.Default)
			podspec.FillFrom(it.DefaultRequest, it.Min)
		}
		for _, list := range []corev1.ResourceList{it.Max, it.Min, it.Default, it.DefaultRequest, it.MaxLimitRequestRatio} {
			podspec.RoundResources(list)
		}
	}
}
