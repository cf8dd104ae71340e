package aggregator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	v1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// The label of APIServices this server keeps: those of built-in groups are
// brought up to date at its start, those of definitions all the time.
const (
	managedLabel = "kube-aggregator.kubernetes.io/automanaged"
	onStart      = "onstart"
	always       = "true"
)

const registrarWorkers = 5

// registrar keeps the APIServices of what this server serves itself.
type registrar struct {
	a     *Aggregator
	queue workqueue.TypedRateLimitingInterface[string]

	mu      sync.Mutex
	desired map[string]*apiregistration.APIService
	users   map[string]int      // of a desired one: how many definitions have that version
	defined map[string][]string // by definition: the APIServices it wants
	atStart map[string]bool     // nil until the stored ones are known
	synced  map[string]bool     // dealt with at least once
	pending map[string]bool     // built in, and not seen available yet
}

func newRegistrar(a *Aggregator) *registrar {
	g := &registrar{
		a: a, queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]()),
		desired: map[string]*apiregistration.APIService{}, users: map[string]int{}, defined: map[string][]string{},
		synced: map[string]bool{}, pending: map[string]bool{},
	}
	for _, r := range a.Local {
		for i := range r.Versions {
			if s := apiregistration.Local(r.Group, r.Versions[i].Name); r.Group != apiregistration.Group {
				s.Labels = map[string]string{managedLabel: onStart}
				g.desired[s.Name], g.pending[s.Name] = s, true
			}
		}
	}
	return g
}

// run works until ctx ends. What definitions want is known before anything is
// done, so that no APIService goes because its definition was not seen yet.
func (g *registrar) run(ctx context.Context) {
	defer g.queue.ShutDown()
	ready := make(chan struct{})
	if g.a.Definitions == nil {
		close(ready)
	} else {
		var once sync.Once
		g.a.wg.Go(func() {
			again(ctx, g.a.Clock, func() error {
				return g.followDefinitions(ctx, func() { once.Do(func() { close(ready) }) })
			}, func(err error) { g.a.Log.Debug("watching CustomResourceDefinitions begins anew", "error", err) })
		})
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	for range registrarWorkers {
		g.a.wg.Go(func() {
			for g.work(ctx) {
			}
		})
	}
	<-ctx.Done()
}

// started takes note of the APIServices that were there at the start, and begins.
func (g *registrar) started(there map[string]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.atStart == nil {
		g.atStart = maps.Clone(there)
	}
	for name := range g.desired {
		g.queue.Add(name)
	}
	for name := range there {
		g.queue.Add(name)
	}
}

func (g *registrar) work(ctx context.Context) bool {
	name, quit := g.queue.Get()
	if quit {
		return false
	}
	defer g.queue.Done(name)
	if err := g.sync(ctx, name); err != nil && ctx.Err() == nil {
		g.a.Log.Error("an APIService this server keeps cannot be brought up to date", "name", name, "error", err)
		g.queue.AddRateLimited(name)
		return true
	}
	g.queue.Forget(name)
	return true
}

// available takes note of an APIService the start waits for.
func (g *registrar) available(s *apiregistration.APIService) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending[s.Name] && apiregistration.IsAvailable(s) {
		delete(g.pending, s.Name)
	}
}

// Registered errs until every APIService of a built-in group has been available once.
func (a *Aggregator) Registered() error {
	a.locals.mu.Lock()
	defer a.locals.mu.Unlock()
	if len(a.locals.pending) > 0 {
		return fmt.Errorf("missing APIService: %v", slices.Sorted(maps.Keys(a.locals.pending)))
	}
	return nil
}

