// Package resourcequota writes into every ResourceQuota's status what its namespace uses of it.
// It only tells: admission counts for itself what it lets in.
package resourcequota

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/api/quota"
	"github.com/skiff-project/skiff/controller/engine"
)

const (
	// resync is how often a quota is counted anew although nothing seen changed it.
	resync = 5 * time.Minute
	// page bounds one answer of a list of objects no cache holds.
	page = 500
)

// Discover lists the namespaced resources in their preferred versions.
type Discover func() ([]*metav1.APIResourceList, error)

type controller struct {
	env      engine.Env
	metadata metadata.Interface
	discover Discover
	quotas   listers.ResourceQuotaLister
	caches   map[schema.GroupResource]cache.SharedIndexInformer
	watches  watches
}

// New returns the quota controller. Objects no cache of the controllers holds (custom ones) are
// watched through md once a quota counts them; nil leaves them out.
func New(env engine.Env, md metadata.Interface, discover Discover) (*engine.Controller, error) {
	quotas := env.Informers.Core().V1().ResourceQuotas()
	c := &controller{env: env, metadata: md, discover: discover, quotas: quotas.Lister(), caches: cached(env.Informers)}
	built := &engine.Controller{
		Name:    "resourcequota-controller",
		Outputs: []engine.Resource{"resourcequotas/status"},
		Sources: []engine.Source{engine.On("resourcequotas", quotas.Informer(), func(q engine.Queue, old, new *corev1.ResourceQuota) {
			// Quotas may be counted by quotas, too.
			if old == nil || new == nil {
				c.changed(q, schema.GroupResource{Resource: "resourcequotas"}, old, new)
			}
			if new != nil {
				q.Add(new.Namespace + "/" + new.Name)
			}
		})},
		Reconcile:  c.reconcile,
		Background: c.background,
	}
	c.watches.metadata, c.watches.changed = md, c.changed
	for gr, inf := range c.caches {
		if gr.Resource == "resourcequotas" {
			continue
		}
		built.Sources = append(built.Sources, engine.Source{Resource: engine.Resource(gr.String()), Informer: inf,
			On: func(q engine.Queue, old, new any) { c.changed(q, gr, old, new) }})
	}
	return built, nil
}

// cached are the informers that other controllers keep as well.
func cached(f informers.SharedInformerFactory) map[schema.GroupResource]cache.SharedIndexInformer {
	core, apps, batch := f.Core().V1(), f.Apps().V1(), f.Batch().V1()
	return map[schema.GroupResource]cache.SharedIndexInformer{
		{Resource: "pods"}:                        core.Pods().Informer(),
		{Resource: "services"}:                    core.Services().Informer(),
		{Resource: "persistentvolumeclaims"}:      core.PersistentVolumeClaims().Informer(),
		{Resource: "configmaps"}:                  core.ConfigMaps().Informer(),
		{Resource: "secrets"}:                     core.Secrets().Informer(),
		{Resource: "replicationcontrollers"}:      core.ReplicationControllers().Informer(),
		{Resource: "resourcequotas"}:              core.ResourceQuotas().Informer(),
		{Resource: "serviceaccounts"}:             core.ServiceAccounts().Informer(),
		{Group: "apps", Resource: "deployments"}:  apps.Deployments().Informer(),
		{Group: "apps", Resource: "replicasets"}:  apps.ReplicaSets().Informer(),
		{Group: "apps", Resource: "statefulsets"}: apps.StatefulSets().Informer(),
		{Group: "apps", Resource: "daemonsets"}:   apps.DaemonSets().Informer(),
		{Group: "batch", Resource: "jobs"}:        batch.Jobs().Informer(),
		{Group: "batch", Resource: "cronjobs"}:    batch.CronJobs().Informer(),
	}
}

// changed asks for the quotas of the object's namespace that count its resource, if what it uses
// changed.
func (c *controller) changed(q engine.Queue, gr schema.GroupResource, old, new any) {
	if d, ok := old.(cache.DeletedFinalStateUnknown); ok {
		old = d.Obj
	}
	o, _ := old.(metav1.Object)
	n, _ := new.(metav1.Object)
	ns := ""
	switch {
	case present(n):
		ns = n.GetNamespace()
	case present(o):
		ns = o.GetNamespace()
	default:
		return
	}
	quotas, err := c.quotas.ResourceQuotas(ns).List(labels.Everything())
	if err != nil || len(quotas) == 0 {
		return
	}
	if present(o) && present(n) && !c.usageChanged(gr, quotas, old, new) {
		return
	}
	for _, rq := range quotas {
		for name := range rq.Spec.Hard {
			if counted, ok := quota.Counts(name); ok && counted == gr {
				q.Add(rq.Namespace + "/" + rq.Name)
				break
			}
		}
	}
}

// present: neither nil nor a typed nil, which typed handlers pass on.
func present(o metav1.Object) bool {
	rq, isQuota := o.(*corev1.ResourceQuota)
	return o != nil && (!isQuota || rq != nil)
}

