package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// alwaysPullImages makes pods pull every image, so that only who may read an
// image runs it, wherever it is already.
type alwaysPullImages struct{}

func (alwaysPullImages) Name() string { return "AlwaysPullImages" }

func (alwaysPullImages) Admit(_ context.Context, r *Request) error {
	if pod := pullsImages(r); pod != nil {
		eachPull(pod, func(_ *field.Path, policy *corev1.PullPolicy) { *policy = corev1.PullAlways })
	}
	return nil
}

func (alwaysPullImages) Validate(_ context.Context, r *Request) error {
	pod := pullsImages(r)
	if pod == nil {
		return nil
	}
	var errs []error
	eachPull(pod, func(path *field.Path, policy *corev1.PullPolicy) {
		if *policy != corev1.PullAlways {
			errs = append(errs, forbidden(r, field.NotSupported(path, *policy, []corev1.PullPolicy{corev1.PullAlways})))
		}
	})
	return unexplained(utilerrors.NewAggregate(errs))
}

// pullsImages returns the pod a request brings, unless it changes one and
// brings no new image. Containers are added to a running pod by a subresource, which upstream leaves alone too.
func pullsImages(r *Request) *corev1.Pod {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok || !r.is("", "pods") {
		return nil
	}
	old, ok := r.Old.(*corev1.Pod)
	if !ok {
		return pod
	}
	known := sets.New[string]()
	eachContainer(old, func(_ *field.Path, c *corev1.Container) { known.Insert(c.Image) })
	isNew := false
	eachContainer(pod, func(_ *field.Path, c *corev1.Container) { isNew = isNew || !known.Has(c.Image) })
	if !isNew {
		return nil
	}
	return pod
}

// eachPull visits the pull policies of containers and of image volumes.
func eachPull(pod *corev1.Pod, visit func(*field.Path, *corev1.PullPolicy)) {
	eachContainer(pod, func(path *field.Path, c *corev1.Container) { visit(path.Child("imagePullPolicy"), &c.ImagePullPolicy) })
	for i, v := range pod.Spec.Volumes {
		if v.Image != nil {
			visit(field.NewPath("spec", "volumes").Index(i).Child("image", "pullPolicy"), &v.Image.PullPolicy)
		}
	}
}

func eachContainer(pod *corev1.Pod, visit func(*field.Path, *corev1.Container)) {
	spec := field.NewPath("spec")
	for i := range pod.Spec.InitContainers {
		visit(spec.Child("initContainers").Index(i), &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		visit(spec.Child("containers").Index(i), &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		visit(spec.Child("ephemeralContainers").Index(i), (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
}
