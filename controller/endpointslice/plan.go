package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/endpoints"
	"github.com/skiff-project/skiff/controller/workload"
)

// perSlice is how many endpoints one slice may hold.
const perSlice = 100

// observed is everything a plan depends on.
type observed struct {
	service *corev1.Service
	pods    []*corev1.Pod
	slices  []*discoveryv1.EndpointSlice // ours, for this Service
	zone    func(node string) string     // "" if unknown
}

// plan lists the writes: slices as they should be.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// group is the endpoints of one address family that offer the same ports.
type group struct {
	family corev1.IPFamily
	ports  []discoveryv1.EndpointPort
	want   []discoveryv1.Endpoint
	have   []*discoveryv1.EndpointSlice
}

// planSlices decides how to move the slices to the wanted endpoints with few writes: endpoints stay
// in the slice they are in, changed slices are filled up first, then new ones made.
func planSlices(o observed) plan {
	groups := map[string]*group{}
	for _, f := range endpoints.Families(o.service) {
		for _, g := range wanted(o, f) {
			groups[string(f)+" "+portKey(g.ports)] = g
		}
	}
	var p plan
	spare := map[corev1.IPFamily][]*discoveryv1.EndpointSlice{}
	for _, s := range o.slices {
		f := corev1.IPFamily(s.AddressType)
		if g := groups[string(f)+" "+portKey(s.Ports)]; g != nil {
			g.have = append(g.have, s)
		} else {
			spare[f] = append(spare[f], s)
		}
	}
	served := map[corev1.IPFamily]bool{}
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		g := groups[k]
		served[g.family] = true
		o.fill(g, &p)
	}
	for _, f := range endpoints.Families(o.service) {
		if !served[f] {
			o.placeholder(f, spare[f], &p)
			spare[f] = nil
		}
	}
	for _, f := range slices.Sorted(maps.Keys(spare)) {
		p.remove = append(p.remove, spare[f]...)
	}
	return p
}

// placeholder keeps one empty slice for a family without endpoints, so that watchers can tell
// "none" from "not looked at yet". It reuses one of the slices that are no longer needed.
func (o observed) placeholder(f corev1.IPFamily, have []*discoveryv1.EndpointSlice, p *plan) {
	if len(have) == 0 {
		p.create = append(p.create, o.newSlice(f, nil))
		return
	}
	keep := have[0]
	for _, s := range have {
		if len(s.Endpoints) == 0 && len(s.Ports) == 0 {
			keep = s
		}
	}
	s := keep.DeepCopy()
	s.Endpoints, s.Ports = []discoveryv1.Endpoint{}, nil
	o.settle(keep, s, p)
	for _, s := range have {
		if s != keep {
			p.remove = append(p.remove, s)
		}
	}
}

// wanted computes the endpoints of one family, grouped by the ports they offer.
func wanted(o observed, f corev1.IPFamily) []*group {
	byPorts := map[string]*group{}
	for _, pod := range o.pods {
		if !endpoints.Eligible(pod, true) {
			continue
		}
		ips := endpoints.Addresses(pod, f)
		if len(ips) == 0 {
			continue
		}
		ports := portsOf(o.service, pod)
		g := byPorts[portKey(ports)]
		if g == nil {
			g = &group{family: f, ports: ports}
			byPorts[portKey(ports)] = g
		}
		g.want = append(g.want, o.endpoint(pod, ips))
	}
	var out []*group
	for _, k := range slices.Sorted(maps.Keys(byPorts)) {
		out = append(out, byPorts[k])
	}
	return out
}

func (o observed) endpoint(p *corev1.Pod, ips []string) discoveryv1.Endpoint {
	serving, terminating := workload.IsReady(p), p.DeletionTimestamp != nil
	ready := o.service.Spec.PublishNotReadyAddresses || (serving && !terminating)
	e := discoveryv1.Endpoint{
		Addresses:  ips,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		e.NodeName = &p.Spec.NodeName
		if z := o.zone(p.Spec.NodeName); z != "" {
			e.Zone = &z
		}
	}
	if h := endpoints.Hostname(p, o.service); h != "" {
		e.Hostname = &h
	}
	return e
}

func portsOf(svc *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		n, err := endpoints.Port(p, sp)
		if err != nil {
			continue
		}
		out = append(out, discoveryv1.EndpointPort{Name: &sp.Name, Port: &n, Protocol: &sp.Protocol, AppProtocol: sp.AppProtocol})
	}
	return out
}

