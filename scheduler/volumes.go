package scheduler

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// late are claims of one pod that get their volumes only once the pod's node is known, and the
// volumes there are. The scheduler chooses for all of them at once, writes that down, and decides
// about the pod again when the claims are bound: their volumes hold it to the node then. The room
// on the node is not kept for it meanwhile.
type late struct {
	claims  []*v1.PersistentVolumeClaim
	volumes []*v1.PersistentVolume
	class   func(name string) (*storagev1.StorageClass, error)
}

// choice is a volume for a claim; nil: the claim's provisioner makes one for the node.
type choice struct {
	claim  *v1.PersistentVolumeClaim
	volume *v1.PersistentVolume
}

// late looks at a pod's claims again, as they are now.
func (f *facts) late(pod *v1.Pod) late {
	var l late
	f.volumesOf(pod, &l)
	return l
}

// choose finds a volume for each claim on a node, the smallest claim first; no: there is none.
func (l *late) choose(node *v1.Node) ([]choice, bool) {
	claims := slices.Clone(l.claims)
	slices.SortStableFunc(claims, func(a, b *v1.PersistentVolumeClaim) int {
		x, y := a.Spec.Resources.Requests[v1.ResourceStorage], b.Spec.Resources.Requests[v1.ResourceStorage]
		return x.Cmp(y)
	})
	taken := map[string]*v1.PersistentVolume{}
	var out []choice
	for _, c := range claims {
		v, err := storagehelpers.FindMatchingVolume(c, l.volumes, node, taken, false, true)
		if err != nil {
			return nil, false
		}
		if v == nil {
			class, err := l.class(storagehelpers.GetPersistentVolumeClaimClass(c))
			if err != nil || class.Provisioner == storagehelpers.NotSupportedProvisioner || !within(class.AllowedTopologies, node.Labels) {
				return nil, false
			}
		} else {
			taken[v.Name] = v
		}
		out = append(out, choice{c, v})
	}
	return out, true
}

// within reports whether a node is where a class may make volumes; without terms that is anywhere.
func within(terms []v1.TopologySelectorTerm, set map[string]string) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(t v1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r v1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, set[r.Key])
		})
	})
}

// claimVolumes writes down which volumes a pod's late claims get on a node.
func (s *Scheduler) claimVolumes(ctx context.Context, l late, name string) error {
	s.mu.Lock()
	node := s.cluster.Node(name)
	s.mu.Unlock()
	if node == nil {
		return fmt.Errorf("node %q is gone", name)
	}
	choices, ok := l.choose(node)
	if !ok {
		return fmt.Errorf("the volumes on node %q were taken meanwhile", name)
	}
	core := s.cfg.Client.CoreV1()
	for _, c := range choices {
		var err error
		if c.volume == nil {
			claim := c.claim.DeepCopy()
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storagehelpers.AnnSelectedNode, name)
			_, err = core.PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
		} else {
			var v *v1.PersistentVolume
			if v, _, err = storagehelpers.GetBindVolumeToClaim(c.volume, c.claim); err == nil {
				_, err = core.PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
			}
		}
		if err != nil && !apierrors.IsConflict(err) { // it has changed: the next decision sees how
			return err
		}
	}
	return nil
}

// allVolumes lists every volume.
func (f *facts) allVolumes() []*v1.PersistentVolume {
	all, _ := f.volumeLister.List(labels.Everything()) // a cache; it cannot fail
	return all
}
