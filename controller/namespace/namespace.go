// Package namespace empties a namespace that is being deleted and then lets it go: first its Pods,
// which other content may still serve, then everything else of every deletable resource, custom
// ones included. Progress and trouble are told by the namespace's conditions.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

// finalizerSeconds is how long content with finalizers is expected to need.
const finalizerSeconds = 15

var podsGVR = corev1.SchemeGroupVersion.WithResource("pods")

// Discover lists the namespaced resources in their preferred versions. With an error, the list
// holds what could be learned.
type Discover func() ([]*metav1.APIResourceList, error)

type controller struct {
	env        engine.Env
	metadata   metadata.Interface
	discover   Discover
	namespaces listers.NamespaceLister
	podCache   cache.SharedIndexInformer
}

// New returns the namespace controller.
func New(env engine.Env, md metadata.Interface, discover Discover) (*engine.Controller, error) {
	if md == nil || discover == nil {
		return nil, errors.New("namespace controller: needs a metadata client and discovery")
	}
	core := env.Informers.Core().V1()
	c := &controller{env: env, metadata: md, discover: discover, namespaces: core.Namespaces().Lister(),
		podCache: core.Pods().Informer()}
	return &engine.Controller{
		Name:    "namespace-controller",
		Outputs: []engine.Resource{"namespaces/status", "namespaces/finalize", "*"},
		Workers: 10,
		Sources: []engine.Source{
			engine.On("namespaces", core.Namespaces().Informer(), func(q engine.Queue, old, new *corev1.Namespace) {
				if new != nil && new.DeletionTimestamp != nil && (old == nil || old.DeletionTimestamp == nil) {
					q.Add(new.Name)
				}
			}),
			engine.On("pods", c.podCache, c.podChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

// podChanged wakes a dying namespace when its last Pod is gone.
func (c *controller) podChanged(q engine.Queue, old, new *corev1.Pod) {
	if new != nil {
		return
	}
	ns, err := c.namespaces.Get(old.Namespace)
	if err != nil || ns.DeletionTimestamp == nil {
		return
	}
	left, err := c.podCache.GetIndexer().ByIndex(cache.NamespaceIndex, old.Namespace)
	if err == nil && len(left) == 0 {
		q.Add(old.Namespace)
	}
}

func (c *controller) reconcile(ctx context.Context, name string) error {
	api := c.env.Client.CoreV1().Namespaces()
	ns, err := api.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || ns.DeletionTimestamp == nil || len(ns.Spec.Finalizers) == 0 {
		return err
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		ns.Status.Phase = corev1.NamespaceTerminating
		if ns, err = api.UpdateStatus(ctx, ns, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	o := c.empty(ctx, ns)
	if conds, changed := conditions(ns.Status.Conditions, o, c.env.Clock.Now()); changed {
		ns.Status.Conditions = conds
		if ns, err = api.UpdateStatus(ctx, ns, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	if errs := slices.Concat([]error{o.discovery, o.parsing}, o.deletion); errors.Join(errs...) != nil {
		return errors.Join(errs...)
	}
	if o.seconds > 0 {
		return engine.Later(time.Duration(o.seconds/2+1) * time.Second)
	}
	ns.Spec.Finalizers = slices.DeleteFunc(slices.Clone(ns.Spec.Finalizers),
		func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err = api.Finalize(ctx, ns, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

// empty deletes what it can and tells what is left.
func (c *controller) empty(ctx context.Context, ns *corev1.Namespace) outcome {
	o := outcome{remaining: map[schema.GroupVersionResource]int{}, finalizers: map[string]int{}}
	lists, err := c.discover()
	o.discovery = err
	resources, err := deletable(lists)
	o.parsing = err
	if i := slices.IndexFunc(resources, func(r resource) bool { return r.gvr == podsGVR }); i >= 0 {
		c.emptyOne(ctx, ns, resources[i], &o)
		if o.remaining[podsGVR] > 0 {
			o.waitsPods = true
			return o
		}
		resources = slices.Delete(resources, i, i+1)
	}
	for _, r := range resources {
		c.emptyOne(ctx, ns, r, &o)
	}
	return o
}

// resource is one kind of content, and whether it can be deleted in one request.
type resource struct {
	gvr        schema.GroupVersionResource
	list       bool
	collection bool
}

func deletable(lists []*metav1.APIResourceList) ([]resource, error) {
	var out []resource
	var errs []error
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, r := range l.APIResources {
			if r.Namespaced && slices.Contains(r.Verbs, "delete") {
				out = append(out, resource{gvr: gv.WithResource(r.Name), list: slices.Contains(r.Verbs, "list"),
					collection: slices.Contains(r.Verbs, "deletecollection")})
			}
		}
	}
	return out, errors.Join(errs...)
}

func (c *controller) emptyOne(ctx context.Context, ns *corev1.Namespace, r resource, o *outcome) {
	left, err := c.deleteAll(ctx, ns.Name, r)
	if err != nil {
		if r.gvr == podsGVR {
			err = fmt.Errorf("failed to delete pods for namespace: %s, err: %w", ns.Name, err)
		}
		o.deletion = append(o.deletion, err)
		return
	}
	if len(left) == 0 {
		return
	}
	o.remaining[r.gvr] = len(left)
	seconds := int64(0)
	if r.gvr == podsGVR {
		seconds = c.grace(ctx, ns)
	}
	for _, item := range left {
		for _, f := range item.Finalizers {
			o.finalizers[f]++
			if seconds == 0 {
				seconds = finalizerSeconds
			}
		}
	}
	if seconds == 0 {
		o.deletion = append(o.deletion, fmt.Errorf("unexpected items still remain in namespace: %s for gvr: %v", ns.Name, r.gvr))
	}
	o.seconds = max(o.seconds, seconds)
}

// deleteAll deletes what there is of r and returns what is left after that.
func (c *controller) deleteAll(ctx context.Context, ns string, r resource) ([]metav1.PartialObjectMetadata, error) {
	api := c.metadata.Resource(r.gvr).Namespace(ns)
	background := metav1.DeletePropagationBackground
	opts := metav1.DeleteOptions{PropagationPolicy: &background}
	var items []metav1.PartialObjectMetadata
	if r.list {
		list, err := api.List(ctx, metav1.ListOptions{})
		if unsupported(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if items = list.Items; len(items) == 0 {
			return nil, nil
		}
	}
	if r.collection {
		err := api.DeleteCollection(ctx, opts, metav1.ListOptions{})
		if err != nil && !unsupported(err) {
			return nil, err
		}
		r.collection = err == nil
	}
	if !r.collection {
		for _, item := range items {
			if err := api.Delete(ctx, item.Name, opts); err != nil && !unsupported(err) {
				return nil, err
			}
		}
	}
	if !r.list {
		return nil, nil
	}
	list, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		if unsupported(err) {
			return nil, nil
		}
		return nil, err
	}
	return list.Items, nil
}

func unsupported(err error) bool {
	return apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err)
}

// grace is how many seconds the namespace's Pods may still take; 0 once that time has passed. It
// asks the API server: the cache may not know the youngest Pods.
func (c *controller) grace(ctx context.Context, ns *corev1.Namespace) int64 {
	pods, err := c.env.Client.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0
	}
	longest := int64(0)
	for i := range pods.Items {
		p := &pods.Items[i]
		if !workload.IsFinished(p) && p.Spec.TerminationGracePeriodSeconds != nil {
			longest = max(longest, *p.Spec.TerminationGracePeriodSeconds)
		}
	}
	if c.env.Clock.Since(ns.DeletionTimestamp.Time) >= time.Duration(longest)*time.Second {
		return 0
	}
	return longest
}
