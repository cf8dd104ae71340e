// Package aggregator serves APIs of other servers under this one's name: each
// APIService with a Service is a version of an API group that is answered
// there. It keeps the APIServices of what this server serves itself, watches
// whether the others are available, passes requests on to them under the
// user's identity, and shows their discovery and OpenAPI documents among its own.
package aggregator

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/transport"
	v1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/clock"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/apiserver/connect"
	"github.com/skiff-project/skiff/apiserver/definitions"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
)

// Key names the resource of the APIServices.
const Key = apiregistration.Group + "/" + apiregistration.Name

// Config makes an Aggregator. Fields are required unless said otherwise.
type Config struct {
	// Registry stores the APIServices.
	Registry *registry.Registry
	// Local are the resources this server serves itself; Definitions makes more of them (nil: none).
	Local       []*api.Resource
	Definitions *definitions.Table
	// Reader reads Services and EndpointSlices; Watched are the registries of both, whose changes
	// make availability be looked at again.
	Reader           *registry.Reader
	Services, Slices *registry.Registry
	// Route finds where ("address:port") a Service's port is reached.
	Route func(namespace, service, port string) (string, error)
	// Proxy carries upgraded connections; its Dial makes all others too.
	Proxy *connect.Proxy
	// Certificate is shown to aggregated servers, which believe its bearer who the user is. Nil, or a nil one: none is.
	Certificate func() *tls.Certificate
	// Metrics takes what is counted.
	Metrics prometheus.Registerer
	Clock   clock.WithTicker
	Log     *slog.Logger
}

// Aggregator is safe for concurrent use. Run it once.
type Aggregator struct {
	Config
	remotes atomic.Pointer[map[string]*remote] // by APIService; a map is never changed once it is shown
	probing chan struct{}                      // slots
	locals  *registrar
	count   *availability
	life    context.Context // ends with Run
	end     context.CancelFunc
	wg      sync.WaitGroup
}

const parallelProbes = 5

// New reads the stored APIServices, so that from the first request on a path
// that belongs to another server is not taken for one that does not exist.
func New(c Config) (*Aggregator, error) {
	a := &Aggregator{Config: c, probing: make(chan struct{}, parallelProbes), count: newAvailability()}
	if err := c.Metrics.Register(a.count); err != nil {
		return nil, err
	}
	a.life, a.end = context.WithCancel(context.Background())
	a.locals = newRegistrar(a)
	a.remotes.Store(&map[string]*remote{})
	page, err := c.Registry.List(a.life, registry.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the stored APIServices: %w", err)
	}
	for _, kv := range page.Items {
		s, err := a.decode(kv)
		if err != nil {
			return nil, err
		}
		a.set(s)
	}
	return a, nil
}

// Run follows the APIServices until ctx ends.
func (a *Aggregator) Run(ctx context.Context) {
	defer a.wg.Wait()
	defer a.end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.wg.Go(func() { a.locals.run(ctx) })
	again(ctx, a.Clock, func() error { return a.follow(ctx) }, func(err error) {
		a.Log.Debug("watching APIServices begins anew", "error", err)
	})
}

// again calls f until ctx ends, with a pause after each time.
func again(ctx context.Context, c clock.WithTicker, f func() error, failed func(error)) {
	for ctx.Err() == nil {
		if err := f(); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
		case <-c.After(time.Second):
		}
	}
}

func (a *Aggregator) follow(ctx context.Context) error {
	w, err := a.Registry.Watch(ctx, registry.WatchOptions{SendInitial: true})
	if err != nil {
		return err
	}
	defer w.Close()
	items, _ := w.Initial()
	there := map[string]bool{}
	for _, kv := range items {
		there[a.seen(ctx, kv, false)] = true
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(a.table())), a.count.names()) {
		if !there[name] {
			a.drop(name)
			a.count.forget(name)
		}
	}
	a.locals.started(there)
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, ch := range changes {
			a.locals.queue.Add(a.seen(ctx, ch.KV, ch.Type == watch.Deleted))
		}
	}
}

// seen takes note of an APIService's newest version and returns its name.
func (a *Aggregator) seen(ctx context.Context, kv *store.KV, gone bool) string {
	_, name := a.Registry.Split(kv.Key)
	s, err := a.decode(kv)
	switch {
	case gone:
		a.drop(name)
		a.count.forget(name)
	case err != nil:
		a.Log.Error("an APIService cannot be read", "name", name, "error", err)
	default:
		a.locals.available(s)
		a.count.note(s)
		if r := a.set(s); r != nil {
			r.start(ctx)
		}
	}
	return name
}

func (a *Aggregator) decode(kv *store.KV) (*apiregistration.APIService, error) {
	obj, err := a.Registry.Object(registry.Item{KV: kv, ResourceVersion: kv.ModRevision})
	if err != nil {
		return nil, err
	}
	s, ok := obj.(*apiregistration.APIService)
	if !ok {
		return nil, fmt.Errorf("APIServices are stored as %T", obj)
	}
	return s, nil
}

