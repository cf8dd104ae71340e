package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/alloc"
	"github.com/skiff-project/skiff/apiserver/fairness"
	"github.com/skiff-project/skiff/apiserver/initial"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth/rbac/policy"
)

// bootstrapLoop creates what every cluster has, until it has succeeded.
func (s *Server) bootstrapLoop(ctx context.Context) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := s.bootstrap(ctx)
		if err == nil {
			s.poststart.Store(true)
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.cfg.Log.Error("the objects every cluster has cannot be created yet", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Clock.After(wait):
		}
	}
}

// bootstrapParallel bounds concurrent writes: each waits for the disk.
const bootstrapParallel = 32

// bootstrap writes only what is missing or differs, so that a restart of a
// healthy cluster writes nothing. What cannot be written leaves the rest alone.
func (s *Server) bootstrap(ctx context.Context) error {
	g := &initial.Tasks{}
	g.SetLimit(bootstrapParallel)
	for _, name := range initial.Namespaces() {
		g.Do(func() error {
			return s.ensure(ctx, "/namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil)
		})
	}
	for _, pc := range initial.PriorityClasses() {
		g.Do(func() error { return s.ensure(ctx, "scheduling.k8s.io/priorityclasses", pc, nil) })
	}
	s.ensureFlows(ctx, g)
	g.Do(func() error { return s.ensureServices(ctx) })
	g.Do(func() error { return s.ensureAuthConfig(ctx) })
	if s.cfg.Policy != nil {
		s.ensurePolicy(ctx, g, s.cfg.Policy)
	}
	return g.Err()
}

// ensure creates an object, or lets change adapt the existing one; change
// gets a copy and reports whether it changed it. Resources that are not
// served are skipped.
func (s *Server) ensure(ctx context.Context, gr string, want api.Object, change func(have api.Object) bool) error {
	ep := s.stores[gr]
	if ep == nil || ep.reg == nil {
		return nil
	}
	have, err := s.reader.Get(ep.gr.Group, ep.gr.Resource, want.GetNamespace(), want.GetName())
	switch {
	case apierrors.IsNotFound(err):
		obj := want.DeepCopyObject().(api.Object)
		if ep.ver.Default != nil {
			ep.ver.Default(obj)
		}
		_, err = ep.reg.Create(ctx, registry.Write{Namespace: want.GetNamespace(), Name: want.GetName()}, obj)
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case err == nil && change != nil:
		if !change(have.DeepCopyObject().(api.Object)) {
			return nil
		}
		_, _, err = ep.reg.Update(ctx, registry.Update{
			Write: registry.Write{Namespace: want.GetNamespace(), Name: want.GetName()}, Unconditional: true,
			Change: func(_ context.Context, old api.Object) (api.Object, error) { change(old); return old, nil },
		})
	}
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", ep.gr, want.GetNamespace(), want.GetName(), err)
	}
	return nil
}

// kubernetesIP is the first address of the service range.
func (s *Server) kubernetesIP() netip.Addr { return s.cfg.ServiceCIDR.Masked().Addr().Next() }

// ensureFlow keeps a priority level or flow schema as it should be.
func (s *Server) ensureFlow(ctx context.Context, gr string, want api.Object) error {
	return s.ensure(ctx, gr, want, func(have api.Object) bool { return initial.UpdateFlowControl(have, want) })
}

func (s *Server) ensureFlows(ctx context.Context, g *initial.Tasks) {
	for _, pl := range initial.PriorityLevels() {
		g.Do(func() error { return s.ensureFlow(ctx, "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations", pl) })
	}
	for _, fs := range initial.FlowSchemas() {
		g.Do(func() error { return s.ensureFlow(ctx, flowSchemas, fs) })
	}
}

const flowSchemas = "flowcontrol.apiserver.k8s.io/flowschemas"