func (c *controller) usageChanged(gr schema.GroupResource, quotas []*corev1.ResourceQuota, old, new any) bool {
	k := quota.Counter{Group: gr.Group, Resource: gr.Resource, Now: c.env.Clock.Now()}
	if !equality.Semantic.DeepEqual(k.Usage(old), k.Usage(new)) {
		return true
	}
	if pod, ok := new.(*corev1.Pod); ok && pod.DeletionTimestamp != nil {
		return true // it stops counting when its time has passed
	}
	return slices.ContainsFunc(quotas, func(q *corev1.ResourceQuota) bool { return k.InScope(q, old) != k.InScope(q, new) })
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	rq, err := c.quotas.ResourceQuotas(ns).Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	used, countErr := c.count(ctx, rq)
	status := corev1.ResourceQuotaStatus{Hard: rq.Spec.Hard, Used: used}
	if !equality.Semantic.DeepEqual(status.Hard, rq.Status.Hard) || !equality.Semantic.DeepEqual(status.Used, rq.Status.Used) {
		rq = rq.DeepCopy()
		rq.Status = status
		if _, err := c.env.Client.CoreV1().ResourceQuotas(ns).UpdateStatus(ctx, rq, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return errors.Join(err, countErr)
		}
	}
	if countErr != nil {
		return countErr
	}
	if wait, ends := nextEnd(c.caches, ns, c.env.Clock.Now()); ends && wait < resync {
		return engine.Later(wait)
	}
	return engine.Later(resync)
}

// count sums up what the quota's namespace uses, under the names of its hard limits. With an
// error, what could not be counted keeps the figure it has.
func (c *controller) count(ctx context.Context, rq *corev1.ResourceQuota) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	byResource := map[schema.GroupResource][]corev1.ResourceName{}
	for name := range rq.Spec.Hard {
		if gr, ok := quota.Counts(name); ok {
			byResource[gr] = append(byResource[gr], name)
		}
	}
	var errs []error
	for gr, names := range byResource {
		objs, err := c.objects(ctx, gr, rq.Namespace)
		if err != nil {
			errs = append(errs, fmt.Errorf("quota %s/%s: count %s: %w", rq.Namespace, rq.Name, gr, err))
			for _, name := range names {
				if v, ok := rq.Status.Used[name]; ok {
					used[name] = v
				}
			}
			continue
		}
		sum := sumUp(rq, gr, objs, c.env.Clock.Now())
		for _, name := range names {
			used[name] = sum[name]
			if _, some := sum[name]; !some {
				used[name] = resource.MustParse("0")
			}
		}
	}
	return used, errors.Join(errs...)
}

func sumUp(rq *corev1.ResourceQuota, gr schema.GroupResource, objs []any, now time.Time) corev1.ResourceList {
	k := quota.Counter{Group: gr.Group, Resource: gr.Resource, Now: now}
	sum := corev1.ResourceList{}
	for _, o := range objs {
		if !k.InScope(rq, o) {
			continue
		}
		for name, v := range k.Usage(o) {
			total := sum[name]
			total.Add(v)
			sum[name] = total
		}
	}
	return sum
}

// objects are those of one resource in a namespace: from a cache, else asked for.
func (c *controller) objects(ctx context.Context, gr schema.GroupResource, ns string) ([]any, error) {
	if inf, ok := c.caches[gr]; ok {
		return inf.GetIndexer().ByIndex(cache.NamespaceIndex, ns)
	}
	if c.metadata == nil || c.discover == nil {
		return nil, errors.New("no cache holds it")
	}
	gvr, err := c.find(gr)
	if err != nil {
		c.watches.end(gr)
		return nil, err
	}
	if inf := c.watches.of(gvr); inf != nil && inf.HasSynced() {
		return inf.GetIndexer().ByIndex(cache.NamespaceIndex, ns)
	}
	var out []any
	for token := ""; ; {
		l, err := c.metadata.Resource(gvr).Namespace(ns).List(ctx, metav1.ListOptions{Limit: page, Continue: token})
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
		if token = l.Continue; token == "" {
			return out, nil
		}
	}
}

func (c *controller) find(gr schema.GroupResource) (schema.GroupVersionResource, error) {
	lists, err := c.discover()
	for _, l := range lists {
		gv, parseErr := schema.ParseGroupVersion(l.GroupVersion)
		if parseErr != nil || gv.Group != gr.Group {
			continue
		}
		for _, r := range l.APIResources {
			if r.Name == gr.Resource {
				return gv.WithResource(r.Name), nil
			}
		}
	}
	if err == nil {
		err = errors.New("no such namespaced resource")
	}
	return schema.GroupVersionResource{}, err
}

// nextEnd is how long until the next deleted Pod of the namespace has used up its time: it stops
// counting then, with no change to be seen.
func nextEnd(caches map[schema.GroupResource]cache.SharedIndexInformer, ns string, now time.Time) (wait time.Duration, some bool) {
	pods, err := caches[schema.GroupResource{Resource: "pods"}].GetIndexer().ByIndex(cache.NamespaceIndex, ns)
	if err != nil {
		return 0, false
	}
	for _, o := range pods {
		pod := o.(*corev1.Pod)
		if pod.DeletionTimestamp == nil || pod.DeletionGracePeriodSeconds == nil {
			continue
		}
		end := pod.DeletionTimestamp.Add(time.Duration(*pod.DeletionGracePeriodSeconds)*time.Second + time.Millisecond)
		if left := end.Sub(now); left > 0 && (!some || left < wait) {
			wait, some = left, true
		}
	}
	return wait, some
}
