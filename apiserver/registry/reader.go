package registry

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/customresource"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/store"
)

// Reader reads stored objects for authorizers and admission plugins. Decoded
// objects are remembered as long as their stored version is the newest, so
// that policy read on every request is decoded once. It reads what this process
// has seen, its own writes included, and asks no server. It implements
// admission.Reader. What it returns is shared and must not be changed.
type Reader struct {
	store store.Store
	enc   *encryption.Set
	regs  map[string]*Registry
	mu    sync.Mutex
	gets  map[string]readerEntry
	lists map[listKey]readerList
}

type readerEntry struct {
	kv  *store.KV
	obj api.Object
}

type listKey struct{ group, resource, namespace string }

// readerList is what a list was, by the versions as they are stored: an empty
// one remembers that too, as of the configurations of admission, which every
// write asks for.
type readerList struct {
	kvs  []*store.KV
	objs []api.Object
}

// Bounds of what a Reader remembers.
const (
	maxReaderObjects = 512
	maxReaderLists   = 64
	maxReaderListLen = 512 // longer lists are decoded each time
)

// local is a store whose newest snapshot is the newest in memory.
type local struct{ store.Store }

func (l local) Snapshot(ctx context.Context, rev int64) (store.Snapshot, error) {
	if rev == 0 {
		rev = store.Local
	}
	return l.Store.Snapshot(ctx, rev)
}

// NewReader returns a reader over the store, which is encrypted by enc (nil: it
// is not); resources without storage are left out.
func NewReader(s store.Store, resources []*api.Resource, enc *encryption.Set) (*Reader, error) {
	r := &Reader{store: local{s}, enc: enc, regs: map[string]*Registry{}, gets: map[string]readerEntry{}, lists: map[listKey]readerList{}}
	for _, res := range resources {
		if res.Virtual {
			continue
		}
		reg, err := New(Config{Resource: res, Store: s, Encryption: enc})
		if err != nil {
			return nil, err
		}
		reg.Store = local{reg.Store}
		r.regs[res.Group+"/"+res.Name] = reg
	}
	return r, nil
}

func (r *Reader) of(group, resource string) (*Registry, error) {
	reg := r.regs[group+"/"+resource]
	if reg == nil && strings.Contains(group, ".") {
		return New(Config{Resource: customresource.Unread(group, resource), Store: r.store, Encryption: r.enc})
	}
	if reg == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("no resource %s is stored", schema.GroupResource{Group: group, Resource: resource}))
	}
	return reg, nil
}

// Get returns one object, or an API NotFound error.
func (r *Reader) Get(group, resource, namespace, name string) (api.Object, error) {
	reg, err := r.of(group, resource)
	if err != nil {
		return nil, err
	}
	it, err := reg.Get(context.Background(), namespace, name, "")
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	have, ok := r.gets[it.KV.Key]
	r.mu.Unlock()
	if ok && have.kv == it.KV {
		return have.obj, nil
	}
	obj, err := reg.Object(it)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.gets) >= maxReaderObjects {
		clear(r.gets)
	}
	r.gets[it.KV.Key] = readerEntry{it.KV, obj}
	return obj, nil
}

// List returns the objects of a namespace, or of all with an empty one.
func (r *Reader) List(group, resource, namespace string) ([]api.Object, error) {
	reg, err := r.of(group, resource)
	if err != nil {
		return nil, err
	}
	snap, err := reg.snapshot(context.Background(), 0)
	if err != nil {
		return nil, err
	}
	start, end, err := reg.ranges(Selection{Namespace: namespace})
	if err != nil {
		return nil, err
	}
	key := listKey{group, resource, namespace}
	r.mu.Lock()
	have := r.lists[key]
	r.mu.Unlock()
	if have.current(snap.Range(start, end)) {
		return have.objs, nil
	}
	known := make(map[*store.KV]api.Object, len(have.kvs))
	for i, kv := range have.kvs {
		known[kv] = have.objs[i]
	}
	var now readerList
	for kv := range snap.Range(start, end) {
		obj := known[kv]
		if obj == nil {
			open, err := reg.Open(kv)
			if err != nil {
				return nil, err
			}
			if obj, err = reg.Object(Item{KV: open, ResourceVersion: kv.ModRevision}); err != nil {
				return nil, err
			}
		}
		now.kvs, now.objs = append(now.kvs, kv), append(now.objs, obj)
	}
	if len(now.objs) <= maxReaderListLen {
		r.mu.Lock()
		if len(r.lists) >= maxReaderLists {
			clear(r.lists)
		}
		r.lists[key] = now
		r.mu.Unlock()
	}
	return now.objs, nil
}

// current reports whether a list is what is stored.
func (l readerList) current(stored iter.Seq[*store.KV]) bool {
	n := 0
	for kv := range stored {
		if n == len(l.kvs) || l.kvs[n] != kv {
			return false
		}
		n++
	}
	return n == len(l.kvs)
}

// Select returns the objects a field selector matches; fields are decoded
// once per stored version, objects only if they match.
func (r *Reader) Select(group, resource, namespace string, sel fields.Selector) ([]api.Object, error) {
	reg, err := r.of(group, resource)
	if err != nil {
		return nil, err
	}
	page, err := reg.List(context.Background(), ListOptions{Selection: Selection{Namespace: namespace, Fields: sel}})
	if err != nil {
		return nil, err
	}
	objs := make([]api.Object, len(page.Items))
	for i, kv := range page.Items {
		if objs[i], err = reg.Object(Item{KV: kv, ResourceVersion: kv.ModRevision}); err != nil {
			return nil, err
		}
	}
	return objs, nil
}

// UpdateQuotaStatus stores the status of q if the stored object is still at
// q's resourceVersion, else it answers a Conflict. It implements
// admission.QuotaUpdater.
func (r *Reader) UpdateQuotaStatus(ctx context.Context, q *corev1.ResourceQuota) error {
	reg, err := r.of("", "resourcequotas")
	if err != nil {
		return err
	}
	_, _, err = reg.Update(ctx, Update{
		Write: Write{Namespace: q.Namespace, Name: q.Name}, View: &api.View{},
		Change: func(_ context.Context, old api.Object) (api.Object, error) {
			stored, ok := old.(*corev1.ResourceQuota)
			if !ok {
				return nil, fmt.Errorf("resource quotas are stored as %T", old)
			}
			q.Status.DeepCopyInto(&stored.Status)
			stored.ResourceVersion = q.ResourceVersion
			return stored, nil
		},
	})
	return err
}