// followFlows keeps what is enforced at what is stored.
func (s *Server) followFlows(ctx context.Context) {
	levels, schemas := s.stores["flowcontrol.apiserver.k8s.io/prioritylevelconfigurations"], s.stores[flowSchemas]
	if s.gate.Limiter == nil || levels == nil || schemas == nil {
		return
	}
	s.gate.Limiter.Follow(ctx, fairness.Objects{
		Levels: levels.reg, Schemas: schemas.reg, Log: s.cfg.Log,
		Maintain: func(ctx context.Context) error {
			g := &initial.Tasks{}
			s.ensureFlows(ctx, g)
			return g.Err()
		},
		Dangling: func(ctx context.Context, name string, exists bool) error {
			err := s.patchStored(ctx, flowSchemas, "", name, func(have api.Object) error {
				initial.Dangling(have.(*flowcontrolv1.FlowSchema), exists, metav1.NewTime(s.cfg.Clock.Now()))
				return nil
			})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		},
	})
}

// ensureServices publishes the service range, and this server as
// default/kubernetes in it.
func (s *Server) ensureServices(ctx context.Context) error {
	if err := s.ensureServiceCIDR(ctx); err != nil {
		return err
	}
	want := initial.Service(s.kubernetesIP(), s.advertisedPort())
	err := s.ensure(ctx, "/services", want, func(o api.Object) bool {
		have := o.(*corev1.Service)
		if len(have.Spec.Ports) == 1 && have.Spec.Ports[0].TargetPort == want.Spec.Ports[0].TargetPort {
			return false
		}
		have.Spec.Ports = want.Spec.Ports
		return true
	})
	if err != nil || !s.cfg.AdvertiseAddress.IsValid() || s.cfg.NoEndpoints {
		return err
	}
	if s.cfg.SharedStore {
		return s.servers.Announce(ctx)
	}
	return s.ensureEndpoints(ctx, []netip.Addr{s.cfg.AdvertiseAddress.Unmap()})
}

func (s *Server) advertisedPort() int32 { return int32(cmp.Or(s.cfg.AdvertisePort, 6443)) }

// ensureServiceCIDR creates the ServiceCIDR of the configured range and says
// that it is ready, unless somebody says otherwise.
func (s *Server) ensureServiceCIDR(ctx context.Context) error {
	const gr = "networking.k8s.io/servicecidrs"
	if s.stores[gr] == nil {
		return nil
	}
	want := initial.ServiceCIDR(alloc.DefaultCIDR, s.cfg.ServiceCIDR)
	if err := s.ensure(ctx, gr, want, nil); err != nil {
		return err
	}
	have, err := registry.As[*networkingv1.ServiceCIDR](s.reader.Get("networking.k8s.io", "servicecidrs", "", want.Name))
	if err != nil {
		return err
	}
	if !slices.Equal(have.Spec.CIDRs, want.Spec.CIDRs) {
		s.cfg.Log.Warn("the ServiceCIDR kubernetes differs from the configured range", "stored", have.Spec.CIDRs, "configured", want.Spec.CIDRs)
		return nil
	}
	if c := meta.FindStatusCondition(have.Status.Conditions, networkingv1.ServiceCIDRConditionReady); c != nil && c.Status != metav1.ConditionUnknown || have.DeletionTimestamp != nil {
		return nil
	}
	return s.patchStored(ctx, gr, "", want.Name, func(o api.Object) error {
		meta.SetStatusCondition(&o.(*networkingv1.ServiceCIDR).Status.Conditions, metav1.Condition{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
			Message: "Kubernetes default Service CIDR is ready", LastTransitionTime: metav1.NewTime(s.cfg.Clock.Now()),
		})
		return nil
	})
}

