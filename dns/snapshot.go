package dns

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// serviceIndex finds EndpointSlices by their Service; the proxy asks for the same index.
	serviceIndex = "skiff.service"
	ipIndex      = "skiff.dns.ip"
)

// informerSnapshot is a Snapshot over the shared informers' memory: it copies nothing.
type informerSnapshot struct {
	services   corelisters.ServiceLister
	byIP       cache.Indexer
	slices     cache.Indexer
	namespaces corelisters.NamespaceLister
	synced     []cache.InformerSynced
}

func newInformerSnapshot(f informers.SharedInformerFactory) (*informerSnapshot, error) {
	services, eps, namespaces := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices().Informer(), f.Core().V1().Namespaces()
	s := &informerSnapshot{services: services.Lister(), byIP: services.Informer().GetIndexer(), slices: eps.GetIndexer(),
		namespaces: namespaces.Lister(),
		synced:     []cache.InformerSynced{services.Informer().HasSynced, eps.HasSynced, namespaces.Informer().HasSynced}}
	for _, x := range []struct {
		informer cache.SharedIndexInformer
		name     string
		keys     func(any) []string
	}{
		{services.Informer(), ipIndex, serviceIPs},
		{eps, ipIndex, headlessIPs},
		{eps, serviceIndex, sliceService},
	} {
		if _, there := x.informer.GetIndexer().GetIndexers()[x.name]; there {
			continue
		}
		err := x.informer.AddIndexers(cache.Indexers{x.name: func(obj any) ([]string, error) { return x.keys(obj), nil }})
		if err != nil {
			return nil, fmt.Errorf("dns: index %s: %w", x.name, err)
		}
	}
	return s, nil
}

func serviceIPs(obj any) []string {
	svc, ok := obj.(*corev1.Service)
	if !ok || svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	return canonical(clusterIPs(svc))
}

// headlessIPs are the addresses in a headless Service's slice; others have no PTR records.
func headlessIPs(obj any) []string {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	if _, headless := s.Labels[corev1.IsHeadlessService]; !headless {
		return nil
	}
	var ips []string
	for i := range s.Endpoints {
		ips = append(ips, s.Endpoints[i].Addresses...)
	}
	return canonical(ips)
}

func canonical(ips []string) []string {
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, a.Unmap().String())
		}
	}
	return out
}

func sliceService(obj any) []string {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return nil
	}
	return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
}

// Service implements Snapshot.
func (s *informerSnapshot) Service(namespace, name string) *corev1.Service {
	svc, err := s.services.Services(namespace).Get(name)
	if err != nil {
		return nil
	}
	return svc
}

// EndpointSlices implements Snapshot.
func (s *informerSnapshot) EndpointSlices(namespace, service string) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](s.slices, serviceIndex, namespace+"/"+service)
}

// Namespace implements Snapshot.
func (s *informerSnapshot) Namespace(name string) bool {
	_, err := s.namespaces.Get(name)
	return err == nil
}

// ServicesByIP implements Snapshot.
func (s *informerSnapshot) ServicesByIP(ip netip.Addr) []*corev1.Service {
	return indexed[*corev1.Service](s.byIP, ipIndex, ip.String())
}

// EndpointsByIP implements Snapshot.
func (s *informerSnapshot) EndpointsByIP(ip netip.Addr) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](s.slices, ipIndex, ip.String())
}

func indexed[T any](ix cache.Indexer, index, key string) []T {
	objs, err := ix.ByIndex(index, key)
	if err != nil {
		return nil
	}
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}
