package workload

import (
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// ExpectationTimeout is how long a write may stay unseen by the cache before the controller acts
// on the cache anyway.
const ExpectationTimeout = 5 * time.Minute

// Expectations remembers, per key, which objects a controller has just created or deleted, until
// its cache shows them. Without it a reconcile against a cache that lags behind the controller's
// own writes would create or delete twice. The zero value is not usable; see NewExpectations.
// Memory is bounded by the writes of the last ExpectationTimeout.
type Expectations struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	keys  map[string]*pending
}

type pending struct {
	created map[types.UID]string // UID to cache key
	deleted map[types.UID]string
	until   time.Time
}

// NewExpectations returns an empty set.
func NewExpectations(c clock.PassiveClock) *Expectations {
	return &Expectations{clock: c, keys: map[string]*pending{}}
}

// Created notes that obj, as the API server returned it, has been created on behalf of key.
func (e *Expectations) Created(key string, obj metav1.Object) {
	e.note(key, func(p *pending) { p.created[obj.GetUID()] = cacheKey(obj) })
}

// Deleted notes that the API server has accepted the deletion of obj on behalf of key.
func (e *Expectations) Deleted(key string, obj metav1.Object) {
	e.note(key, func(p *pending) { p.deleted[obj.GetUID()] = cacheKey(obj) })
}

func (e *Expectations) note(key string, fn func(*pending)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.keys[key]
	if p == nil {
		p = &pending{created: map[types.UID]string{}, deleted: map[types.UID]string{}}
		e.keys[key] = p
	}
	p.until = e.clock.Now().Add(ExpectationTimeout)
	fn(p)
}

// Gone tells that the cache has delivered the deletion of obj: an object created and deleted
// between two looks at the cache would otherwise be awaited until the timeout.
func (e *Expectations) Gone(key string, uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.keys[key]; p != nil {
		delete(p.created, uid)
		delete(p.deleted, uid)
	}
}

// Forget drops what is known of key.
func (e *Expectations) Forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.keys, key)
}

// Settled reports whether store shows everything done on behalf of key. If not, wait is when to
// stop waiting for it.
func (e *Expectations) Settled(key string, store cache.Store) (ok bool, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.keys[key]
	if p == nil {
		return true, 0
	}
	for uid, name := range p.created {
		if o := lookup(store, name); o != nil && o.GetUID() == uid {
			delete(p.created, uid)
		}
	}
	for uid, name := range p.deleted {
		if o := lookup(store, name); o == nil || o.GetUID() != uid || o.GetDeletionTimestamp() != nil {
			delete(p.deleted, uid)
		}
	}
	left := p.until.Sub(e.clock.Now())
	if len(p.created)+len(p.deleted) == 0 || left <= 0 {
		delete(e.keys, key)
		return true, 0
	}
	return false, left
}

func cacheKey(o metav1.Object) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}

func lookup(store cache.Store, name string) metav1.Object {
	obj, ok, err := store.GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	o, _ := obj.(metav1.Object)
	return o
}
