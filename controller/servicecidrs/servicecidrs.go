// Package servicecidrs says of each ServiceCIDR that it is ready, which makes the API server give
// addresses from it, and lets one go only when no Service would be left outside of all others.
package servicecidrs

import (
	"context"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-project/skiff/controller/engine"
)

const (
	// Finalizer keeps a ServiceCIDR while addresses are taken from it.
	Finalizer = "networking.k8s.io/service-cidr-finalizer"
	// grace is how long a range stays after its deletion: API servers may not have seen it yet and
	// give addresses from it.
	grace = 10 * time.Second
	// again is when a range that addresses hold is looked at anew. Addresses are many and ranges go
	// rarely, so no cache of them is kept for it.
	again = 10 * time.Second
	// page bounds one answer of the list of addresses.
	page = 500
	// managedBy is the value of the label of addresses that Services have.
	managedBy = "ipallocator.k8s.io"
)

// New returns the controller.
func New(env engine.Env) (*engine.Controller, error) {
	cidrs := env.Informers.Networking().V1().ServiceCIDRs()
	return &engine.Controller{
		Name:    "service-cidr-controller",
		Outputs: []engine.Resource{"servicecidrs.networking.k8s.io", "servicecidrs.networking.k8s.io/status"},
		Workers: 1,
		Sources: []engine.Source{engine.On("servicecidrs.networking.k8s.io", cidrs.Informer(), func(q engine.Queue, _, _ *networkingv1.ServiceCIDR) {
			for _, obj := range cidrs.Informer().GetIndexer().List() { // another may hold addresses of one that goes
				q.Add(obj.(*networkingv1.ServiceCIDR).Name)
			}
		})},
		Reconcile: func(ctx context.Context, name string) error {
			c, err := cidrs.Lister().Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			c = c.DeepCopy()
			if c.DeletionTimestamp == nil {
				return ready(ctx, env, c)
			}
			others, err := cidrs.Lister().List(labels.Everything())
			if err != nil {
				return err
			}
			others = slices.DeleteFunc(others, func(o *networkingv1.ServiceCIDR) bool { return o.Name == name })
			return leave(ctx, env, c, ranges(others...))
		},
	}, nil
}

func ready(ctx context.Context, env engine.Env, c *networkingv1.ServiceCIDR) error {
	if !slices.Contains(c.Finalizers, Finalizer) {
		c.Finalizers = append(c.Finalizers, Finalizer)
		var err error
		if c, err = env.Client.NetworkingV1().ServiceCIDRs().Update(ctx, c, metav1.UpdateOptions{}); err != nil {
			return engine.IgnoreNotFound(err)
		}
	}
	return tell(ctx, env, c, metav1.Condition{Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready"})
}

// leave lets c go once the ranges of others hold what is taken from it.
func leave(ctx context.Context, env engine.Env, c *networkingv1.ServiceCIDR, others []netip.Prefix) error {
	held, err := holds(ctx, env, ranges(c), others)
	switch {
	case err != nil:
		return err
	case held:
		err := tell(ctx, env, c, metav1.Condition{Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"})
		if err != nil {
			return err
		}
		return engine.Later(again)
	}
	if left := c.DeletionTimestamp.Add(grace).Sub(env.Clock.Now()); left > 0 {
		return engine.Later(left)
	}
	i := slices.Index(c.Finalizers, Finalizer)
	if i < 0 {
		return nil
	}
	c.Finalizers = slices.Delete(c.Finalizers, i, i+1)
	_, err = env.Client.NetworkingV1().ServiceCIDRs().Update(ctx, c, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

// holds reports whether a Service has an address of own that is in none of others.
func holds(ctx context.Context, env engine.Env, own, others []netip.Prefix) (bool, error) {
	covered := func(p netip.Prefix) bool {
		return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
	}
	if own = slices.DeleteFunc(own, covered); len(own) == 0 {
		return false, nil
	}
	opts := metav1.ListOptions{LabelSelector: networkingv1.LabelManagedBy + "=" + managedBy, Limit: page}
	for {
		l, err := env.Client.NetworkingV1().IPAddresses().List(ctx, opts)
		if err != nil {
			return false, err
		}
		for i := range l.Items {
			a, err := netip.ParseAddr(l.Items[i].Name)
			if err != nil {
				continue
			}
			in := func(p netip.Prefix) bool { return p.Contains(a) }
			if slices.ContainsFunc(own, in) && !slices.ContainsFunc(others, in) {
				return true, nil
			}
		}
		if opts.Continue = l.Continue; opts.Continue == "" {
			return false, nil
		}
	}
}

func ranges(cidrs ...*networkingv1.ServiceCIDR) (out []netip.Prefix) {
	for _, c := range cidrs {
		for _, text := range c.Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

func tell(ctx context.Context, env engine.Env, c *networkingv1.ServiceCIDR, cond metav1.Condition) error {
	cond.Type, cond.LastTransitionTime = networkingv1.ServiceCIDRConditionReady, metav1.NewTime(env.Clock.Now())
	if have := meta.FindStatusCondition(c.Status.Conditions, cond.Type); have != nil && have.Status == cond.Status && have.Reason == cond.Reason {
		return nil // the API server's own words for the first range stay
	}
	meta.SetStatusCondition(&c.Status.Conditions, cond)
	_, err := env.Client.NetworkingV1().ServiceCIDRs().UpdateStatus(ctx, c, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}
