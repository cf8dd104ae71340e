package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/alloc"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// repairInterval is upstream's.
const repairInterval = 3 * time.Minute

// openAllocator lets Services keep their addresses as IPAddress objects, and
// has their node ports noted in the store.
func (s *Server) openAllocator() error {
	if s.stores["/services"] == nil {
		return nil
	}
	ep := s.stores["networking.k8s.io/ipaddresses"]
	if ep == nil {
		return fmt.Errorf("apiserver: Services are served but ipaddresses.networking.k8s.io are not: their addresses have nowhere to be kept")
	}
	objects, err := alloc.NewObjects(ep.reg, s.cfg.ServiceCIDR, func() ([]api.Object, error) {
		return s.reader.List("networking.k8s.io", "servicecidrs", "")
	})
	if err != nil {
		return err
	}
	s.services.Addresses = objects
	if s.services.Ports, err = alloc.NewPorts(s.cfg.Store, s.cfg.Encryption, s.cfg.NodePorts, s.cfg.Log); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.background(), 30*time.Second) // upstream's wait for a store that does not answer
	defer cancel()
	return s.repairPorts(ctx)
}

func (s *Server) storedServices() ([]*corev1.Service, error) {
	return registry.AllAs[*corev1.Service](s.reader.List("", "services", ""))
}

// repairLoop makes Services, their addresses and their ports agree.
func (s *Server) repairLoop(ctx context.Context) {
	if s.services.Addresses == nil {
		return
	}
	tick := s.cfg.Clock.NewTicker(repairInterval)
	defer tick.Stop()
	for err := s.repairAddresses(ctx); ; err = errors.Join(s.repairAddresses(ctx), s.repairPorts(ctx)) {
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("addresses and ports of Services could not be checked", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

func (s *Server) repairPorts(ctx context.Context) error {
	events, err := s.services.Ports.Repair(ctx, s.storedServices)
	for _, ev := range events {
		s.record(ctx, "portallocator-repair-controller", ev)
	}
	if err != nil {
		return fmt.Errorf("node ports of Services: %w", err)
	}
	return nil
}

func (s *Server) repairAddresses(ctx context.Context) error {
	services, err := s.storedServices()
	if err != nil {
		return err
	}
	addresses, err := registry.AllAs[*networkingv1.IPAddress](s.reader.List("networking.k8s.io", "ipaddresses", ""))
	if err != nil {
		return err
	}
	plan := alloc.PlanAddresses(alloc.State{
		Services: services, Addresses: addresses, Ranges: s.services.Addresses.Ranges(), Now: s.cfg.Clock.Now(),
	})
	for _, ev := range plan.Events {
		s.record(ctx, "ipallocator-repair-controller", ev)
	}
	return alloc.Apply(ctx, s.services.Addresses, plan, func(ref *networkingv1.ParentReference, ip string) *corev1.Service {
		svc, err := registry.As[*corev1.Service](s.reader.Get("", "services", ref.Namespace, ref.Name))
		if err != nil || !slices.Contains(svc.Spec.ClusterIPs, ip) {
			return nil
		}
		return svc
	})
}

// record stores an event about an object.
func (s *Server) record(ctx context.Context, controller string, ev alloc.Event) {
	ns, ref := metav1.NamespaceDefault, corev1.ObjectReference{
		Namespace: ev.About.GetNamespace(), Name: ev.About.GetName(), UID: ev.About.GetUID(), ResourceVersion: ev.About.GetResourceVersion(),
	}
	switch ev.About.(type) {
	case *corev1.Service:
		ref.APIVersion, ref.Kind = "v1", "Service"
	case *networkingv1.IPAddress:
		ref.APIVersion, ref.Kind = networkingv1.SchemeGroupVersion.String(), "IPAddress"
	}
	if ref.Namespace != "" {
		ns = ref.Namespace
	}
	s.cfg.Log.Warn(ev.Message, "reason", ev.Reason, "about", ref.Kind+" "+ref.Namespace+"/"+ref.Name)
	reg := s.stores["/events"]
	if reg == nil {
		return
	}
	now := s.cfg.Clock.Now()
	_, err := reg.reg.Create(ctx, registry.Write{Namespace: ns}, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano())},
		InvolvedObject: ref, Reason: ev.Reason, Action: ev.Action, Message: ev.Message, Type: corev1.EventTypeWarning,
		EventTime: metav1.NewMicroTime(now), ReportingController: controller, ReportingInstance: controller,
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("event cannot be stored", "error", err)
	}
}