// portKey names a set of ports, whatever their order.
func portKey(ports []discoveryv1.EndpointPort) string {
	var keys []string
	for _, p := range ports {
		name, number, protocol, app := "", int32(0), corev1.ProtocolTCP, ""
		if p.Name != nil {
			name = *p.Name
		}
		if p.Port != nil {
			number = *p.Port
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if p.AppProtocol != nil {
			app = *p.AppProtocol
		}
		keys = append(keys, fmt.Sprintf("%s:%d/%s/%s", name, number, protocol, app))
	}
	slices.Sort(keys)
	return "[" + strings.Join(keys, " ") + "]"
}

// key tells endpoints apart: the same Pod on the same addresses is the same endpoint.
func key(e *discoveryv1.Endpoint) string {
	uid := ""
	if e.TargetRef != nil {
		uid = string(e.TargetRef.UID)
	}
	return uid + " " + strings.Join(e.Addresses, ",")
}

// fill distributes g's endpoints over its slices.
func (o observed) fill(g *group, p *plan) {
	left := map[string]discoveryv1.Endpoint{}
	for _, e := range g.want {
		left[key(&e)] = e
	}
	next := make([]*discoveryv1.EndpointSlice, len(g.have))
	for i, s := range g.have {
		next[i] = s.DeepCopy()
		next[i].Endpoints = []discoveryv1.Endpoint{}
		for _, e := range s.Endpoints {
			if w, ok := left[key(&e)]; ok && len(next[i].Endpoints) < perSlice {
				delete(left, key(&e))
				w.Hints, w.DeprecatedTopology = e.Hints, e.DeprecatedTopology
				next[i].Endpoints = append(next[i].Endpoints, w)
			}
		}
	}
	rest := make([]discoveryv1.Endpoint, 0, len(left))
	for _, k := range slices.Sorted(maps.Keys(left)) {
		rest = append(rest, left[k])
	}
	// the fullest slices are filled first, those that change anyway before all others
	order := make([]int, len(next))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		ca, cb := changed(g.have[a], next[a]), changed(g.have[b], next[b])
		if ca != cb {
			if ca {
				return -1
			}
			return 1
		}
		return cmp.Compare(len(next[b].Endpoints), len(next[a].Endpoints))
	})
	for _, i := range order {
		n := min(len(rest), perSlice-len(next[i].Endpoints))
		next[i].Endpoints = append(next[i].Endpoints, rest[:n]...)
		rest = rest[n:]
	}
	for i, s := range next {
		if len(s.Endpoints) == 0 {
			p.remove = append(p.remove, g.have[i])
			continue
		}
		s.Ports = g.ports
		o.settle(g.have[i], s, p)
	}
	for part := range slices.Chunk(rest, perSlice) {
		s := o.newSlice(g.family, g.ports)
		s.Endpoints = slices.Clone(part)
		p.create = append(p.create, s)
	}
}

func changed(old, new *discoveryv1.EndpointSlice) bool {
	return !equality.Semantic.DeepEqual(old.Endpoints, new.Endpoints)
}

// settle puts the right labels and owner on s and plans an update if anything differs from old.
func (o observed) settle(old, s *discoveryv1.EndpointSlice, p *plan) {
	s.Labels = o.labels()
	s.OwnerReferences = o.owner()
	if changed(old, s) || portKey(old.Ports) != portKey(s.Ports) || !maps.Equal(old.Labels, s.Labels) ||
		!equality.Semantic.DeepEqual(old.OwnerReferences, s.OwnerReferences) {
		p.update = append(p.update, s)
	}
}

func (o observed) newSlice(f corev1.IPFamily, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	prefix := o.service.Name + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = o.service.Name
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix, Namespace: o.service.Namespace,
			Labels: o.labels(), OwnerReferences: o.owner()},
		AddressType: discoveryv1.AddressType(f),
		Ports:       ports,
		Endpoints:   []discoveryv1.Endpoint{},
	}
}

func (o observed) owner() []metav1.OwnerReference {
	return []metav1.OwnerReference{*metav1.NewControllerRef(o.service, corev1.SchemeGroupVersion.WithKind("Service"))}
}

// labels are the Service's own plus those that tie the slice to it.
func (o observed) labels() map[string]string {
	l := maps.Clone(o.service.Labels)
	if l == nil {
		l = map[string]string{}
	}
	delete(l, corev1.IsHeadlessService)
	if o.service.Spec.ClusterIP == corev1.ClusterIPNone || o.service.Spec.ClusterIP == "" {
		l[corev1.IsHeadlessService] = ""
	}
	l[discoveryv1.LabelServiceName] = o.service.Name
	l[discoveryv1.LabelManagedBy] = managedBy
	return l
}
