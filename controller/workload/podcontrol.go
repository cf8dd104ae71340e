package workload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/dump"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// Owner is an object that can own Pods and receive events.
type Owner interface {
	metav1.Object
	runtime.Object
}

// PodFromTemplate makes the Pod owner wants from its template, named by the server after the owner.
func PodFromTemplate(t *corev1.PodTemplateSpec, owner Owner, gvk schema.GroupVersionKind) *corev1.Pod {
	prefix := owner.GetName() + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = owner.GetName()
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			GenerateName:    prefix,
			Labels:          maps.Clone(t.Labels),
			Annotations:     maps.Clone(t.Annotations),
			Finalizers:      slices.Clone(t.Finalizers),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, gvk)},
		},
		Spec: *t.Spec.DeepCopy(),
	}
}

// TemplateHash returns upstream's hash of a Pod template: the value of pod-template-hash. The
// collision count, when not nil, is mixed in.
func TemplateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*t))
	if collisions != nil {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, uint32(*collisions))
		_, _ = h.Write(b) // a hash never fails
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// PodControl creates and deletes Pods for owners and tells them so with events.
type PodControl struct {
	Client kubernetes.Interface
	Events record.EventRecorder
}

// Create makes pod on owner's behalf. The API server's error is returned unwrapped.
func (c PodControl) Create(ctx context.Context, pod *corev1.Pod, owner Owner) (*corev1.Pod, error) {
	if len(pod.Labels) == 0 {
		return nil, errors.New("unable to create pods, no labels")
	}
	p, err := c.Client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.Events.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return nil, err
	}
	c.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", p.Name)
	return p, nil
}

// Delete deletes exactly this pod, not a namesake, on owner's behalf.
func (c PodControl) Delete(ctx context.Context, pod *corev1.Pod, owner Owner) error {
	opts := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))}
	err := c.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, opts)
	if err != nil {
		if !apierrors.IsNotFound(err) {
			c.Events.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
			err = fmt.Errorf("unable to delete pods: %w", err)
		}
		return err
	}
	c.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
	return nil
}

// Patch applies a strategic-merge patch to pod; a Pod that is gone, or replaced, is no error.
func (c PodControl) Patch(ctx context.Context, pod *corev1.Pod, patch []byte) error {
	_, err := c.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType,
		patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		return nil // gone, or a namesake with another UID: the watch will say
	}
	return err
}

// ClaimPods sorts pods into those owner holds, adopting and releasing on the way. fresh re-reads
// the owner before the first adoption.
func (c PodControl) ClaimPods(ctx context.Context, cl Claimant, pods []*corev1.Pod) ([]*corev1.Pod, error) {
	var own []*corev1.Pod
	var errs []error
	recheck := sync.OnceValue(func() error { return Recheck(ctx, cl.Owner, cl.Fresh) })
	for _, p := range pods {
		switch Claim(cl.Owner, cl.Selector, p) {
		case Own:
			own = append(own, p)
		case Release:
			if err := c.Patch(ctx, p, ReleasePatch(cl.Owner.GetUID(), p.UID)); err != nil {
				errs = append(errs, fmt.Errorf("release pod %s/%s: %w", p.Namespace, p.Name, err))
			}
		case Adopt:
			if cl.Adoptable != nil && !cl.Adoptable(p) {
				continue
			}
			err := recheck()
			if err == nil {
				_, err = c.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType,
					AdoptPatch(cl.Owner, cl.Kind, p.UID), metav1.PatchOptions{})
			}
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("adopt pod %s/%s: %w", p.Namespace, p.Name, err))
				continue
			}
			own = append(own, p)
		}
	}
	return own, errors.Join(errs...)
}

// SlowStart calls fn for 0…n-1 in batches of 1, 2, 4 …, each batch at once, and stops after the
// first batch with an error: a quota or a broken template costs one failed call, not n. It returns
// the first error.
func SlowStart(n int, fn func(i int) error) error {
	for done, size := 0, 1; done < n; size *= 2 {
		if err := AtOnce(min(size, n-done), func(i int) error { return fn(done + i) }); err != nil {
			return err
		}
		done += size
	}
	return nil
}

// AtOnce calls fn for 0…n-1 concurrently, at most 64 at a time, and returns the first error by index.
func AtOnce(n int, fn func(i int) error) error {
	errs := make([]error, n)
	limit := make(chan struct{}, 64)
	var wg sync.WaitGroup
	for i := range n {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil { // one bad object must not end the process
					errs[i] = fmt.Errorf("panic: %v", p)
				}
				<-limit
			}()
			errs[i] = fn(i)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