func (g *registrar) sync(ctx context.Context, name string) error {
	g.mu.Lock()
	desired, synced, atStart, begun := g.desired[name], g.synced[name], g.atStart[name], g.atStart != nil
	g.mu.Unlock()
	if !begun {
		return nil // it is asked for again
	}
	have, err := g.stored(ctx, name)
	if err != nil {
		return err
	}
	w := registry.Write{Name: name}
	switch decide(have, desired, synced, atStart) {
	case create:
		if _, err = g.a.Registry.Create(ctx, w, desired.DeepCopy()); apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case update:
		_, _, err = g.a.Registry.Update(ctx, registry.Update{Write: w, Unconditional: true, Change: func(_ context.Context, obj api.Object) (api.Object, error) {
			if s, ok := obj.(*apiregistration.APIService); ok && s.UID == have.UID {
				desired.Spec.DeepCopyInto(&s.Spec)
			}
			return obj, nil
		}})
	case remove:
		_, _, err = g.a.Registry.Delete(ctx, w, &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return err
	}
	local := apiregistration.LocalAvailable()
	if have != nil && have.Spec.Service == nil && (!apiregistration.IsAvailable(have) || apiregistration.Condition(have).Reason != local.Reason) {
		if err := g.setAvailable(ctx, name, local); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.synced[name] = true
	if have == nil && desired == nil {
		delete(g.synced, name) // nothing is left to remember
	}
	return nil
}

// setAvailable says of what this server itself serves, though another server
// may have until now, that it is available.
func (g *registrar) setAvailable(ctx context.Context, name string, local v1.APIServiceCondition) error {
	_, _, err := g.a.Registry.Update(ctx, registry.Update{
		Write: registry.Write{Name: name}, View: &api.View{}, Unconditional: true,
		Change: func(_ context.Context, obj api.Object) (api.Object, error) {
			if s, ok := obj.(*apiregistration.APIService); ok && s.Spec.Service == nil {
				apiregistration.SetAvailable(s, local, g.a.Clock.Now())
			}
			return obj, nil
		},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// stored returns an APIService, nil where there is none.
func (g *registrar) stored(ctx context.Context, name string) (*apiregistration.APIService, error) {
	it, err := g.a.Registry.Get(ctx, "", name, "")
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return g.a.decode(it.KV)
}

type action int

const (
	nothing action = iota
	create
	update
	remove
)

// decide says what becomes of an APIService: have is the stored one, want the
// one this server would have, either nil. synced tells that it was decided
// upon before, atStart that it was there at the start. Nobody's but those
// with the label are touched.
func decide(have, want *apiregistration.APIService, synced, atStart bool) action {
	kind := func(s *apiregistration.APIService) string {
		if s == nil {
			return ""
		}
		return s.Labels[managedLabel]
	}
	switch is := kind(have); {
	case have == nil && want == nil, kind(want) == onStart && synced:
		return nothing
	case have == nil:
		return create
	case is != onStart && is != always, is == onStart && (synced || !atStart):
		return nothing
	case want == nil:
		return remove
	case apiequality.Semantic.DeepEqual(have.Spec, want.Spec):
		return nothing
	}
	return update
}

// followDefinitions keeps what the definitions want; ready is called once all
// there are have been seen.
func (g *registrar) followDefinitions(ctx context.Context, ready func()) error {
	w, err := g.a.Definitions.Registry.Watch(ctx, registry.WatchOptions{SendInitial: true})
	if err != nil {
		return err
	}
	defer w.Close()
	there := map[string]bool{}
	items, _ := w.Initial()
	for _, kv := range items {
		_, name := g.a.Definitions.Registry.Split(kv.Key)
		there[name] = true
		g.define(ctx, name)
	}
	for name := range g.defined { // only this goroutine writes it
		if !there[name] {
			g.define(ctx, name)
		}
	}
	ready()
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, ch := range changes {
			_, name := g.a.Definitions.Registry.Split(ch.KV.Key)
			g.define(ctx, name)
		}
	}
}

// define finds what a definition wants now.
func (g *registrar) define(ctx context.Context, name string) {
	var want []string
	e := g.a.Definitions.Entry(ctx, name)
	if e != nil && apihelpers.IsCRDConditionTrue(e.CRD, apiextensionsv1.Established) {
		for _, v := range e.CRD.Spec.Versions {
			if v.Served {
				want = append(want, v.Name+"."+e.CRD.Spec.Group)
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	had := g.defined[name]
	if slices.Equal(had, want) {
		return
	}
	for i, s := range want {
		if g.users[s]++; g.users[s] == 1 && g.desired[s] == nil {
			local := apiregistration.Local(e.CRD.Spec.Group, want[i][:len(s)-len(e.CRD.Spec.Group)-1])
			local.Labels = map[string]string{managedLabel: always}
			g.desired[s] = local
			g.queue.Add(s)
		}
	}
	for _, s := range had {
		if g.users[s]--; g.users[s] == 0 {
			delete(g.users, s)
			if d := g.desired[s]; d != nil && d.Labels[managedLabel] == always {
				delete(g.desired, s)
				g.queue.Add(s)
			}
		}
	}
	if g.defined[name] = want; want == nil {
		delete(g.defined, name)
	}
}
