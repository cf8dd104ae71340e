package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/apiserver/admission/config"
)

const nodeSelectorAnnotation = "scheduler.alpha.kubernetes.io/node-selector"

// podNodeSelector keeps a namespace's pods on the nodes its annotation, else
// the cluster's default, selects, and their selectors within its whitelist.
type podNodeSelector struct {
	read      reader
	selectors map[string]string // see config.Plugins
}

func (podNodeSelector) Name() string { return "PodNodeSelector" }

func (p podNodeSelector) Admit(_ context.Context, r *Request) error {
	pod, ok := newPod(r)
	if !ok {
		return nil
	}
	selector, err := p.check(r, pod)
	if err != nil {
		return err
	}
	pod.Spec.NodeSelector = labels.Merge(selector, pod.Spec.NodeSelector)
	return p.whitelisted(r, pod)
}

func (p podNodeSelector) Validate(_ context.Context, r *Request) error {
	pod, ok := newPod(r)
	if !ok {
		return nil
	}
	if _, err := p.check(r, pod); err != nil {
		return err
	}
	return p.whitelisted(r, pod)
}

func newPod(r *Request) (*corev1.Pod, bool) {
	pod, ok := r.Object.(*corev1.Pod)
	return pod, ok && r.is("", "pods") && r.Operation() == Create
}

// check returns the namespace's selector, if pod does not contradict it.
func (p podNodeSelector) check(r *Request, pod *corev1.Pod) (labels.Set, error) {
	ns, err := get[*corev1.Namespace](p.read, "", "namespaces", "", r.Namespace)
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("namespace %s does not exist", r.Namespace)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	text, ok := ns.Annotations[nodeSelectorAnnotation]
	if !ok {
		text = p.selectors[config.ClusterDefault]
	}
	selector, err := labels.ConvertSelectorToLabelsMap(text)
	if err != nil {
		return nil, unexplained(err)
	}
	if labels.Conflicts(selector, pod.Spec.NodeSelector) {
		return nil, apierrors.NewForbidden(corev1.Resource("pods"), pod.Name, errors.New("pod node label selector conflicts with its namespace node label selector"))
	}
	return selector, nil
}

func (p podNodeSelector) whitelisted(r *Request, pod *corev1.Pod) error {
	whitelist, err := labels.ConvertSelectorToLabelsMap(p.selectors[r.Namespace])
	if err != nil {
		return unexplained(err)
	}
	for k, v := range pod.Spec.NodeSelector {
		if allowed, ok := whitelist[k]; len(whitelist) > 0 && (!ok || allowed != v) {
			return apierrors.NewForbidden(corev1.Resource("pods"), pod.Name, errors.New("pod node label selector labels conflict with its namespace whitelist"))
		}
	}
	return nil
}
