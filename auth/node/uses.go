package node

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/auth"
)

// envSources calls yield with each container's env and envFrom until it
// returns true; all three kinds of container count.
func envSources(pod *corev1.Pod, yield func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if yield(list[i].Env, list[i].EnvFrom) {
				return true
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if c := &pod.Spec.EphemeralContainers[i]; yield(c.Env, c.EnvFrom) {
			return true
		}
	}
	return false
}

func podUsesConfigMap(pod *corev1.Pod, a auth.Attributes) bool {
	if pod.Namespace != a.Namespace {
		return false
	}
	if envSources(pod, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		return slices.ContainsFunc(env, func(e corev1.EnvVar) bool {
			return e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil && e.ValueFrom.ConfigMapKeyRef.Name == a.Name
		}) || slices.ContainsFunc(from, func(e corev1.EnvFromSource) bool {
			return e.ConfigMapRef != nil && e.ConfigMapRef.Name == a.Name
		})
	}) {
		return true
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		if v.ConfigMap != nil && v.ConfigMap.Name == a.Name {
			return true
		}
		return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ConfigMap != nil && s.ConfigMap.Name == a.Name
		})
	})
}

func (z *Authorizer) podUsesSecret(pod *corev1.Pod, a auth.Attributes) bool {
	if pod.Namespace == a.Namespace && podNamesSecret(pod, a.Name) {
		return true
	}
	// A secret may also be needed by a volume the pod has claimed, and then
	// may live in another namespace.
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		claim := claimName(pod, v)
		if claim == "" {
			return false
		}
		obj, err := z.reader.Get("", "persistentvolumeclaims", pod.Namespace, claim)
		pvc, ok := obj.(*corev1.PersistentVolumeClaim)
		if err != nil || !ok || pvc.Spec.VolumeName == "" {
			return false
		}
		obj, err = z.reader.Get("", "persistentvolumes", "", pvc.Spec.VolumeName)
		pv, ok := obj.(*corev1.PersistentVolume)
		if err != nil || !ok || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Namespace != pod.Namespace || pv.Spec.ClaimRef.Name != claim {
			return false
		}
		return volumeNamesSecret(pv, a.Namespace, a.Name)
	})
}

func podNamesSecret(pod *corev1.Pod, name string) bool {
	return slices.Contains(PodSecrets(pod), name)
}

// PodSecrets names every secret a pod refers to itself, not those of volumes
// it claims.
func PodSecrets(pod *corev1.Pod) []string {
	var names []string
	add := func(list ...string) {
		for _, n := range list {
			if n != "" {
				names = append(names, n)
			}
		}
	}
	for _, r := range pod.Spec.ImagePullSecrets {
		add(r.Name)
	}
	envSources(pod, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		for _, e := range env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add(e.ValueFrom.SecretKeyRef.Name)
			}
		}
		for _, e := range from {
			if e.SecretRef != nil {
				add(e.SecretRef.Name)
			}
		}
		return false
	})
	for _, v := range pod.Spec.Volumes {
		add(volumeSecrets(v)...)
	}
	return names
}

// PodReference names a kind of API object a pod leads its node to, "" when it
// needs none, and an error for a volume of an unknown type.
func PodReference(pod *corev1.Pod) (string, error) {
	configMaps := envSources(pod, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		return slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil }) ||
			slices.ContainsFunc(from, func(e corev1.EnvFromSource) bool { return e.ConfigMapRef != nil })
	})
	switch {
	case pod.Spec.ServiceAccountName != "":
		return "serviceaccounts", nil
	case len(PodSecrets(pod)) > 0:
		return "secrets", nil
	case configMaps:
		return "configmaps", nil
	case len(pod.Spec.ResourceClaims) > 0:
		return "resourceclaims", nil
	}
	for _, v := range pod.Spec.Volumes {
		if ref, err := volumeReference(v); ref != "" || err != nil {
			return ref, err
		}
	}
	return "", nil
}

func volumeReference(v corev1.Volume) (string, error) {
	switch {
	case v.DownwardAPI != nil, v.EmptyDir != nil, v.HostPath != nil, v.Image != nil, v.NFS != nil, v.ISCSI != nil, v.FC != nil,
		v.CephFS != nil, v.Cinder != nil, v.RBD != nil, v.FlexVolume != nil, v.Flocker != nil, v.GitRepo != nil, v.Quobyte != nil,
		v.ScaleIO != nil, v.StorageOS != nil, v.PortworxVolume != nil, v.PhotonPersistentDisk != nil, v.VsphereVolume != nil,
		v.AWSElasticBlockStore != nil, v.AzureDisk != nil, v.GCEPersistentDisk != nil:
		return "", nil
	case v.ConfigMap != nil:
		return "configmaps (via configmap volumes)", nil
	case v.Secret != nil:
		return "secrets (via secret volumes)", nil
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)", nil
	case v.Glusterfs != nil:
		return "endpoints (via glusterFS volumes)", nil
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims", nil
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)", nil
	case v.AzureFile != nil:
		return "secrets (via azureFile volumes)", nil
	case v.Projected == nil:
		return "", fmt.Errorf("unknown volume type for volume  %q", v.Name)
	}
	for _, s := range v.Projected.Sources {
		switch {
		case s.DownwardAPI != nil:
		case s.ConfigMap != nil:
			return "configmaps (via projected volumes)", nil
		case s.Secret != nil:
			return "secrets (via projected volumes)", nil
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)", nil
		case s.ClusterTrustBundle != nil:
			return "clustertrustbundles", nil
		case s.PodCertificate != nil:
			return "podcertificates", nil
		default:
			return "", fmt.Errorf("unknown source for projected volume %q", v.Name)
		}
	}
	return "", nil
}

