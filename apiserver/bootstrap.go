package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"golang.org/x/sync/errgroup"

	"github.com/skiff-project/skiff/api"
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

// tasks run at once. One that fails holds up no other.
type tasks struct {
	errgroup.Group
	mu   sync.Mutex
	errs []error
}

func (t *tasks) do(f func() error) {
	t.Go(func() error {
		if err := f(); err != nil {
			t.mu.Lock()
			t.errs = append(t.errs, err)
			t.mu.Unlock()
		}
		return nil
	})
}

// wait returns the errors of all tasks.
func (t *tasks) wait() error {
	t.Wait() //nolint:errcheck // do collects the errors
	return errors.Join(t.errs...)
}

// bootstrap writes only what is missing or differs, so that a restart of a
// healthy cluster writes nothing. What cannot be written leaves the rest alone.
func (s *Server) bootstrap(ctx context.Context) error {
	g := &tasks{}
	g.SetLimit(bootstrapParallel)
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		g.do(func() error {
			return s.ensure(ctx, "/namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil)
		})
	}
	for _, pc := range priorityClasses() {
		g.do(func() error { return s.ensure(ctx, "scheduling.k8s.io/priorityclasses", pc, nil) })
	}
	g.do(func() error { return s.ensureKubernetesService(ctx) })
	g.do(func() error { return s.ensureAuthConfig(ctx) })
	g.do(func() error {
		cidr := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{s.cfg.ServiceCIDR.String()}}}
		return s.ensure(ctx, "networking.k8s.io/servicecidrs", cidr, nil)
	})
	if s.cfg.Policy != nil {
		s.ensurePolicy(ctx, g, s.cfg.Policy)
	}
	return g.wait()
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

func priorityClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-node-critical"}, Value: 2000001000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-cluster-critical"}, Value: 2000000000,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

// kubernetesIP is the first address of the service range.
func (s *Server) kubernetesIP() netip.Addr { return s.cfg.ServiceCIDR.Masked().Addr().Next() }

// ensureKubernetesService publishes this server as default/kubernetes.
func (s *Server) ensureKubernetesService(ctx context.Context) error {
	meta := metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"}
	ip := s.kubernetesIP().String()
	port := s.cfg.AdvertisePort
	if port == 0 {
		port = 6443
	}
	svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(int32(port))}},
	}}
	svc.Labels = map[string]string{"provider": "kubernetes", "component": "apiserver"}
	err := s.ensure(ctx, "/services", svc, func(o api.Object) bool {
		have := o.(*corev1.Service)
		if len(have.Spec.Ports) == 1 && have.Spec.Ports[0].TargetPort == svc.Spec.Ports[0].TargetPort {
			return false
		}
		have.Spec.Ports = svc.Spec.Ports
		return true
	})
	if err != nil || !s.cfg.AdvertiseAddress.IsValid() {
		return err
	}
	return s.ensureKubernetesEndpoints(ctx, meta, int32(port))
}

func (s *Server) ensureKubernetesEndpoints(ctx context.Context, meta metav1.ObjectMeta, port int32) error {
	address := s.cfg.AdvertiseAddress.Unmap()
	eps := &corev1.Endpoints{ObjectMeta: meta, Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // served as long as upstream serves it
		Addresses: []corev1.EndpointAddress{{IP: address.String()}},                                 //nolint:staticcheck // as above
		Ports:     []corev1.EndpointPort{{Name: "https", Port: port, Protocol: corev1.ProtocolTCP}}, //nolint:staticcheck // as above
	}}}
	eps.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	err := s.ensure(ctx, "/endpoints", eps, func(o api.Object) bool {
		have := o.(*corev1.Endpoints) //nolint:staticcheck // as above
		same := apiequality.Semantic.DeepEqual(have.Subsets, eps.Subsets)
		have.Subsets = eps.Subsets
		return !same
	})
	if err != nil {
		return err
	}
	family := discoveryv1.AddressTypeIPv4
	if address.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	name, proto, ready := "https", corev1.ProtocolTCP, true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "kubernetes"}
	return s.ensure(ctx, "discovery.k8s.io/endpointslices", slice, func(o api.Object) bool {
		have := o.(*discoveryv1.EndpointSlice)
		same := apiequality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) && apiequality.Semantic.DeepEqual(have.Ports, slice.Ports)
		have.Endpoints, have.Ports = slice.Endpoints, slice.Ports
		return !same
	})
}

// ensureAuthConfig publishes how aggregated servers authenticate users.
func (s *Server) ensureAuthConfig(ctx context.Context) error {
	data := map[string]string{}
	if len(s.cfg.ClientCA) > 0 {
		data["client-ca-file"] = string(s.cfg.ClientCA)
	}
	if len(s.cfg.RequestHeaderCA) > 0 {
		list := func(v ...string) string { b, _ := json.Marshal(v); return string(b) }
		data["requestheader-client-ca-file"] = string(s.cfg.RequestHeaderCA)
		data["requestheader-username-headers"] = list("X-Remote-User")
		data["requestheader-uid-headers"] = list("X-Remote-Uid")
		data["requestheader-group-headers"] = list("X-Remote-Group")
		data["requestheader-extra-headers-prefix"] = list("X-Remote-Extra-")
		data["requestheader-allowed-names"] = list(append([]string{}, s.cfg.RequestHeaderNames...)...)
	}
	if len(data) == 0 {
		return nil
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "extension-apiserver-authentication", Namespace: "kube-system"}, Data: data}
	return s.ensure(ctx, "/configmaps", cm, func(o api.Object) bool {
		have := o.(*corev1.ConfigMap)
		same := apiequality.Semantic.DeepEqual(have.Data, data)
		have.Data = data
		return !same
	})
}

const rbacGroup = rbacv1.GroupName + "/"

// ensurePolicy brings the stored RBAC objects up to the bootstrap policy.
func (s *Server) ensurePolicy(ctx context.Context, g *tasks, p *policy.Policy) {
	for _, want := range p.ClusterRoles {
		g.do(func() error {
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
		g.do(func() error {
			return s.ensure(ctx, rbacGroup+"roles", want, func(o api.Object) bool {
				have := o.(*rbacv1.Role)
				out, changed := policy.ReconcileRole(have, want)
				out.DeepCopyInto(have)
				return changed
			})
		})
	}
	for _, want := range p.ClusterRoleBindings {
		g.do(func() error {
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
		g.do(func() error {
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
