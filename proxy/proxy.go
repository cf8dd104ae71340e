// Package proxy makes Services work on a node: it turns Services and EndpointSlices into
// nftables rules, as kube-proxy does, with upstream's behaviour and another layout.
//
// Upstream gives each Service its chains. Here all Services share a few:
//
//	services    address . protocol . port → the chain pick-N for N endpoints
//	endpoints   address . protocol . port . index → endpoint address . port
//	pick-N      one rule: dnat to what endpoints holds for "numgen random mod N"
//
// so that a Service is only elements of sets, and programming it costs the same however
// many there are. A node port is a frontend with the unspecified address. Variants of
// pick-N masquerade first (masq-), remember the client (sticky-), serve node ports (node-)
// or skip the indexes used by the node-local policy (-at-K). See rules.go for the chains.
//
// The core is pure: newFragment says what one Service asks for, state sums fragments up
// and yields nft.Changes, and only Proxy talks to informers and the kernel.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/internal/nft"
	"github.com/skiff-project/skiff/internal/zpages"
)

// Config says what a node's proxy serves.
type Config struct {
	// Informers give Services and EndpointSlices. New registers what it needs; the caller
	// starts the factory after New. Required.
	Informers informers.SharedInformerFactory
	// NodeName is this node's name; endpoints with it are local. Required.
	NodeName string
	// NodeIPs are the node's addresses, one or more per family served. Required.
	NodeIPs []netip.Addr
	// NodePortAddresses are the ranges of local addresses that answer node ports. Default:
	// NodeIPs. Loopback addresses never do.
	NodePortAddresses []netip.Prefix
	// ClusterCIDRs are all pods' ranges; connections from elsewhere to a ClusterIP are
	// masqueraded. Default: none, and no masquerading of ClusterIPs.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs; packets to unused ones are dropped.
	// Default: none, and such packets go where the host's routes send them.
	ServiceCIDRs []netip.Prefix
	// Families are the address families served. Default: IPv4 only.
	Families []nft.Family
	// Table is the name of the nftables tables. Default "skiff-proxy".
	Table string
	// MasqueradeMark is the packet mark bit used on the way through the kernel. Default 0x4000.
	MasqueradeMark uint32
	// MinSyncPeriod is the least time between two kernel updates. Default 10 ms: an update
	// costs about a millisecond, and an endpoint that leaves must leave at once.
	MinSyncPeriod time.Duration
	// Netns is the path of the network namespace to work in. Default: the process's own.
	Netns string
	// HealthzAddr and MetricsAddr serve /healthz, and /metrics, by HTTP. Default "": not.
	HealthzAddr, MetricsAddr string
	// Pages are served beside /metrics. Default: none.
	Pages *zpages.Pages
	// Clock tells the time. Default: the real one.
	Clock clock.WithTicker
	// Log gets one line per unusual event. Default: none.
	Log *slog.Logger
}

// nodePortRanges are the ranges of addresses that answer node ports.
func (c *Config) nodePortRanges(f nft.Family) []netip.Prefix {
	if len(c.NodePortAddresses) > 0 {
		return ofFamily(f, c.NodePortAddresses)
	}
	var out []netip.Prefix
	for _, a := range c.NodeIPs {
		if nft.FamilyOf(a) == f {
			out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
		}
	}
	return out
}

const (
	defaultTable = "skiff-proxy"
	// serviceIndex finds the EndpointSlices of a Service by namespace/name.
	serviceIndex = "skiff.service"
	// checkPeriod is how often the tables are looked for: somebody may flush all rules.
	checkPeriod = 30 * time.Second
	retryFirst  = time.Second
	retryLast   = 30 * time.Second
)

// Proxy programs one node. Make it with New.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	conn     *nft.Conn
	services corelisters.ServiceLister
	slices   cache.Indexer
	synced   []cache.InformerSynced
	regs     []registration
	view     view
	health   *healthServers
	metrics  *metrics

	mu    sync.Mutex
	dirty map[string]bool // services to look at, namespace/name
	wake  chan struct{}   // one token: dirty is not empty

	// Run's own.
	states []*state
	fresh  bool // the kernel holds nothing of ours that we know
	allUDP bool // look at every UDP Service's flows at the next update
}

