package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// PodTemplateWarnings tells what is legal in a pod or pod template but surely
// not meant. at is the path of the template, nil for a pod.
func PodTemplateWarnings(meta *metav1.ObjectMeta, s *corev1.PodSpec, at *field.Path) []string {
	w := &warner{spec: at.Child("spec")}
	for i, c := range s.TopologySpreadConstraints {
		w.when(c.LabelSelector == nil, w.spec.Child("topologySpreadConstraints").Index(i).Child("labelSelector"), nullSelector)
	}
	for i := range s.Volumes {
		w.volume(w.spec.Child("volumes").Index(i), &s.Volumes[i])
	}
	w.files(s.Volumes)
	ips, secrets := sets.Set[string]{}, sets.Set[string]{}
	for i, a := range s.HostAliases {
		w.when(ips.Has(a.IP), w.spec.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
		ips.Insert(a.IP)
	}
	for i, r := range s.ImagePullSecrets {
		p := w.spec.Child("imagePullSecrets").Index(i).Child("name")
		w.when(secrets.Has(r.Name), p, "duplicate name %q", r.Name)
		w.when(r.Name == "", p, "invalid empty name %q", r.Name)
		secrets.Insert(r.Name)
	}
	w.fractions(w.spec.Child("overhead"), s.Overhead)
	w.ports(s)
	eachContainerPath(s, w.spec, func(c *corev1.Container, p *field.Path) {
		w.fractions(p.Child("resources", "limits"), c.Resources.Limits)
		w.fractions(p.Child("resources", "requests"), c.Resources.Requests)
		w.env(p.Child("env"), c.Env)
	})
	t := s.TerminationGracePeriodSeconds
	w.when(t != nil && *t < 0, w.spec.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	if a := s.Affinity; a != nil {
		if a.PodAffinity != nil {
			w.affinity(w.spec.Child("affinity", "podAffinity"), a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if a.PodAntiAffinity != nil {
			w.affinity(w.spec.Child("affinity", "podAntiAffinity"), a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	return w.out
}

func (w *warner) affinity(p *field.Path, required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
	for i, t := range required {
		w.when(t.LabelSelector == nil, p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i).Child("labelSelector"), nullSelector)
	}
	for i, t := range preferred {
		w.when(t.PodAffinityTerm.LabelSelector == nil, p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm", "labelSelector"), nullSelector)
	}
}

const nullSelector = "a null labelSelector results in matching no pod"

type warner struct {
	spec *field.Path
	out  []string
}

// when warns about what is at p; the text is made only if there is reason to.
func (w *warner) when(cond bool, p *field.Path, format string, args ...any) {
	if cond {
		w.out = append(w.out, p.String()+": "+fmt.Sprintf(format, args...))
	}
}

// whenHas warns about a field of what is at p.
func (w *warner) whenHas(cond bool, p *field.Path, name, text string) {
	if cond {
		w.when(true, p.Child(name), "%s", text)
	}
}

func (w *warner) volume(p *field.Path, v *corev1.Volume) {
	w.whenHas(v.PhotonPersistentDisk != nil, p, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+")
	w.whenHas(v.GitRepo != nil, p, "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+")
	w.whenHas(v.ScaleIO != nil, p, "scaleIO", "deprecated in v1.16, non-functional in v1.22+")
	w.whenHas(v.Flocker != nil, p, "flocker", "deprecated in v1.22, non-functional in v1.25+")
	w.whenHas(v.StorageOS != nil, p, "storageOS", "deprecated in v1.22, non-functional in v1.25+")
	w.whenHas(v.Quobyte != nil, p, "quobyte", "deprecated in v1.22, non-functional in v1.25+")
	w.whenHas(v.Glusterfs != nil, p, "glusterfs", "deprecated in v1.25, non-functional in v1.26+")
	w.whenHas(v.CephFS != nil, p, "cephfs", "deprecated in v1.28, non-functional in v1.31+")
	w.whenHas(v.RBD != nil, p, "rbd", "deprecated in v1.28, non-functional in v1.31+")
}

func (w *warner) fractions(p *field.Path, list corev1.ResourceList) {
	for name, q := range check.Sorted(list) {
		bytes := name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage
		w.when(bytes && q.MilliValue()%1000 != 0, p.Key(string(name)), "fractional byte value %q is invalid, must be an integer", &q)
	}
}

func (w *warner) env(p *field.Path, vars []corev1.EnvVar) {
	seen := sets.Set[string]{}
	for i, v := range vars {
		ref := "$(" + v.Name + ")"
		// Extending the former value is fine; replacing it is not.
		hides := seen.Has(v.Name) && (v.ValueFrom != nil || v.Value == ref || !strings.Contains(v.Value, ref))
		w.when(hides, p.Index(i), "hides previous definition of %q, which may be dropped when using apply", v.Name)
		seen.Insert(v.Name)
	}
}

func (w *warner) ports(s *corev1.PodSpec) {
	type block struct {
		at   *field.Path
		port corev1.ContainerPort
	}
	byPort, byName := map[string][]block{}, map[string]*field.Path{}
	var names []func()
	eachContainerPath(s, w.spec, func(c *corev1.Container, p *field.Path) {
		for i, port := range c.Ports {
			at := p.Child("ports").Index(i)
			w.when(port.HostIP != "" && port.HostPort == 0, at, "hostIP set without hostPort: %+v", port)
			key := fmt.Sprintf("%d/%s", port.ContainerPort, port.Protocol)
			for _, o := range byPort[key] {
				switch {
				case port.HostIP == o.port.HostIP && port.HostPort == o.port.HostPort:
					w.when(true, at, "duplicate port definition with %s", o.at)
				case port.HostPort == 0 || o.port.HostPort == 0:
					w.when(true, at, "overlapping port definition with %s", o.at)
				case port.HostPort == o.port.HostPort && (port.HostIP == "") != (o.port.HostIP == ""):
					w.when(true, at, "dangerously ambiguous port definition with %s", o.at)
				}
			}
			byPort[key] = append(byPort[key], block{at, port})
			if port.Name == "" {
				continue
			}
			if other := byName[port.Name]; other != nil {
				names = append(names, func() {
					w.when(true, at, "duplicate port name %q with %s, services and probes that select ports by name will use %s", port.Name, other, other)
				})
			} else {
				byName[port.Name] = at
			}
		}
	})
	for _, f := range names { // upstream tells about names after all ports
		f()
	}
}
