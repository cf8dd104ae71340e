package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/disruption"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// evictionAttempts bounds retries after conflicts.
const evictionAttempts = 20

// evict serves pods/eviction: a delete that respects disruption budgets.
func (s *Server) evict(c *call) {
	ev := &policyv1.Eviction{}
	out, o, err := s.subCreate(c, policyv1.SchemeGroupVersion.WithKind("Eviction"), ev)
	if err == nil && ev.Name != c.info.Name {
		err = apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	opts := &metav1.DeleteOptions{}
	if ev.DeleteOptions != nil {
		opts = ev.DeleteOptions
	}
	if o.isDryRun() {
		opts.DryRun = o.dryRun
	}
	if err == nil {
		err = s.evictPod(c.ctx(), c.info.Namespace, c.info.Name, opts)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.success(c, out, http.StatusCreated)
}

func (s *Server) evictPod(ctx context.Context, namespace, name string, opts *metav1.DeleteOptions) error {
	pinned := opts.Preconditions != nil && opts.Preconditions.ResourceVersion != nil
	for attempt := 1; ; attempt++ {
		err := s.evictOnce(ctx, namespace, name, opts)
		if !apierrors.IsConflict(err) || pinned || attempt == evictionAttempts {
			return err
		}
	}
}

func (s *Server) evictOnce(ctx context.Context, namespace, name string, opts *metav1.DeleteOptions) error {
	obj, err := s.reader.Get("", "pods", namespace, name)
	if err != nil {
		return err
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("pods are stored as %T", obj))
	}
	opts = opts.DeepCopy()
	if disruption.Free(pod) {
		return s.deleteEvicted(ctx, pod, opts)
	}
	budget, err := s.budgetOf(pod)
	if err != nil {
		return err
	}
	if budget == nil {
		return s.deleteEvicted(ctx, pod, opts)
	}
	if disruption.UnhealthyMayGo(pod, budget) {
		// Only if it is still as it was judged.
		if opts.Preconditions == nil {
			opts.Preconditions = &metav1.Preconditions{}
		}
		if opts.Preconditions.ResourceVersion == nil {
			opts.Preconditions.ResourceVersion = &pod.ResourceVersion
		}
		return s.deleteEvicted(ctx, pod, opts)
	}
	if err := s.charge(ctx, budget, name, len(opts.DryRun) > 0); err != nil {
		return err
	}
	return s.deleteEvicted(ctx, pod, opts)
}

func (s *Server) budgetOf(pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	if s.stores["policy/poddisruptionbudgets"] == nil || len(pod.Labels) == 0 {
		return nil, nil
	}
	list, err := s.reader.List("policy", "poddisruptionbudgets", pod.Namespace)
	if err != nil {
		return nil, err
	}
	var found *policyv1.PodDisruptionBudget
	for _, o := range list {
		pdb := o.(*policyv1.PodDisruptionBudget)
		sel, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		if err != nil || !sel.Matches(labels.Set(pod.Labels)) {
			continue // a budget that cannot be read protects nothing, as upstream
		}
		if found != nil {
			return nil, statusError(http.StatusInternalServerError, "", "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")
		}
		found = pdb
	}
	return found, nil
}

// charge takes one disruption from the budget.
func (s *Server) charge(ctx context.Context, pdb *policyv1.PodDisruptionBudget, pod string, dryRun bool) error {
	if err := disruption.Allowed(pdb); err != nil || dryRun {
		return err
	}
	return s.patchStored(ctx, "policy/poddisruptionbudgets", pdb.Namespace, pdb.Name, func(obj api.Object) error {
		return disruption.Charge(obj.(*policyv1.PodDisruptionBudget), pod, metav1.NewTime(s.cfg.Clock.Now()))
	})
}

// deleteEvicted marks the pod as disrupted and deletes it.
func (s *Server) deleteEvicted(ctx context.Context, pod *corev1.Pod, opts *metav1.DeleteOptions) error {
	reg := s.stores["/pods"].reg
	if len(opts.DryRun) == 0 && pod.DeletionTimestamp == nil {
		want := opts.Preconditions
		err := s.patchStored(ctx, "/pods", pod.Namespace, pod.Name, func(obj api.Object) error {
			p := obj.(*corev1.Pod)
			if want != nil && (want.UID != nil && *want.UID != p.UID || want.ResourceVersion != nil && *want.ResourceVersion != p.ResourceVersion) {
				return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, p.Name, errors.New("the preconditions of the eviction do not hold any more"))
			}
			setPodCondition(p, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: p.Generation,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			}, metav1.NewTime(s.cfg.Clock.Now()))
			return nil
		})
		if err != nil {
			return err
		}
		if want != nil && want.ResourceVersion != nil {
			want.ResourceVersion = nil // it held; the condition has moved it on
			if want.UID == nil {
				want.UID = &pod.UID
			}
		}
	}
	_, _, err := reg.Delete(ctx, registry.Write{Namespace: pod.Namespace, Name: pod.Name, DryRun: len(opts.DryRun) > 0}, opts)
	return err
}
