// Package endpoints keeps the Endpoints object of every Service with a selector, and holds what it
// shares with the EndpointSlice controller: which Pods back a Service, on which addresses and ports.
package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

const (
	managedByLabel = "endpoints.kubernetes.io/managed-by"
	managedBy      = "endpoint-controller"
	// capacity is how many addresses one Endpoints object may hold.
	capacity = 1000
)

type controller struct {
	env       engine.Env
	services  listers.ServiceLister
	pods      listers.PodLister
	endpoints listers.EndpointsLister
	triggers  *Triggers
}

// New returns the Endpoints controller.
func New(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	c := &controller{env: env, services: core.Services().Lister(), pods: core.Pods().Lister(),
		endpoints: core.Endpoints().Lister(), triggers: NewTriggers()}
	return &engine.Controller{
		Name:    "endpoints-controller",
		Outputs: []engine.Resource{"endpoints"},
		Sources: []engine.Source{
			{Resource: "services", Informer: core.Services().Informer(), On: engine.Each},
			engine.On("pods", core.Pods().Informer(), PodChanged(c.services)),
			engine.On("endpoints", core.Endpoints().Informer(), c.endpointsChanged),
		},
		Reconcile:  c.reconcile,
		Background: c.leftovers,
	}, nil
}

// endpointsChanged repairs objects of ours that somebody deleted.
func (c *controller) endpointsChanged(q engine.Queue, old, new *corev1.Endpoints) {
	if new == nil {
		q.Add(old.Namespace + "/" + old.Name)
	}
}

// leftovers looks once at every Endpoints object: its Service may have gone while nobody watched.
func (c *controller) leftovers(ctx context.Context, q engine.Queue) error {
	all, err := c.endpoints.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, e := range all {
		if _, election := e.Annotations["control-plane.alpha.kubernetes.io/leader"]; !election {
			q.Add(e.Namespace + "/" + e.Name)
		}
	}
	<-ctx.Done()
	return nil
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	api := c.env.Client.CoreV1().Endpoints(ns)
	svc, err := c.services.Services(ns).Get(name)
	if apierrors.IsNotFound(err) {
		c.triggers.Forget(key)
		if _, err := c.endpoints.Endpoints(ns).Get(name); apierrors.IsNotFound(err) {
			return nil
		}
		return engine.IgnoreNotFound(api.Delete(ctx, name, metav1.DeleteOptions{}))
	}
	if err != nil || !Selects(svc) {
		return err
	}
	pods, err := c.pods.Pods(ns).List(labels.SelectorFromValidatedSet(svc.Spec.Selector))
	if err != nil {
		return err
	}
	current, err := c.endpoints.Endpoints(ns).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	trigger := c.triggers.Next(svc, pods)
	want := planEndpoints(svc, pods, current)
	if want == nil {
		return nil
	}
	TriggerAnnotation(want, trigger)
	if current == nil {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
	} else {
		_, err = api.Update(ctx, want, metav1.UpdateOptions{})
	}
	return c.report(want, svc, current == nil, err)
}

func (c *controller) report(e *corev1.Endpoints, svc *corev1.Service, creating bool, err error) error {
	switch {
	case err == nil || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case creating && apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return err // the cache lags behind: no news for anybody
	case creating:
		c.env.Events.Eventf(e, corev1.EventTypeWarning, "FailedToCreateEndpoint",
			"Failed to create endpoint for service %v/%v: %v", svc.Namespace, svc.Name, err)
	default:
		c.env.Events.Eventf(e, corev1.EventTypeWarning, "FailedToUpdateEndpoint",
			"Failed to update endpoint %v/%v: %v", svc.Namespace, svc.Name, err)
	}
	return err
}

// planEndpoints returns the Endpoints svc should have, or nil if current is right already.
func planEndpoints(svc *corev1.Service, pods []*corev1.Pod, current *corev1.Endpoints) *corev1.Endpoints {
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Namespace: svc.Namespace}}
	if current != nil {
		want = current.DeepCopy()
	}
	want.Subsets = subsets(svc, pods)
	want.Labels = maps.Clone(svc.Labels)
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	delete(want.Labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" {
		want.Labels[corev1.IsHeadlessService] = ""
	}
	want.Labels[managedByLabel] = managedBy
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	delete(want.Annotations, corev1.EndpointsOverCapacity)
	if truncate(want) {
		want.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	}
	if current != nil && equality.Semantic.DeepEqual(current.Subsets, want.Subsets) &&
		maps.Equal(current.Labels, want.Labels) &&
		current.Annotations[corev1.EndpointsOverCapacity] == want.Annotations[corev1.EndpointsOverCapacity] {
		return nil
	}
	return want
}