// set makes the table say what s says; it returns the remote, if s is one.
func (a *Aggregator) set(s *apiregistration.APIService) *remote {
	if s.Spec.Service == nil {
		a.drop(s.Name)
		return nil
	}
	have := a.table()[s.Name]
	if have != nil && have.uid == s.UID && apiequality.Semantic.DeepEqual(have.spec, s.Spec) {
		have.available.Store(apiregistration.IsAvailable(s))
		poke(have.changed.discovery)
		return have
	}
	r := newRemote(a, s)
	if have != nil {
		r.found.Store(have.found.Load())
		have.stop()
	}
	a.swap(func(m map[string]*remote) { m[s.Name] = r })
	return r
}

func (a *Aggregator) drop(name string) {
	if have := a.table()[name]; have != nil {
		have.stop()
		a.swap(func(m map[string]*remote) { delete(m, name) })
	}
}

// swap shows a changed copy of the table. Only follow, or New before it, may call it.
func (a *Aggregator) swap(change func(map[string]*remote)) {
	m := maps.Clone(a.table())
	change(m)
	a.remotes.Store(&m)
}

// table has the remotes by APIService. It is not to be changed. Without an Aggregator there are none.
func (a *Aggregator) table() map[string]*remote {
	if a == nil {
		return nil
	}
	return *a.remotes.Load()
}

// of returns the remote that serves a path, or nil.
func (a *Aggregator) of(path string) *remote {
	remotes := a.table()
	if len(remotes) == 0 {
		return nil
	}
	parts := strings.SplitN(strings.TrimPrefix(path, "/"), "/", 4)
	switch {
	case parts[0] == "api":
		return remotes["v1."]
	case parts[0] == "apis" && len(parts) >= 3:
		return remotes[parts[2]+"."+parts[1]]
	}
	return nil
}

// remote is one version of an API group that another server answers.
type remote struct {
	a         *Aggregator
	name      string
	uid       types.UID
	spec      v1.APIServiceSpec
	available atomic.Bool
	broken    error // why no connection can be made at all
	tls       *tls.Config
	transport *http.Transport
	found     atomic.Pointer[apidiscoveryv2.APIVersionDiscovery]
	etag      string // of the discovery document; used by its loop only
	changed   struct{ availability, discovery chan struct{} }
	docs      documents
	cancel    context.CancelFunc // nil: not started
}

func newRemote(a *Aggregator, s *apiregistration.APIService) *remote {
	r := &remote{a: a, name: s.Name, uid: s.UID, spec: s.Spec}
	r.changed.availability, r.changed.discovery = make(chan struct{}, 1), make(chan struct{}, 1)
	r.available.Store(apiregistration.IsAvailable(s))
	r.found.Store(&apidiscoveryv2.APIVersionDiscovery{Version: s.Spec.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale})
	r.tls, r.broken = transport.TLSConfigFor(&transport.Config{TLS: transport.TLSConfig{
		Insecure: s.Spec.InsecureSkipTLSVerify, CAData: s.Spec.CABundle, ServerName: s.Spec.Service.Name + "." + s.Spec.Service.Namespace + ".svc",
	}})
	if r.broken != nil {
		return r
	}
	r.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if a.Certificate != nil {
			if c := a.Certificate(); c != nil {
				return c, nil
			}
		}
		return &tls.Certificate{}, nil
	}
	r.transport = &http.Transport{
		DialContext: a.Proxy.Dial, TLSClientConfig: r.tls, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 1 << 20,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}, // a dead peer ends its watches
	}
	return r
}

// start begins to look after the remote; further calls do nothing.
func (r *remote) start(ctx context.Context) {
	if r.cancel != nil {
		return
	}
	ctx, r.cancel = context.WithCancel(ctx)
	a := r.a
	a.wg.Go(func() { r.keepAvailability(ctx) })
	a.wg.Go(func() { r.keepDiscovery(ctx) })
	for _, w := range r.watches() {
		a.wg.Go(func() {
			again(ctx, a.Clock, func() error { return r.wake(ctx, w) }, func(err error) {
				a.Log.Debug("watching the Service of an APIService begins anew", "apiservice", r.name, "error", err)
			})
		})
	}
}

func (r *remote) stop() {
	if r.cancel != nil {
		r.cancel()
	}
	if r.transport != nil {
		r.transport.CloseIdleConnections()
	}
}

// poke wakes whoever waits for c, now or next.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wait returns when c is poked, d has passed or ctx ended.
func (a *Aggregator) wait(ctx context.Context, c <-chan struct{}, d time.Duration) {
	t := a.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C():
	case <-ctx.Done():
	}
}

// backoff doubles from first with every failure, up to last.
func backoff(first, last time.Duration, failures int) time.Duration {
	return min(first<<min(failures, 30), last)
}
