package statefulset

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/history"
	"github.com/skiff-project/skiff/controller/workload"
)

// ordinal returns the number in a Pod's name and the name before it; -1 if there is none.
func ordinal(name string) (parent string, n int) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return "", -1
	}
	n, err := strconv.Atoi(name[i+1:])
	if err != nil || n < 0 {
		return "", -1
	}
	return name[:i], n
}

func podName(set *appsv1.StatefulSet, n int) string { return set.Name + "-" + strconv.Itoa(n) }

func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

func inRange(set *appsv1.StatefulSet, n int) bool {
	return n >= start(set) && n < start(set)+int(*set.Spec.Replicas)
}

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return template + "-" + podName(set, n)
}

// claims returns the volume claims of ordinal n, by the name of their template.
func claims(set *appsv1.StatefulSet, n int) map[string]*corev1.PersistentVolumeClaim {
	out := map[string]*corev1.PersistentVolumeClaim{}
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		c := t.DeepCopy()
		c.Name, c.Namespace = claimName(set, t.Name, n), set.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		out[t.Name] = c
	}
	return out
}

// newPod makes the Pod of ordinal n from a template of revision rev.
func newPod(set *appsv1.StatefulSet, t *corev1.PodTemplateSpec, rev string, n int) *corev1.Pod {
	p := workload.PodFromTemplate(t, set, kind)
	p.GenerateName = ""
	identify(set, p, n)
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, set.Spec.ServiceName
	mount(set, p, n)
	p.Labels[history.HashLabel] = rev
	return p
}

// identify gives p the name and labels of ordinal n.
func identify(set *appsv1.StatefulSet, p *corev1.Pod, n int) {
	p.Name, p.Namespace = podName(set, n), set.Namespace
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
}

// mount makes p use the claims of ordinal n; volumes of other names stay.
func mount(set *appsv1.StatefulSet, p *corev1.Pod, n int) {
	var vols []corev1.Volume
	own := claims(set, n)
	for _, name := range slices.Sorted(maps.Keys(own)) {
		vols = append(vols, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: own[name].Name}}})
	}
	for _, v := range p.Spec.Volumes {
		if own[v.Name] == nil {
			vols = append(vols, v)
		}
	}
	p.Spec.Volumes = vols
}

// matches reports whether p is what ordinal n should look like in name, labels and claims.
func matches(set *appsv1.StatefulSet, p *corev1.Pod, n int) bool {
	if p.Name != podName(set, n) || p.Labels[appsv1.StatefulSetPodNameLabel] != p.Name ||
		p.Labels[appsv1.PodIndexLabel] != strconv.Itoa(n) {
		return false
	}
	for name, c := range claims(set, n) {
		if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == c.Name
		}) {
			return false
		}
	}
	return true
}

// policy returns what becomes of claims when the set shrinks or goes.
func policy(set *appsv1.StatefulSet) (onScale, onDelete bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// retain returns the claim with the owner references that the policy asks for, or nil if it has
// them. A claim that another controller owns, or a namesake of ours did, is left alone.
func retain(set *appsv1.StatefulSet, p *corev1.Pod, n int, c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	onScale, onDelete := policy(set)
	bySet, byPod := onDelete, false
	if onScale && !inRange(set, n) {
		bySet, byPod = false, true
	}
	if byPod && p.UID == "" {
		return nil // the Pod is not there: nothing to tie the claim to
	}
	var refs []metav1.OwnerReference
	for _, r := range c.OwnerReferences {
		ours := r.Kind == kind.Kind && r.Name == set.Name || r.Kind == "Pod" && r.Name == p.Name
		switch {
		case ours && r.UID != set.UID && r.UID != p.UID:
			return nil
		case ours:
		case r.Controller != nil && *r.Controller && (onScale || onDelete):
			return nil
		default:
			refs = append(refs, r)
		}
	}
	if bySet {
		refs = append(refs, *metav1.NewControllerRef(set, kind))
	}
	if byPod {
		refs = append(refs, *metav1.NewControllerRef(p, corev1.SchemeGroupVersion.WithKind("Pod")))
	}
	if slices.EqualFunc(refs, c.OwnerReferences, func(a, b metav1.OwnerReference) bool {
		return a.UID == b.UID && (a.Controller != nil && *a.Controller) == (b.Controller != nil && *b.Controller)
	}) {
		return nil
	}
	c = c.DeepCopy()
	c.OwnerReferences = refs
	return c
}

func byOrdinal(a, b *corev1.Pod) int {
	_, x := ordinal(a.Name)
	_, y := ordinal(b.Name)
	return cmp.Compare(x, y)
}