type registration struct {
	informer cache.SharedIndexInformer
	handle   cache.ResourceEventHandlerRegistration
}

// New checks the configuration and registers with the informers.
func New(cfg Config) (*Proxy, error) {
	if cfg.Informers == nil || cfg.NodeName == "" || len(cfg.NodeIPs) == 0 {
		return nil, errors.New("proxy: Informers, NodeName and NodeIPs are required")
	}
	if len(cfg.Families) == 0 {
		cfg.Families = []nft.Family{nft.IPv4}
	}
	if cfg.Table == "" {
		cfg.Table = defaultTable
	}
	if cfg.MasqueradeMark == 0 {
		cfg.MasqueradeMark = 0x4000
	}
	if cfg.MinSyncPeriod == 0 {
		cfg.MinSyncPeriod = 10 * time.Millisecond
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{cfg: cfg, log: cfg.Log, conn: nft.NewConn(cfg.Netns), fresh: true, allUDP: true,
		view: view{node: cfg.NodeName, nodeIPs: cfg.NodeIPs}, dirty: map[string]bool{},
		wake: make(chan struct{}, 1)}
	p.metrics = newMetrics(cfg.Clock)
	p.health = &healthServers{netns: cfg.Netns, log: cfg.Log}
	for _, f := range cfg.Families {
		p.states = append(p.states, newState(f, &p.cfg))
	}
	return p, p.register()
}

// register hooks the proxy up to the shared informers.
func (p *Proxy) register() error {
	services := p.cfg.Informers.Core().V1().Services()
	p.services = services.Lister()
	eps := p.cfg.Informers.Discovery().V1().EndpointSlices().Informer()
	p.slices = eps.GetIndexer()
	if _, there := p.slices.GetIndexers()[serviceIndex]; !there {
		if err := eps.AddIndexers(cache.Indexers{serviceIndex: func(obj any) ([]string, error) {
			return []string{serviceOf(obj)}, nil
		}}); err != nil {
			return fmt.Errorf("proxy: index EndpointSlices: %w", err)
		}
	}
	for inf, key := range map[cache.SharedIndexInformer]func(any) string{
		services.Informer(): keyOf, eps: serviceOf,
	} {
		handle, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { p.mark(key(obj)) },
			UpdateFunc: func(old, obj any) { p.markUpdate(key(old), key(obj), old, obj) },
			DeleteFunc: func(obj any) { p.mark(key(obj)) },
		})
		if err != nil {
			return fmt.Errorf("proxy: watch Services and EndpointSlices: %w", err)
		}
		p.regs = append(p.regs, registration{inf, handle})
		p.synced = append(p.synced, handle.HasSynced)
	}
	return nil
}

func keyOf(obj any) string {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return ""
	}
	return key
}

// serviceOf is the Service an EndpointSlice belongs to.
func serviceOf(obj any) string {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return ""
	}
	return s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
}

// markUpdate leaves out the informers' resyncs, which change nothing.
func (p *Proxy) markUpdate(oldKey, key string, old, obj any) {
	a, okA := old.(interface{ GetResourceVersion() string })
	b, okB := obj.(interface{ GetResourceVersion() string })
	if okA && okB && a.GetResourceVersion() == b.GetResourceVersion() && a.GetResourceVersion() != "" {
		return
	}
	if oldKey != key {
		p.mark(oldKey)
	}
	p.mark(key)
}

func (p *Proxy) mark(key string) {
	if key == "" {
		return
	}
	p.mu.Lock()
	p.dirty[key] = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Proxy) takeDirty() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dirty
	p.dirty = map[string]bool{}
	return d
}

