// Package endpointslicemirroring copies Endpoints that users keep themselves, for Services without
// a selector, into EndpointSlices, which is what proxies and DNS read.
package endpointslicemirroring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	listers "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/net"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

const (
	managedBy = "endpointslicemirroring-controller.k8s.io"
	perSubset = 1000 // addresses mirrored of one subset
	perSlice  = 1000 // upstream's limit of the mirroring controller, not 100
)

type controller struct {
	env       engine.Env
	services  corelisters.ServiceLister
	endpoints corelisters.EndpointsLister
	slices    listers.EndpointSliceLister
	store     cache.Store
	expect    *workload.Expectations
}

// New returns the mirroring controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, disc := env.Informers.Core().V1(), env.Informers.Discovery().V1().EndpointSlices()
	c := &controller{env: env, services: core.Services().Lister(), endpoints: core.Endpoints().Lister(),
		slices: disc.Lister(), store: disc.Informer().GetIndexer(), expect: workload.NewExpectations(env.Clock)}
	return &engine.Controller{
		Name:    "endpointslice-mirroring-controller",
		Outputs: []engine.Resource{"endpointslices.discovery.k8s.io"},
		Sources: []engine.Source{
			{Resource: "services", Informer: core.Services().Informer(), On: engine.Each},
			{Resource: "endpoints", Informer: core.Endpoints().Informer(), On: engine.Each},
			engine.On("endpointslices.discovery.k8s.io", disc.Informer(), c.sliceChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func (c *controller) sliceChanged(q engine.Queue, old, new *discoveryv1.EndpointSlice) {
	for _, s := range []*discoveryv1.EndpointSlice{old, new} {
		if s == nil || s.Labels[discoveryv1.LabelManagedBy] != managedBy {
			continue
		}
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		if new == nil {
			c.expect.Gone(key, s.UID)
		}
		q.Add(key)
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	if ok, wait := c.expect.Settled(key, c.store); !ok {
		return engine.Later(wait) // the watch brings the key back much sooner
	}
	have, err := c.slices.EndpointSlices(ns).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: managedBy}))
	if err != nil {
		return err
	}
	e, err := c.endpoints.Endpoints(ns).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	svc, err := c.services.Services(ns).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var want []*discoveryv1.EndpointSlice
	if mirrored(e, svc) {
		want = mirror(e)
	}
	return c.apply(ctx, key, have, want)
}

// mirrored reports whether e is a user's own: its Service has no selector, and nobody asked for it
// to be left out.
func mirrored(e *corev1.Endpoints, svc *corev1.Service) bool {
	if e == nil || svc == nil || svc.Spec.Selector != nil || e.DeletionTimestamp != nil {
		return false
	}
	_, election := e.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return !election && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}

// mirror makes the slices of e: one or more per subset and address family.
func mirror(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range e.Subsets {
		byFamily := map[discoveryv1.AddressType][]discoveryv1.Endpoint{}
		left := perSubset
		add := func(addrs []corev1.EndpointAddress, ready bool) {
			for i := range addrs[:min(len(addrs), left)] {
				f := discoveryv1.AddressTypeIPv4
				if net.IsIPv6String(addrs[i].IP) {
					f = discoveryv1.AddressTypeIPv6
				}
				byFamily[f] = append(byFamily[f], endpoint(&addrs[i], ready))
				left--
			}
		}
		add(s.Addresses, true)
		add(s.NotReadyAddresses, false)
		for _, f := range slices.Sorted(maps.Keys(byFamily)) {
			for part := range slices.Chunk(byFamily[f], perSlice) {
				out = append(out, newSlice(e, f, s.Ports, part))
			}
		}
	}
	return out
}

func endpoint(a *corev1.EndpointAddress, ready bool) discoveryv1.Endpoint {
	out := discoveryv1.Endpoint{Addresses: []string{a.IP}, NodeName: a.NodeName, TargetRef: a.TargetRef,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if a.Hostname != "" {
		out.Hostname = &a.Hostname
	}
	return out
}

func newSlice(e *corev1.Endpoints, f discoveryv1.AddressType, ports []corev1.EndpointPort, eps []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	l := maps.Clone(e.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[discoveryv1.LabelServiceName], l[discoveryv1.LabelManagedBy] = e.Name, managedBy
	notes := maps.Clone(e.Annotations)
	delete(notes, corev1.LastAppliedConfigAnnotation)
	delete(notes, corev1.EndpointsLastChangeTriggerTime)
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: e.Name + "-", Namespace: e.Namespace, Labels: l, Annotations: notes,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))}},
		AddressType: f, Endpoints: eps,
	}
	for i := range ports {
		p := ports[i]
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return out
}

// apply keeps the slices that are right, turns wrong ones of the same family into missing ones,
// and makes or deletes the rest.
func (c *controller) apply(ctx context.Context, key string, have, want []*discoveryv1.EndpointSlice) error {
	have = slices.Clone(have)
	take := func(ok func(*discoveryv1.EndpointSlice) bool) *discoveryv1.EndpointSlice {
		i := slices.IndexFunc(have, ok)
		if i < 0 {
			return nil
		}
		s := have[i]
		have = slices.Delete(have, i, i+1)
		return s
	}
	want = slices.DeleteFunc(slices.Clone(want), func(w *discoveryv1.EndpointSlice) bool {
		return take(func(s *discoveryv1.EndpointSlice) bool { return same(s, w) }) != nil
	})
	var errs []error
	for _, w := range want {
		api := c.env.Client.DiscoveryV1().EndpointSlices(w.Namespace)
		if s := take(func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == w.AddressType }); s != nil {
			s = s.DeepCopy()
			s.Endpoints, s.Ports, s.Labels, s.Annotations, s.OwnerReferences = w.Endpoints, w.Ports, w.Labels, w.Annotations, w.OwnerReferences
			_, err := api.Update(ctx, s, metav1.UpdateOptions{})
			errs = append(errs, err)
			continue
		}
		made, err := api.Create(ctx, w, metav1.CreateOptions{})
		if err == nil {
			c.expect.Created(key, made)
		} else if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			errs = append(errs, fmt.Errorf("mirror endpoints %s: %w", key, err))
		}
	}
	for _, s := range have {
		err := c.env.Client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if err == nil {
			c.expect.Deleted(key, s)
		} else if !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func same(a, b *discoveryv1.EndpointSlice) bool {
	return a.AddressType == b.AddressType && equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) &&
		equality.Semantic.DeepEqual(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(a.Annotations, b.Annotations) && equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences)
}
