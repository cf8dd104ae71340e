// Package podcert gets certificates for pods: it makes a key and a PodCertificateRequest for each
// podCertificate source of a projected volume, waits for a signer's verdict, and asks for the next
// certificate in time. As upstream, it keeps no state over a restart: each source is asked for anew.
//
// The machine is pure; Issuer is the shell around all of them. It follows the requests of this node,
// and only while a pod mounts such a volume.
package podcert

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	informers "k8s.io/client-go/informers/certificates/v1"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/certificates/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

// Config is what an Issuer needs; everything is required.
type Config struct {
	Client   kubernetes.Interface
	NodeName string
	NodeUID  func() types.UID // "" while the Node is not known
	Clock    clock.WithTicker
	Log      *slog.Logger
	Spawn    func(func())                              // runs f in the background
	Event    func(pod *v1.Pod, reason, message string) // a warning on the pod
	Changed  func(pod types.UID)                       // what Bundle answers for this pod has changed
}

// Issuer holds the certificates of the node's pods. Make one with New.
type Issuer struct {
	cfg Config
	ctx context.Context

	mu    sync.Mutex
	items map[source]*item
	run   *run // nil while no pod has a source
}

// source is one podCertificate source of a pod's volume.
type source struct {
	pod    types.UID
	volume string
	index  int
}

type item struct {
	pod  *v1.Pod
	spec *v1.PodCertificateProjection
	machine
}

// run is the work while there is any: the requests of this node and the sources to look at.
type run struct {
	cancel context.CancelFunc
	queue  workqueue.TypedRateLimitingInterface[source]
	lister listers.PodCertificateRequestLister
}

// New makes an Issuer that works until ctx ends.
func New(ctx context.Context, cfg Config) *Issuer {
	return &Issuer{cfg: cfg, ctx: ctx, items: map[source]*item{}}
}

// Bundle returns the private key and the certificate chain, in PEM, of a source of the pod's volume,
// or an error that says why there are none (yet). The first call asks for them; what comes of it
// is told through Config.Changed.
func (i *Issuer) Bundle(pod *v1.Pod, volume string, index int, spec *v1.PodCertificateProjection) (key, chain []byte, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := source{pod.UID, volume, index}
	it := i.items[s]
	if it == nil {
		it = &item{}
		i.items[s] = it
		if i.run == nil {
			i.start()
		}
		i.run.queue.Add(s)
	}
	it.pod, it.spec = pod, spec
	return it.bundle()
}

// Forget drops what is held for a pod.
func (i *Issuer) Forget(pod types.UID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for s := range i.items {
		if s.pod == pod {
			delete(i.items, s)
		}
	}
	if len(i.items) == 0 && i.run != nil {
		i.run.cancel()
		i.run = nil
	}
}

// SignerState is what States counts by.
type SignerState struct{ Signer, State string }

// States counts the sources by signer and state, as upstream's metric podcertificate_states does.
func (i *Issuer) States() map[SignerState]int {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := map[SignerState]int{}
	for _, it := range i.items {
		out[SignerState{it.spec.SignerName, it.state(i.cfg.Clock.Now())}]++
	}
	return out
}

func (i *Issuer) start() {
	ctx, cancel := context.WithCancel(i.ctx)
	inf := informers.NewFilteredPodCertificateRequestInformer(i.cfg.Client, metav1.NamespaceAll, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", i.cfg.NodeName).String()
	})
	r := &run{cancel: cancel, lister: listers.NewPodCertificateRequestLister(inf.GetIndexer()),
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[source](),
			workqueue.TypedRateLimitingQueueConfig[source]{Clock: i.cfg.Clock})}
	i.run = r
	look := func(o any) {
		if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = t.Obj
		}
		if req, ok := o.(*certificatesv1.PodCertificateRequest); ok {
			i.queue(r, req.Spec.PodUID)
		}
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, o any) { look(o) }, DeleteFunc: look})
	if err != nil { // of an informer that has stopped: this one has not begun
		i.cfg.Log.Error("cannot follow PodCertificateRequests", "err", err)
	}
	context.AfterFunc(ctx, r.queue.ShutDown)
	i.cfg.Spawn(func() { inf.Run(ctx.Done()) })
	i.cfg.Spawn(func() {
		if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
			return
		}
		for s, quit := r.queue.Get(); !quit; s, quit = r.queue.Get() {
			if err := i.look(ctx, r, s); err == nil {
				r.queue.Forget(s)
			} else if ctx.Err() == nil {
				i.cfg.Log.Warn("cannot get a certificate for a pod; it is tried again", "uid", s.pod, "volume", s.volume, "err", err)
				r.queue.AddRateLimited(s)
			}
			r.queue.Done(s)
		}
	})
}

// queue has all sources of a pod looked at.
func (i *Issuer) queue(r *run, pod types.UID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for s := range i.items {
		if s.pod == pod {
			r.queue.Add(s)
		}
	}
}

// look steps one source and does what it asks for.
func (i *Issuer) look(ctx context.Context, r *run, s source) error {
	now := i.cfg.Clock.Now()
	i.mu.Lock()
	it := i.items[s]
	if it == nil {
		i.mu.Unlock()
		return nil
	}
	pod, spec := it.pod, it.spec
	out := it.step(now, func(name string) *certificatesv1.PodCertificateRequest {
		req, err := r.lister.PodCertificateRequests(pod.Namespace).Get(name)
		if err != nil {
			return nil
		}
		return req
	}, jitter())
	i.mu.Unlock()
	for _, e := range out.events {
		i.cfg.Event(pod, e.reason, e.message)
	}
	if out.changed {
		i.cfg.Changed(s.pod)
	}
	if !out.wake.IsZero() {
		r.queue.AddAfter(s, max(out.wake.Sub(now), 0))
	}
	if !out.ask {
		return nil
	}
	name, key, err := i.ask(ctx, pod, spec)
	if err != nil {
		return err
	}
	i.mu.Lock()
	it.asked(name, key, now, jitter())
	i.mu.Unlock()
	r.queue.Add(s) // to learn when to give up
	return nil
}

// jitter spreads requests over five minutes.
func jitter() time.Duration { return rand.N(5 * time.Minute) }

// ask makes a key and the request for a certificate of it.
func (i *Issuer) ask(ctx context.Context, pod *v1.Pod, spec *v1.PodCertificateProjection) (name string, key []byte, err error) {
	sa, err := i.cfg.Client.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err != nil {
		return "", nil, fmt.Errorf("while fetching service account: %w", err)
	}
	node := i.cfg.NodeUID()
	if node == "" {
		return "", nil, fmt.Errorf("while getting node object from local cache: node %q is not known yet", i.cfg.NodeName)
	}
	key, proof, err := newKey(spec.KeyType)
	if err != nil {
		return "", nil, err
	}
	req, err := i.cfg.Client.CertificatesV1().PodCertificateRequests(pod.Namespace).Create(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}},
		Spec: certificatesv1.PodCertificateRequestSpec{SignerName: spec.SignerName, PodName: pod.Name, PodUID: pod.UID,
			ServiceAccountName: sa.Name, ServiceAccountUID: sa.UID, NodeName: types.NodeName(i.cfg.NodeName), NodeUID: node,
			MaxExpirationSeconds: spec.MaxExpirationSeconds, StubPKCS10Request: proof, UnverifiedUserAnnotations: spec.UserAnnotations},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", nil, fmt.Errorf("while creating PodCertificateRequest: %w", err)
	}
	return req.Name, key, nil
}
