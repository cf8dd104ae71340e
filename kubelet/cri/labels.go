// Package cri translates between the API's pods and the container runtime interface: sandbox and
// container configurations one way, observed state the other. Apart from Inspector, which queries
// the runtime, and reading termination messages, it is pure.
package cri

import (
	"encoding/json"
	"strconv"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// The labels and annotations upstream's kubelet puts on sandboxes and containers; tools such as
// crictl rely on them, and this kubelet recognises its own containers by them after a restart.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	annHash          = "io.kubernetes.container.hash"
	annRestartCount  = "io.kubernetes.container.restartCount"
	annTermPath      = "io.kubernetes.container.terminationMessagePath"
	annTermPolicy    = "io.kubernetes.container.terminationMessagePolicy"
	annPreStop       = "io.kubernetes.container.preStopHandler"
	annPorts         = "io.kubernetes.container.ports"
	annPodTermGrace  = "io.kubernetes.pod.terminationGracePeriod"
	annPodDelGrace   = "io.kubernetes.pod.deletionGracePeriod"
	terminationLimit = 4096 // bytes of a termination message
	terminationLines = 80   // lines taken from the log instead
)

func podLabels(pod *v1.Pod) map[string]string {
	l := map[string]string{}
	for k, v := range pod.Labels {
		l[k] = v
	}
	l[LabelPodName], l[LabelPodNamespace], l[LabelPodUID] = pod.Name, pod.Namespace, string(pod.UID)
	return l
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{LabelPodName: pod.Name, LabelPodNamespace: pod.Namespace,
		LabelPodUID: string(pod.UID), LabelContainerName: c.Name}
}

func containerAnnotations(pod *v1.Pod, c *v1.Container, restarts int32) map[string]string {
	a := map[string]string{
		annHash:         strconv.FormatUint(podstate.ContainerHash(c), 16),
		annRestartCount: strconv.Itoa(int(restarts)),
		annTermPath:     c.TerminationMessagePath,
		annTermPolicy:   string(c.TerminationMessagePolicy),
	}
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		a[annPodDelGrace] = strconv.FormatInt(*g, 10)
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[annPodTermGrace] = strconv.FormatInt(*g, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if b, err := json.Marshal(c.Lifecycle.PreStop); err == nil {
			a[annPreStop] = string(b)
		}
	}
	if len(c.Ports) > 0 {
		if b, err := json.Marshal(c.Ports); err == nil {
			a[annPorts] = string(b)
		}
	}
	return a
}

// RestoredPod rebuilds, from the labels and annotations of its containers, enough of a pod nobody
// knows any more to stop it properly.
func RestoredPod(labels map[string]string, containers map[string]map[string]string) *v1.Pod {
	pod := &v1.Pod{}
	pod.Name, pod.Namespace = labels[LabelPodName], labels[LabelPodNamespace]
	pod.UID = typesUID(labels[LabelPodUID])
	for name, ann := range containers {
		c := v1.Container{Name: name, TerminationMessagePath: ann[annTermPath]}
		if raw := ann[annPreStop]; raw != "" {
			h := &v1.LifecycleHandler{}
			if json.Unmarshal([]byte(raw), h) == nil {
				c.Lifecycle = &v1.Lifecycle{PreStop: h}
			}
		}
		_ = json.Unmarshal([]byte(ann[annPorts]), &c.Ports)
		if g, err := strconv.ParseInt(ann[annPodTermGrace], 10, 64); err == nil {
			pod.Spec.TerminationGracePeriodSeconds = &g
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	return pod
}