func volumeSecrets(v corev1.Volume) []string {
	local := func(ref *corev1.LocalObjectReference) []string {
		if ref == nil {
			return nil
		}
		return []string{ref.Name}
	}
	switch {
	case v.Secret != nil:
		return []string{v.Secret.SecretName}
	case v.Projected != nil:
		var names []string
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				names = append(names, s.Secret.Name)
			}
		}
		return names
	case v.AzureFile != nil:
		return []string{v.AzureFile.SecretName}
	case v.CephFS != nil:
		return local(v.CephFS.SecretRef)
	case v.Cinder != nil:
		return local(v.Cinder.SecretRef)
	case v.FlexVolume != nil:
		return local(v.FlexVolume.SecretRef)
	case v.RBD != nil:
		return local(v.RBD.SecretRef)
	case v.ScaleIO != nil:
		return local(v.ScaleIO.SecretRef)
	case v.ISCSI != nil:
		return local(v.ISCSI.SecretRef)
	case v.StorageOS != nil:
		return local(v.StorageOS.SecretRef)
	case v.CSI != nil:
		return local(v.CSI.NodePublishSecretRef)
	}
	return nil
}

// volumeNamesSecret covers the secrets a kubelet needs, not those only the
// controllers use.
func volumeNamesSecret(pv *corev1.PersistentVolume, namespace, name string) bool {
	is := func(refs ...*corev1.SecretReference) bool {
		return slices.ContainsFunc(refs, func(r *corev1.SecretReference) bool {
			if r == nil || r.Name != name {
				return false
			}
			ns := r.Namespace
			if ns == "" {
				ns = pv.Spec.ClaimRef.Namespace
			}
			return ns == namespace
		})
	}
	s := pv.Spec.PersistentVolumeSource
	switch {
	case s.CSI != nil:
		return is(s.CSI.NodePublishSecretRef, s.CSI.NodeStageSecretRef, s.CSI.NodeExpandSecretRef)
	case s.AzureFile != nil:
		ref := &corev1.SecretReference{Name: s.AzureFile.SecretName}
		if s.AzureFile.SecretNamespace != nil {
			ref.Namespace = *s.AzureFile.SecretNamespace
		}
		return is(ref)
	case s.CephFS != nil:
		return is(s.CephFS.SecretRef)
	case s.Cinder != nil:
		return is(s.Cinder.SecretRef)
	case s.FlexVolume != nil:
		return is(s.FlexVolume.SecretRef)
	case s.RBD != nil:
		return is(s.RBD.SecretRef)
	case s.ScaleIO != nil:
		return is(s.ScaleIO.SecretRef)
	case s.ISCSI != nil:
		return is(s.ISCSI.SecretRef)
	case s.StorageOS != nil && s.StorageOS.SecretRef != nil:
		return is(&corev1.SecretReference{Namespace: s.StorageOS.SecretRef.Namespace, Name: s.StorageOS.SecretRef.Name})
	}
	return false
}

func claimName(pod *corev1.Pod, v corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

func podUsesClaim(pod *corev1.Pod, a auth.Attributes) bool {
	return pod.Namespace == a.Namespace && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return a.Name != "" && claimName(pod, v) == a.Name
	})
}

func podUsesResourceClaim(pod *corev1.Pod, a auth.Attributes) bool {
	if pod.Namespace != a.Namespace {
		return false
	}
	if ext := pod.Status.ExtendedResourceClaimStatus; ext != nil && ext.ResourceClaimName == a.Name {
		return true
	}
	return slices.ContainsFunc(pod.Spec.ResourceClaims, func(c corev1.PodResourceClaim) bool {
		return c.ResourceClaimName != nil && *c.ResourceClaimName == a.Name
	}) || slices.ContainsFunc(pod.Status.ResourceClaimStatuses, func(s corev1.PodResourceClaimStatus) bool {
		return s.ResourceClaimName != nil && *s.ResourceClaimName == a.Name
	})
}
