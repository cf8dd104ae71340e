// Package enginetest runs controllers against client-go's fake clientset with caches under the
// test's control. A World holds what the API server knows; a controller sees only what Observe
// has shown it. So a test chooses between a fresh cache, one that lags behind the controller's own
// writes (stale), and one that never saw an intermediate state (unobserved).
package enginetest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/object/cached"
)

// Epoch is when every World begins.
var Epoch = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// World is a fake API server, a controller, and the gap between them.
type World struct {
	T      *testing.T
	Client *fake.Clientset
	Clock  *clocktesting.FakeClock
	Env    engine.Env
	C      *engine.Controller

	events *record.FakeRecorder
	queue  Queue
	mu     sync.Mutex
	serial int
	log    []string
}

// New makes a World that holds objs. Build then makes the controller under test.
func New(t *testing.T, objs ...runtime.Object) *World {
	w := &World{T: t, Client: fake.NewSimpleClientset(), Clock: clocktesting.NewFakeClock(Epoch)}
	w.events = record.NewFakeRecorder(1000)
	w.queue.after = map[string]time.Duration{}
	w.Client.PrependReactor("*", "*", w.react)
	w.Env = engine.Env{
		Client:    w.Client,
		Informers: informers.NewSharedInformerFactoryWithOptions(w.Client, 0, informers.WithTransform(cached.New("").Transform)),
		Events:    w.events,
		Clock:     w.Clock,
		Log:       slog.New(slog.DiscardHandler),
	}
	for _, o := range objs {
		w.Put(o)
	}
	return w
}

// Build sets the controller under test and fails the test if it is not valid.
func (w *World) Build(c *engine.Controller, err error) *World {
	w.T.Helper()
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		w.T.Fatal(err)
	}
	w.C = c
	return w
}

// react plays the API server's part the tracker leaves out (names, UIDs, times), keeps the
// transcript, and fails the test on a write to an undeclared output.
func (w *World) react(a ktesting.Action) (bool, runtime.Object, error) {
	if !slices.Contains([]string{"create", "update", "patch", "delete", "delete-collection"}, a.GetVerb()) {
		return false, nil, nil
	}
	gvr := a.GetResource()
	res := gvr.Resource
	if gvr.Group != "" {
		res += "." + gvr.Group
	}
	if sub := a.GetSubresource(); sub != "" {
		res += "/" + sub
	}
	if w.C != nil && !w.C.Writes(engine.Resource(res)) {
		w.T.Errorf("controller %s wrote undeclared output %s (%s)", w.C.Name, res, a.GetVerb())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := ""
	switch a := a.(type) {
	case ktesting.CreateAction:
		if m, err := meta.Accessor(a.GetObject()); err == nil {
			w.complete(m, a.GetNamespace())
			name = m.GetName()
		}
	case ktesting.PatchAction:
		name = a.GetName() + " " + string(a.GetPatch())
	case ktesting.DeleteAction:
		name = a.GetName()
	}
	if u, ok := a.(ktesting.UpdateAction); ok && a.GetVerb() == "update" {
		if m, err := meta.Accessor(u.GetObject()); err == nil {
			name = m.GetName()
			w.serial++
			m.SetResourceVersion(fmt.Sprint(w.serial))
		}
	}
	w.log = append(w.log, strings.TrimSpace(a.GetVerb()+" "+res+" "+name))
	return false, nil, nil
}

func (w *World) complete(m metav1.Object, ns string) {
	w.serial++
	if m.GetName() == "" && m.GetGenerateName() != "" {
		m.SetName(fmt.Sprintf("%s%d", m.GetGenerateName(), w.serial))
	}
	if m.GetUID() == "" {
		m.SetUID(types.UID(fmt.Sprintf("uid-%d", w.serial)))
	}
	if m.GetNamespace() == "" && ns != "" {
		m.SetNamespace(ns)
	}
	if m.GetCreationTimestamp().Time.IsZero() {
		m.SetCreationTimestamp(metav1.NewTime(w.Clock.Now()))
	}
	m.SetResourceVersion(fmt.Sprint(w.serial))
}

// Put stores o as it is, behind the controller's back: created, or replaced if it exists.
func (w *World) Put(o runtime.Object) {
	w.T.Helper()
	m, err := meta.Accessor(o)
	if err != nil {
		w.T.Fatal(err)
	}
	w.mu.Lock()
	w.complete(m, "")
	w.mu.Unlock()
	gvr := w.gvr(o)
	tracker := w.Client.Tracker()
	if _, err := tracker.Get(gvr, m.GetNamespace(), m.GetName()); err == nil {
		err = tracker.Update(gvr, o, m.GetNamespace())
		if err != nil {
			w.T.Fatal(err)
		}
		return
	}
	if err := tracker.Create(gvr, o, m.GetNamespace()); err != nil {
		w.T.Fatal(err)
	}
}

// Remove deletes the object like o at once, behind the controller's back.
func (w *World) Remove(o runtime.Object) {
	w.T.Helper()
	m, _ := meta.Accessor(o)
	if err := w.Client.Tracker().Delete(w.gvr(o), m.GetNamespace(), m.GetName()); err != nil {
		w.T.Fatal(err)
	}
}

func (w *World) gvr(o runtime.Object) schema.GroupVersionResource {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		w.T.Fatal(err)
	}
	gvr, _ := meta.UnsafeGuessKindToResource(kinds[0])
	return gvr
}

