// Package endpointslice keeps the EndpointSlices of every Service with a selector: up to 100
// endpoints each, one set of slices per address family and per set of ports, with the ready,
// serving and terminating conditions, host names and zones. Topology hints are not written.
package endpointslice

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	listers "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/controller/endpoints"
	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

const managedBy = "endpointslice-controller.k8s.io"

type controller struct {
	env      engine.Env
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	podCache cache.SharedIndexInformer
	nodes    corelisters.NodeLister
	slices   listers.EndpointSliceLister
	store    cache.Store
	expect   *workload.Expectations
	triggers *endpoints.Triggers
}

// New returns the EndpointSlice controller.
func New(env engine.Env) (*engine.Controller, error) {
	core, disc := env.Informers.Core().V1(), env.Informers.Discovery().V1().EndpointSlices()
	c := &controller{env: env, services: core.Services().Lister(), pods: core.Pods().Lister(),
		podCache: core.Pods().Informer(), nodes: core.Nodes().Lister(), slices: disc.Lister(),
		store: disc.Informer().GetIndexer(), expect: workload.NewExpectations(env.Clock),
		triggers: endpoints.NewTriggers()}
	if err := workload.IndexByNode(c.podCache); err != nil {
		return nil, fmt.Errorf("endpointslice controller: index pods: %w", err)
	}
	return &engine.Controller{
		Name:    "endpointslice-controller",
		Outputs: []engine.Resource{"endpointslices.discovery.k8s.io"},
		Sources: []engine.Source{
			{Resource: "services", Informer: core.Services().Informer(), On: engine.Each},
			engine.On("pods", c.podCache, endpoints.PodChanged(c.services)),
			engine.On("nodes", core.Nodes().Informer(), c.nodeChanged),
			engine.On("endpointslices.discovery.k8s.io", disc.Informer(), c.sliceChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

// nodeChanged wakes the Services with Pods on a node whose zone is new.
func (c *controller) nodeChanged(q engine.Queue, old, new *corev1.Node) {
	if new == nil || zoneOf(old) == zoneOf(new) {
		return
	}
	pods, err := workload.OnNode(c.podCache, new.Name)
	if err != nil {
		return
	}
	wake := endpoints.PodChanged(c.services)
	for _, p := range pods {
		wake(q, nil, p)
	}
}

func zoneOf(n *corev1.Node) string {
	if n == nil {
		return ""
	}
	return n.Labels[corev1.LabelTopologyZone]
}

func (c *controller) sliceChanged(q engine.Queue, old, new *discoveryv1.EndpointSlice) {
	for _, s := range []*discoveryv1.EndpointSlice{old, new} {
		if s == nil || s.Labels[discoveryv1.LabelManagedBy] != managedBy {
			continue
		}
		if svc := s.Labels[discoveryv1.LabelServiceName]; svc != "" {
			key := s.Namespace + "/" + svc
			if new == nil {
				c.expect.Gone(key, s.UID)
			}
			q.Add(key)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	svc, err := c.services.Services(ns).Get(name)
	if apierrors.IsNotFound(err) {
		c.expect.Forget(key) // the garbage collector takes the slices
		c.triggers.Forget(key)
		return nil
	}
	if err != nil || !endpoints.Selects(svc) || svc.DeletionTimestamp != nil {
		return err
	}
	if ok, wait := c.expect.Settled(key, c.store); !ok {
		return engine.Later(wait) // the watch brings our own writes and the key back much sooner
	}
	o := observed{service: svc, zone: c.zone}
	if o.pods, err = c.pods.Pods(ns).List(labels.SelectorFromValidatedSet(svc.Spec.Selector)); err != nil {
		return err
	}
	all, err := c.slices.EndpointSlices(ns).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: managedBy}))
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.DeletionTimestamp == nil {
			o.slices = append(o.slices, s)
		}
	}
	trigger := c.triggers.Next(svc, o.pods)
	p := planSlices(o)
	for _, s := range append(p.create, p.update...) {
		endpoints.TriggerAnnotation(s, trigger)
	}
	err = c.apply(ctx, key, p)
	if err != nil && !apierrors.IsConflict(err) {
		c.env.Events.Eventf(svc, corev1.EventTypeWarning, "FailedToUpdateEndpointSlices",
			"Error updating Endpoint Slices for Service %s/%s: %v", ns, name, err)
	}
	return err
}

func (c *controller) zone(node string) string {
	n, err := c.nodes.Get(node)
	if err != nil {
		return ""
	}
	return zoneOf(n)
}

func (c *controller) apply(ctx context.Context, key string, p plan) error {
	var errs []error
	for _, s := range p.create {
		made, err := c.env.Client.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, s, metav1.CreateOptions{})
		switch {
		case err == nil:
			c.expect.Created(key, made)
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return nil
		default:
			errs = append(errs, fmt.Errorf("failed to create EndpointSlice for Service %s: %w", key, err))
		}
	}
	for _, s := range p.update {
		_, err := c.env.Client.DiscoveryV1().EndpointSlices(s.Namespace).Update(ctx, s, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("failed to update %s EndpointSlice for Service %s: %w", s.Name, key, err))
		}
	}
	for _, s := range p.remove {
		err := c.env.Client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("failed to delete %s EndpointSlice for Service %s: %w", s.Name, key, err))
		} else if err == nil {
			c.expect.Deleted(key, s)
		}
	}
	return errors.Join(errs...)
}