// offer is one port and who offers it.
type offer struct {
	port            *corev1.EndpointPort // nil: a headless Service without ports
	ready, notReady []corev1.EndpointAddress
}

// subsets groups ports that are offered by exactly the same Pods.
func subsets(svc *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	offers := map[string]*offer{}
	add := func(port *corev1.EndpointPort, a corev1.EndpointAddress, ready bool) {
		key := ""
		if port != nil {
			key = fmt.Sprintf("%s %d %s", port.Name, port.Port, port.Protocol)
		}
		o := offers[key]
		if o == nil {
			o = &offer{port: port}
			offers[key] = o
		}
		if ready {
			o.ready = append(o.ready, a)
		} else {
			o.notReady = append(o.notReady, a)
		}
	}
	for _, p := range pods {
		if !Eligible(p, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		ips := Addresses(p, Families(svc)[0])
		if len(ips) == 0 {
			continue
		}
		ready := svc.Spec.PublishNotReadyAddresses || workload.IsReady(p)
		a := address(p, ips[0], Hostname(p, svc))
		if len(svc.Spec.Ports) == 0 && svc.Spec.ClusterIP == corev1.ClusterIPNone {
			add(nil, a, ready)
		}
		for i := range svc.Spec.Ports {
			sp := &svc.Spec.Ports[i]
			if n, err := Port(p, sp); err == nil {
				add(&corev1.EndpointPort{Name: sp.Name, Port: n, Protocol: sp.Protocol, AppProtocol: sp.AppProtocol}, a, ready)
			}
		}
	}
	return pack(offers)
}

func address(p *corev1.Pod, ip, hostname string) corev1.EndpointAddress {
	a := corev1.EndpointAddress{IP: ip, Hostname: hostname,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
	if p.Spec.NodeName != "" {
		a.NodeName = &p.Spec.NodeName
	}
	return a
}

func pack(offers map[string]*offer) []corev1.EndpointSubset {
	byPods := map[string]*corev1.EndpointSubset{}
	for _, k := range slices.Sorted(maps.Keys(offers)) {
		o := offers[k]
		key := identity(o.ready) + "/" + identity(o.notReady)
		s := byPods[key]
		if s == nil {
			s = &corev1.EndpointSubset{Addresses: o.ready, NotReadyAddresses: o.notReady}
			byPods[key] = s
		}
		if o.port != nil {
			s.Ports = append(s.Ports, *o.port)
		}
	}
	var out []corev1.EndpointSubset
	for _, k := range slices.Sorted(maps.Keys(byPods)) {
		out = append(out, *byPods[k])
	}
	return out
}

// identity sorts the addresses and names them.
func identity(as []corev1.EndpointAddress) string {
	slices.SortFunc(as, func(a, b corev1.EndpointAddress) int {
		return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.TargetRef.UID, b.TargetRef.UID))
	})
	var b strings.Builder
	for _, a := range as {
		fmt.Fprintf(&b, "%s=%s,", a.IP, a.TargetRef.UID)
	}
	return b.String()
}

// truncate cuts e down to capacity addresses, ready ones first, and reports whether it had to.
func truncate(e *corev1.Endpoints) bool {
	ready, total := 0, 0
	for _, s := range e.Subsets {
		ready += len(s.Addresses)
		total += len(s.Addresses) + len(s.NotReadyAddresses)
	}
	if total <= capacity {
		return false
	}
	left, leftNotReady := capacity, max(0, capacity-ready)
	for i := range e.Subsets {
		s := &e.Subsets[i]
		s.Addresses = s.Addresses[:min(len(s.Addresses), left)]
		left -= len(s.Addresses)
		s.NotReadyAddresses = s.NotReadyAddresses[:min(len(s.NotReadyAddresses), leftNotReady)]
		leftNotReady -= len(s.NotReadyAddresses)
	}
	return true
}
