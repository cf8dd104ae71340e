package scheduler

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-project/skiff/scheduler/core"
)

// facts looks up what decisions need beside nodes and pods.
type facts struct {
	services     corelisters.ServiceLister
	controllers  corelisters.ReplicationControllerLister
	replicaSets  appslisters.ReplicaSetLister
	statefulSets appslisters.StatefulSetLister
	claims       corelisters.PersistentVolumeClaimLister
	volumeLister corelisters.PersistentVolumeLister
	classes      storagelisters.StorageClassLister
	disruption   policylisters.PodDisruptionBudgetLister

	informers       []cache.SharedIndexInformer
	volumeInformers []cache.SharedIndexInformer // changes of these help pods that wait for volumes
}

func newFacts(inf informers.SharedInformerFactory) facts {
	c, a := inf.Core().V1(), inf.Apps().V1()
	f := facts{
		services: c.Services().Lister(), controllers: c.ReplicationControllers().Lister(),
		replicaSets: a.ReplicaSets().Lister(), statefulSets: a.StatefulSets().Lister(),
		claims: c.PersistentVolumeClaims().Lister(), volumeLister: c.PersistentVolumes().Lister(),
		classes:    inf.Storage().V1().StorageClasses().Lister(),
		disruption: inf.Policy().V1().PodDisruptionBudgets().Lister(),
	}
	f.volumeInformers = []cache.SharedIndexInformer{
		c.PersistentVolumeClaims().Informer(), c.PersistentVolumes().Informer(), inf.Storage().V1().StorageClasses().Informer(),
	}
	f.informers = append([]cache.SharedIndexInformer{
		c.Services().Informer(), c.ReplicationControllers().Informer(), a.ReplicaSets().Informer(), a.StatefulSets().Informer(),
		inf.Policy().V1().PodDisruptionBudgets().Informer(),
	}, f.volumeInformers...)
	return f
}

// selector selects the pods that belong together with a pod: those its
// services and its controller select. Empty if there are none.
func (f *facts) selector(pod *v1.Pod) labels.Selector {
	if len(pod.Spec.TopologySpreadConstraints) > 0 {
		return nil // the pod has its own constraints
	}
	set := labels.Set{}
	if services, err := f.services.Services(pod.Namespace).List(labels.Everything()); err == nil {
		for _, svc := range services {
			if len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
				set = labels.Merge(set, svc.Spec.Selector)
			}
		}
	}
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		return set.AsSelector()
	}
	switch owner.APIVersion + " " + owner.Kind {
	case "v1 ReplicationController":
		if rc, err := f.controllers.ReplicationControllers(pod.Namespace).Get(owner.Name); err == nil {
			set = labels.Merge(set, rc.Spec.Selector)
		}
	case "apps/v1 ReplicaSet":
		if rs, err := f.replicaSets.ReplicaSets(pod.Namespace).Get(owner.Name); err == nil {
			return and(set.AsSelector(), rs.Spec.Selector)
		}
	case "apps/v1 StatefulSet":
		if ss, err := f.statefulSets.StatefulSets(pod.Namespace).Get(owner.Name); err == nil {
			return and(set.AsSelector(), ss.Spec.Selector)
		}
	}
	return set.AsSelector()
}

func and(sel labels.Selector, other *metav1.LabelSelector) labels.Selector {
	parsed, err := metav1.LabelSelectorAsSelector(other)
	if err != nil {
		return sel
	}
	if reqs, ok := parsed.Requirements(); ok {
		return sel.Add(reqs...)
	}
	return sel
}

// budgets lists the disruption budgets that preemption tries to keep.
func (f *facts) budgets() []core.Budget {
	pdbs, err := f.disruption.List(labels.Everything())
	if err != nil {
		return nil
	}
	out := make([]core.Budget, 0, len(pdbs))
	for _, pdb := range pdbs {
		if b, ok := budget(pdb); ok {
			out = append(out, b)
		}
	}
	return out
}

func budget(pdb *policyv1.PodDisruptionBudget) (core.Budget, bool) {
	sel, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	if err != nil {
		return core.Budget{}, false
	}
	b := core.Budget{Namespace: pdb.Namespace, Selector: sel, Allowed: pdb.Status.DisruptionsAllowed, Disrupted: map[string]bool{}}
	for name := range pdb.Status.DisruptedPods {
		b.Disrupted[name] = true
	}
	return b, true
}

// volumes looks a pod's claims up.
func (f *facts) volumes(pod *v1.Pod) core.Volumes {
	var l late
	out := f.volumesOf(pod, &l)
	if len(l.claims) > 0 {
		out.Late = func(node *v1.Node) bool {
			_, ok := l.choose(node)
			return ok
		}
	}
	return out
}

// volumesOf also notes in l the claims that wait for the pod's node.
func (f *facts) volumesOf(pod *v1.Pod, l *late) core.Volumes {
	var out core.Volumes
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		name, ephemeral := "", vol.Ephemeral != nil
		switch {
		case vol.PersistentVolumeClaim != nil:
			name = vol.PersistentVolumeClaim.ClaimName
		case ephemeral:
			name = pod.Name + "-" + vol.Name
		default:
			continue
		}
		if f.claim(pod, name, ephemeral, &out, l); out.Refused != "" {
			return out
		}
	}
	return out
}

// claim adds what is known of one claim to out, or the claim to l.
func (f *facts) claim(pod *v1.Pod, name string, ephemeral bool, out *core.Volumes, l *late) {
	pvc, err := f.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
	switch {
	case apierrors.IsNotFound(err) && ephemeral:
		out.Refused = fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
	case apierrors.IsNotFound(err):
		out.Refused = fmt.Sprintf("persistentvolumeclaim %q not found", name)
	case err != nil:
		out.Refused = err.Error()
	case pvc.Status.Phase == v1.ClaimLost:
		out.Refused = fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, pvc.Spec.VolumeName)
	case pvc.DeletionTimestamp != nil:
		out.Refused = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
	case ephemeral && !metav1.IsControlledBy(pvc, pod):
		out.Refused = fmt.Sprintf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", pvc.Namespace, pvc.Name, pod.Namespace, pod.Name)
	case pvc.Spec.VolumeName == "" && f.waits(pvc):
		if node := pvc.Annotations[storagehelpers.AnnSelectedNode]; node != "" {
			out.Refused = fmt.Sprintf("persistentvolumeclaim %q waits for its volume on node %q", name, node)
			return
		}
		if l.claims == nil {
			l.volumes, l.class = f.allVolumes(), f.classes.Get
		}
		if slices.ContainsFunc(l.volumes, func(v *v1.PersistentVolume) bool { return storagehelpers.IsVolumeBoundToClaim(v, pvc) }) {
			out.Refused = "pod has unbound immediate PersistentVolumeClaims" // it has a volume; the binding is under way
			return
		}
		l.claims = append(l.claims, pvc)
	case pvc.Spec.VolumeName == "":
		out.Refused = "pod has unbound immediate PersistentVolumeClaims"
	default:
		pv, err := f.volumeLister.Get(pvc.Spec.VolumeName)
		if err != nil {
			out.Missing = true
		} else if pv.Spec.NodeAffinity != nil && pv.Spec.NodeAffinity.Required != nil {
			out.Affinities = append(out.Affinities, pv.Spec.NodeAffinity.Required)
		}
	}
}

// waits reports whether a claim is bound only when a pod needs it.
func (f *facts) waits(pvc *v1.PersistentVolumeClaim) bool {
	if pvc.Spec.StorageClassName == nil {
		return false
	}
	class, err := f.classes.Get(*pvc.Spec.StorageClassName)
	return err == nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