// Run keeps the kernel's tables as Services and EndpointSlices ask, until ctx ends. The
// tables stay behind, so connections go on; Purge removes them.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.unregister()
	stopHTTP, err := p.serveHTTP()
	if err != nil {
		return err
	}
	defer stopHTTP()
	defer p.health.sync(nil)
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return nil
	}
	check := p.cfg.Clock.NewTicker(checkPeriod)
	defer check.Stop()
	retry := retryFirst
	for {
		start := p.cfg.Clock.Now()
		pause := p.cfg.MinSyncPeriod
		if err := p.sync(); err != nil {
			p.log.Error("Services are not up to date on this node, trying again", "err", err, "in", retry)
			pause, retry = retry, min(2*retry, retryLast)
			p.poke()
		} else {
			retry = retryFirst
		}
		p.metrics.observe(start, p.fresh)
		select {
		case <-ctx.Done():
			return nil
		case <-p.cfg.Clock.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-check.C():
			p.checkTables()
		}
	}
}

func (p *Proxy) unregister() {
	for _, r := range p.regs {
		_ = r.informer.RemoveEventHandler(r.handle)
	}
}

// poke makes Run's next round happen without a change.
func (p *Proxy) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// checkTables notices tables that somebody removed.
func (p *Proxy) checkTables() {
	for _, f := range p.cfg.Families {
		if there, err := p.conn.Exists(f, p.cfg.Table); err == nil && !there {
			p.log.Warn("somebody removed the proxy's nftables table, making it anew", "family", f, "table", p.cfg.Table)
			p.fresh = true
		}
	}
}

// sync looks at the Services that changed and brings the kernel up to date.
func (p *Proxy) sync() error {
	dirty := slices.Sorted(maps.Keys(p.takeDirty()))
	udp := udpChanges{}
	for _, key := range dirty {
		svc, eps := p.lookup(key)
		for _, s := range p.states {
			next := newFragment(s.family, p.view, svc, eps)
			udp.note(s.family, s.frags[key], next)
			s.replace(key, next)
		}
		p.health.note(key, svc, eps, p.cfg.NodeName)
	}
	p.health.apply()
	var changes []nft.Changes
	for _, s := range p.states {
		c := s.pending(p.fresh)
		if !c.Empty() {
			changes = append(changes, c)
		}
	}
	if err := p.apply(changes); err != nil {
		p.allUDP = true
		return err
	}
	p.fresh = false
	if p.allUDP {
		udp = udpChanges{}
		for _, s := range p.states {
			for _, f := range s.frags {
				udp.note(s.family, nil, f)
			}
		}
		p.allUDP = false
	}
	// Flows are looked at after the rules: a packet in between would find the old rules.
	p.forgetFlows(udp)
	return nil
}

// apply writes changes; what fails as a difference is written as a whole.
func (p *Proxy) apply(changes []nft.Changes) error {
	if len(changes) == 0 {
		return nil
	}
	err := p.conn.Apply(changes...)
	if err == nil {
		return nil
	}
	if !p.fresh {
		p.log.Warn("the proxy's nftables tables are not as expected, making them anew", "table", p.cfg.Table, "err", err)
		changes = changes[:0]
		for _, s := range p.states {
			changes = append(changes, s.all())
		}
		if err = p.conn.Apply(changes...); err == nil {
			return nil
		}
	}
	p.fresh = true
	return fmt.Errorf("proxy: %w", err)
}

func (s *state) pending(fresh bool) nft.Changes {
	if fresh {
		return s.all()
	}
	return s.take()
}

// lookup gives a Service, or nil, and its EndpointSlices.
func (p *Proxy) lookup(key string) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	ns, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil, nil
	}
	svc, err := p.services.Services(ns).Get(name)
	if err != nil {
		return nil, nil // gone
	}
	objs, err := p.slices.ByIndex(serviceIndex, key)
	if err != nil {
		return svc, nil
	}
	eps := make([]*discoveryv1.EndpointSlice, 0, len(objs))
	for _, o := range objs {
		eps = append(eps, o.(*discoveryv1.EndpointSlice))
	}
	slices.SortFunc(eps, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return svc, eps
}

// Purge removes the tables of a proxy that does not run: its Config.Table ("" for the
// default) and Config.Netns. Tables that are not there are no error.
func Purge(table, netnsPath string) error {
	if err := nft.NewConn(netnsPath).Purge(cmp.Or(table, defaultTable)); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}