// Observe brings the caches of the controller's sources up to date with the API server and
// delivers the changes to the handlers. With names given, only those resources are refreshed.
func (w *World) Observe(only ...engine.Resource) *World {
	w.T.Helper()
	for _, s := range w.C.Sources {
		if len(only) == 0 || slices.Contains(only, s.Resource) {
			w.refresh(s)
		}
	}
	return w
}

func (w *World) refresh(s engine.Source) {
	store := s.Informer.GetIndexer()
	now := map[string]any{}
	for _, o := range w.list(s.Resource) {
		key, _ := cache.MetaNamespaceKeyFunc(o)
		now[key] = o
	}
	for _, old := range store.List() {
		key, _ := cache.MetaNamespaceKeyFunc(old)
		if now[key] == nil {
			_ = store.Delete(old)
			w.deliver(s, old, nil)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now)) { // in order: a test's transcript is always the same
		o := now[key]
		old, had, _ := store.GetByKey(key)
		if had && reflect.DeepEqual(old, o) {
			continue
		}
		if had {
			_ = store.Update(o)
			w.deliver(s, old, o)
			continue
		}
		_ = store.Add(o)
		w.deliver(s, nil, o)
	}
}

func (w *World) deliver(s engine.Source, old, new any) {
	if s.On != nil {
		s.On(&w.queue, old, new)
	}
}

func (w *World) list(r engine.Resource) []runtime.Object {
	name, group, _ := strings.Cut(string(r), ".")
	for gvk := range scheme.Scheme.AllKnownTypes() {
		gvr, _ := meta.UnsafeGuessKindToResource(gvk)
		if gvr.Resource != name || gvr.Group != group || gvr.Version != "v1" {
			continue
		}
		list, err := w.Client.Tracker().List(gvr, gvk, "")
		if err != nil {
			w.T.Fatal(err)
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			w.T.Fatal(err)
		}
		for i := range items {
			items[i] = items[i].DeepCopyObject()
		}
		return items
	}
	w.T.Fatalf("no kind for resource %s", r)
	return nil
}

// Reconcile runs the controller once for key and returns its error (nil for Later).
func (w *World) Reconcile(key string) error {
	w.T.Helper()
	err := w.C.Reconcile(context.Background(), key)
	if d, ok := engine.LaterThan(err); ok {
		w.queue.AddAfter(key, d)
		return nil
	}
	return err
}

// Settle alternates observing and reconciling every queued key until nothing is queued. It fails
// the test after 100 rounds, or when a key's last reconcile failed.
func (w *World) Settle() *World {
	w.T.Helper()
	failed := map[string]error{}
	for range 100 {
		w.Observe()
		keys := w.queue.Take()
		for k := range failed {
			keys = append(keys, k)
		}
		if len(keys) == 0 {
			return w
		}
		was := failed
		failed = map[string]error{}
		for _, k := range keys {
			if err := w.Reconcile(k); err != nil {
				failed[k] = err
				if was[k] != nil && was[k].Error() == err.Error() && len(keys) == len(was) {
					w.T.Fatalf("%s keeps failing for %q: %v", w.C.Name, k, err)
				}
			}
		}
	}
	w.T.Fatalf("%s does not settle; last writes:\n%s", w.C.Name, strings.Join(w.Writes(), "\n"))
	return w
}

// Step moves the clock and makes the keys due by then ready.
func (w *World) Step(d time.Duration) *World {
	w.Clock.Step(d)
	w.queue.step(d)
	return w
}

// Writes returns and clears the transcript of writes: "verb resource name [patch]".
func (w *World) Writes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.log
	w.log = nil
	return out
}

// Events returns and clears the events: "Type Reason message".
func (w *World) Events() []string {
	var out []string
	for {
		select {
		case e := <-w.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// Queued reports the keys waiting now, and clears them.
func (w *World) Queued() []string { return w.queue.Take() }

// Due reports the delay after which key comes back, 0 if it does not.
func (w *World) Due(key string) time.Duration {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	return w.queue.after[key]
}

// Queue is an engine.Queue that only remembers.
type Queue struct {
	mu    sync.Mutex
	ready []string
	after map[string]time.Duration
}

// Add implements engine.Queue.
func (q *Queue) Add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.ready, key) {
		q.ready = append(q.ready, key)
	}
}

// AddAfter implements engine.Queue: of two delays the shorter counts.
func (q *Queue) AddAfter(key string, d time.Duration) {
	if d <= 0 {
		q.Add(key)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if old, ok := q.after[key]; !ok || d < old {
		q.after[key] = d
	}
}

// Take returns and clears the ready keys.
func (q *Queue) Take() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.ready
	q.ready = nil
	return out
}

func (q *Queue) step(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, left := range q.after {
		if left > d {
			q.after[k] = left - d
			continue
		}
		delete(q.after, k)
		if !slices.Contains(q.ready, k) {
			q.ready = append(q.ready, k)
		}
	}
}
