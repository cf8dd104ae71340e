package cluster

import (
	"bytes"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/internal/atomicfile"
)

// controlPlane lists the components that show themselves as static pods, with
// the log each one follows.
var controlPlane = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// writeStaticPods puts one manifest per control-plane component into the
// folder the kubelet watches. The component itself runs in this process: the
// pod follows its log, so `kubectl logs` shows it, and carries the PKI where
// kubeadm has it, so `kubectl exec etcd-<node> -- etcdctl …` works as written
// in any tutorial.
func (c *Cluster) writeStaticPods() error {
	dir := c.opts.path("manifests")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, component := range controlPlane {
		data, err := yaml.Marshal(c.staticPod(component))
		if err != nil {
			return err
		}
		path := c.opts.path("manifests", component+".yaml")
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			continue
		}
		if err := atomicfile.Write(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) staticPod(component string) *corev1.Pod {
	log := fmt.Sprintf("/var/log/skiff/%s.log", component)
	mount := func(name, path string) corev1.VolumeMount {
		return corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: true}
	}
	volume := func(name, path string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: path, Type: ptr.To(corev1.HostPathDirectory)},
		}}
	}
	container := corev1.Container{
		Name:            component,
		Image:           ImageName(),
		ImagePullPolicy: corev1.PullNever,
		Command:         []string{"/bin/skiff-shim", "follow", log},
		VolumeMounts:    []corev1.VolumeMount{mount("log", "/var/log/skiff")},
	}
	volumes := []corev1.Volume{volume("log", c.opts.path("log"))}
	if component == "etcd" {
		container.VolumeMounts = append(container.VolumeMounts, mount("etcd-certs", "/etc/kubernetes/pki/etcd"))
		container.Env = []corev1.EnvVar{{Name: "ETCDCTL_ENDPOINTS", Value: fmt.Sprintf("127.0.0.1:%d", c.opts.EtcdPort)}}
		volumes = append(volumes, volume("etcd-certs", c.opts.path("pki", "etcd")))
	}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: component, Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"component": component, "tier": "control-plane"},
		},
		Spec: corev1.PodSpec{
			HostNetwork:                   true,
			PriorityClassName:             "system-node-critical",
			Priority:                      ptr.To[int32](2000001000),
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers:                    []corev1.Container{container},
			Volumes:                       volumes,
		},
	}
}
