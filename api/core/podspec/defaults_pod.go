package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
)

// DefaultPodTemplate fills the unset fields of a pod template as upstream does
// for every kind that has one.
func DefaultPodTemplate(t *corev1.PodTemplateSpec) { DefaultPodSpec(&t.Spec) }

// DefaultPodSpec fills the unset fields of a pod spec that are defaulted in
// templates and pods alike.
func DefaultPodSpec(s *corev1.PodSpec) {
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	s.DeprecatedServiceAccount = s.ServiceAccountName
	api.SetIfEmpty(&s.DNSPolicy, corev1.DNSClusterFirst)
	api.SetIfEmpty(&s.RestartPolicy, corev1.RestartPolicyAlways)
	api.SetIfEmpty(&s.SchedulerName, corev1.DefaultSchedulerName)
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	api.SetIfNil(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		defaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
	RoundResources(s.Overhead)
	if s.Resources != nil {
		RoundResources(s.Resources.Limits)
		RoundResources(s.Resources.Requests)
	}
}

// DefaultPod fills the fields defaulted in pods only.
func DefaultPod(p *corev1.Pod) {
	DefaultPodSpec(&p.Spec)
	s := &p.Spec
	if *s.TerminationGracePeriodSeconds < 0 {
		s.TerminationGracePeriodSeconds = ptr.To[int64](1)
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			defaultRequests(&list[i].Resources)
			if s.HostNetwork {
				defaultHostPorts(list[i].Ports)
			}
		}
	}
	api.SetIfNil(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	defaultPodIPs(&p.Status)
	for _, list := range [][]corev1.ContainerStatus{
		p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses,
	} {
		for i := range list {
			RoundResources(list[i].AllocatedResources)
			if r := list[i].Resources; r != nil {
				RoundResources(r.Limits)
				RoundResources(r.Requests)
			}
		}
	}
}

func defaultRequests(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		return
	}
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	FillFrom(r.Requests, r.Limits)
}

// FillFrom adds to dst what only src has.
func FillFrom(dst, src corev1.ResourceList) {
	for name, q := range src {
		if _, ok := dst[name]; !ok {
			dst[name] = q.DeepCopy()
		}
	}
}

func defaultHostPorts(ports []corev1.ContainerPort) {
	for i := range ports {
		if ports[i].HostPort == 0 {
			ports[i].HostPort = ports[i].ContainerPort
		}
	}
}

// defaultPodIPs keeps podIP and podIPs alike; podIP wins.
func defaultPodIPs(s *corev1.PodStatus) {
	switch {
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
}

func defaultContainer(c *corev1.Container) {
	api.SetIfEmpty(&c.ImagePullPolicy, pullPolicy(c.Image))
	api.SetIfEmpty(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	api.SetIfEmpty(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	RoundResources(c.Resources.Limits)
	RoundResources(c.Resources.Requests)
	for i := range c.Ports {
		api.SetIfEmpty(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		from := c.Env[i].ValueFrom
		if from == nil {
			continue
		}
		if from.FieldRef != nil {
			api.SetIfEmpty(&from.FieldRef.APIVersion, "v1")
		}
		if from.FileKeyRef != nil {
			api.SetIfNil(&from.FileKeyRef.Optional, false)
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil {
			defaultProbe(p)
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if h != nil {
			defaultHTTPGet(h.HTTPGet)
		}
	}
}

func defaultProbe(p *corev1.Probe) {
	api.SetIfEmpty(&p.TimeoutSeconds, 1)
	api.SetIfEmpty(&p.PeriodSeconds, 10)
	api.SetIfEmpty(&p.SuccessThreshold, 1)
	api.SetIfEmpty(&p.FailureThreshold, 3)
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil {
		api.SetIfNil(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	api.SetIfEmpty(&h.Path, "/")
	api.SetIfEmpty(&h.Scheme, corev1.URISchemeHTTP)
}

// pullPolicy is Always for images tagged latest or not tagged at all.
func pullPolicy(image string) corev1.PullPolicy {
	if imageTag(image) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// imageTag returns the tag of an image reference: "latest" when it has neither
// tag nor digest, "" when there is only a digest or the reference is broken.
func imageTag(image string) string {
	const longest = 255 // of a repository's name
	name, digest, _ := strings.Cut(image, "@")
	rest := name[strings.LastIndexByte(name, '/')+1:]
	rest, tag, tagged := strings.Cut(rest, ":")
	switch {
	case len(name)-len(tag) > longest || rest == "" || rest != strings.ToLower(rest) || strings.ContainsFunc(image, notInReference):
		return ""
	case tagged:
		return tag
	case digest != "":
		return ""
	}
	return "latest"
}

func notInReference(r rune) bool {
	return r > 'z' || r <= ' ' || !strings.ContainsRune("./:@-_+", r) && (r < '0' || r > '9' && r < 'A' || r > 'Z' && r < 'a')
}

func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.Image != nil {
		api.SetIfEmpty(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	}
	if v.HostPath != nil {
		api.SetIfNil(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.Secret != nil {
		api.SetIfNil(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
	if v.ConfigMap != nil {
		api.SetIfNil(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if v.DownwardAPI != nil {
		api.SetIfNil(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownwardItems(v.DownwardAPI.Items)
	}
	if v.Projected != nil {
		defaultProjected(v.Projected)
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		DefaultClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec)
	}
	defaultNetworkVolume(v)
}

// defaultNetworkVolume defaults the sources that old in-tree drivers serve.
func defaultNetworkVolume(v *corev1.Volume) {
	if v.ISCSI != nil {
		api.SetIfEmpty(&v.ISCSI.ISCSIInterface, "default")
	}
	if v.RBD != nil {
		api.SetIfEmpty(&v.RBD.RBDPool, "rbd")
		api.SetIfEmpty(&v.RBD.RadosUser, "admin")
		api.SetIfEmpty(&v.RBD.Keyring, "/etc/ceph/keyring")
	}
	if v.AzureDisk != nil {
		DefaultAzureDisk(v.AzureDisk)
	}
	if v.ScaleIO != nil {
		api.SetIfEmpty(&v.ScaleIO.StorageMode, "ThinProvisioned")
		api.SetIfEmpty(&v.ScaleIO.FSType, "xfs")
	}
}

func defaultProjected(p *corev1.ProjectedVolumeSource) {
	api.SetIfNil(&p.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
	for i := range p.Sources {
		if d := p.Sources[i].DownwardAPI; d != nil {
			defaultDownwardItems(d.Items)
		}
		if t := p.Sources[i].ServiceAccountToken; t != nil {
			api.SetIfNil(&t.ExpirationSeconds, 60*60)
		}
	}
}

func defaultDownwardItems(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			api.SetIfEmpty(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

// DefaultAzureDisk fills the fields of a volume on an Azure disk.
func DefaultAzureDisk(d *corev1.AzureDiskVolumeSource) {
	api.SetIfNil(&d.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	api.SetIfNil(&d.FSType, "ext4")
	api.SetIfNil(&d.ReadOnly, false)
	api.SetIfNil(&d.Kind, corev1.AzureSharedBlobDisk)
}

// DefaultClaimSpec fills the unset fields of a volume claim's spec.
func DefaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	api.SetIfNil(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	RoundResources(s.Resources.Limits)
	RoundResources(s.Resources.Requests)
}

// RoundResources rounds every quantity of the list up to thousandths.
func RoundResources(list corev1.ResourceList) {
	for name, q := range list {
		if q.RoundUp(resource.Milli) {
			continue
		}
		list[name] = q
	}
}
