package resourcequota

import (
	"context"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/engine"
)

// watches are informers of what some quota counts and no other controller caches: custom
// resources. Each begins when a quota first counts it and ends with its resource, so there are at
// most as many as resources that quotas name.
type watches struct {
	metadata metadata.Interface
	changed  func(q engine.Queue, gr schema.GroupResource, old, new any)

	mu   sync.Mutex
	ctx  context.Context // nil until begin
	q    engine.Queue
	kept map[schema.GroupResource]kept
}

type kept struct {
	cache.SharedIndexInformer
	stop context.CancelFunc
}

// begin lets watches begin; they end with ctx.
func (w *watches) begin(ctx context.Context, q engine.Queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ctx, w.q, w.kept = ctx, q, map[schema.GroupResource]kept{}
}

// of returns the informer of gvr, begun if it has to be; nil before begin.
func (w *watches) of(gvr schema.GroupVersionResource) cache.SharedIndexInformer {
	w.mu.Lock()
	defer w.mu.Unlock()
	gr := gvr.GroupResource()
	if w.ctx == nil {
		return nil
	}
	if k, ok := w.kept[gr]; ok {
		return k.SharedIndexInformer
	}
	ctx, stop := context.WithCancel(w.ctx)
	inf := metadatainformer.NewFilteredMetadataInformer(w.metadata, gvr, metav1.NamespaceAll, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}, nil).Informer()
	// Nothing to undo: an informer that never ran takes every handler and transform.
	_ = inf.SetTransform(func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok { // counting needs the name only
			m.SetManagedFields(nil)
			m.SetAnnotations(nil)
		}
		return o, nil
	})
	_, _ = inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.changed(w.q, gr, nil, o) },
		DeleteFunc: func(o any) { w.changed(w.q, gr, o, nil) },
	})
	w.kept[gr] = kept{inf, stop}
	go inf.RunWithContext(ctx)
	return inf
}

// end stops watching a resource that is not served any more.
func (w *watches) end(gr schema.GroupResource) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k, ok := w.kept[gr]; ok {
		k.stop()
		delete(w.kept, gr)
	}
}

// background lets the watches begin, for the quotas there are, too.
func (c *controller) background(ctx context.Context, q engine.Queue) error {
	all, err := c.quotas.List(labels.Everything())
	if err != nil {
		return err
	}
	c.watches.begin(ctx, q)
	for _, rq := range all { // the workers may have counted them already
		q.Add(rq.Namespace + "/" + rq.Name)
	}
	<-ctx.Done()
	return nil
}