func (s *Server) ensureEndpoints(ctx context.Context, addresses []netip.Addr) error {
	eps := initial.Endpoints(addresses, s.advertisedPort())
	err := s.ensure(ctx, "/endpoints", eps, func(o api.Object) bool {
		have := o.(*corev1.Endpoints) //nolint:staticcheck // served as long as upstream serves it
		same := apiequality.Semantic.DeepEqual(have.Subsets, eps.Subsets)
		have.Subsets = eps.Subsets
		return !same
	})
	if err != nil {
		return err
	}
	slice := initial.EndpointSlice(addresses, s.advertisedPort())
	return s.ensure(ctx, "discovery.k8s.io/endpointslices", slice, func(o api.Object) bool {
		have := o.(*discoveryv1.EndpointSlice)
		same := apiequality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) && apiequality.Semantic.DeepEqual(have.Ports, slice.Ports)
		have.Endpoints, have.Ports = slice.Endpoints, slice.Ports
		return !same
	})
}

// ensureAuthConfig publishes how aggregated servers authenticate users.
func (s *Server) ensureAuthConfig(ctx context.Context) error {
	cm := initial.AuthConfig(s.cfg.ClientCA, s.cfg.RequestHeaderCA, s.cfg.RequestHeaderNames)
	if cm == nil {
		return nil
	}
	return s.ensure(ctx, "/configmaps", cm, func(o api.Object) bool {
		have := o.(*corev1.ConfigMap)
		same := apiequality.Semantic.DeepEqual(have.Data, cm.Data)
		have.Data = cm.Data
		return !same
	})
}

const rbacGroup = rbacv1.GroupName + "/"

// ensurePolicy brings the stored RBAC objects up to the bootstrap policy.
func (s *Server) ensurePolicy(ctx context.Context, g *initial.Tasks, p *policy.Policy) {
	for _, want := range p.ClusterRoles {
		g.Do(func() error {
			full := want.DeepCopy()
			if rules, err := policy.Aggregate(full, p.ClusterRoles); err == nil && full.AggregationRule != nil {
				full.Rules = rules
			}
			return s.ensure(ctx, rbacGroup+"clusterroles", full, func(o api.Object) bool {
				have := o.(*rbacv1.ClusterRole)
				out, changed := policy.ReconcileClusterRole(have, full)
				out.DeepCopyInto(have)
				return changed
			})
		})
	}
	for _, want := range p.Roles {
		g.Do(func() error {
			return s.ensure(ctx, rbacGroup+"roles", want, func(o api.Object) bool {
				have := o.(*rbacv1.Role)
				out, changed := policy.ReconcileRole(have, want)
				out.DeepCopyInto(have)
				return changed
			})
		})
	}
	for _, want := range p.ClusterRoleBindings {
		g.Do(func() error {
			return s.ensureBinding(ctx, rbacGroup+"clusterrolebindings", want, func(o api.Object) (bool, bool) {
				have := o.(*rbacv1.ClusterRoleBinding)
				out, changed, recreate := policy.ReconcileClusterRoleBinding(have, want)
				if !recreate {
					out.DeepCopyInto(have)
				}
				return changed, recreate
			})
		})
	}
	for _, want := range p.RoleBindings {
		g.Do(func() error {
			return s.ensureBinding(ctx, rbacGroup+"rolebindings", want, func(o api.Object) (bool, bool) {
				have := o.(*rbacv1.RoleBinding)
				out, changed, recreate := policy.ReconcileRoleBinding(have, want)
				if !recreate {
					out.DeepCopyInto(have)
				}
				return changed, recreate
			})
		})
	}
}

// ensureBinding is ensure for bindings: one that refers to another role must be replaced.
func (s *Server) ensureBinding(ctx context.Context, gr string, want api.Object, reconcile func(api.Object) (changed, recreate bool)) error {
	recreate := false
	err := s.ensure(ctx, gr, want, func(o api.Object) bool {
		changed, again := reconcile(o)
		recreate = recreate || again
		return changed && !again
	})
	if err != nil || !recreate {
		return err
	}
	ep := s.stores[gr]
	_, _, err = ep.reg.Delete(ctx, registry.Write{Namespace: want.GetNamespace(), Name: want.GetName()}, &metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return errors.Join(fmt.Errorf("replace %s %s", ep.gr, want.GetName()), err)
	}
	return s.ensure(ctx, gr, want, nil)
}
