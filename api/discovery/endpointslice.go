package discovery

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
)

const (
	maxAddresses = 100
	maxPorts     = 20000
	maxEndpoints = 1000
	maxHints     = 8
)

func endpointSliceResource() *api.Resource {
	doc := discoveryv1.EndpointSlice{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "endpointslices", Singular: "endpointslice", Kind: "EndpointSlice",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList]("v1", setDefaults)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(e *discoveryv1.EndpointSlice) {
				dropTopology(e)
				e.Generation = 1
			}),
			PrepareForUpdate: api.OnUpdate(func(e, old *discoveryv1.EndpointSlice) {
				if api.Changed(e.Endpoints, old.Endpoints) {
					dropTopology(e)
				}
				changed := e.AddressType != old.AddressType || api.Changed(e.Endpoints, old.Endpoints) ||
					api.Changed(e.Ports, old.Ports) || api.Changed(e.Labels, old.Labels)
				api.BumpGeneration(e, old, changed)
			}),
			Validate: api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(e, old *discoveryv1.EndpointSlice) field.ErrorList {
				l := &check.List{Errors: validate(e)}
				l.Fixed(field.NewPath("addressType"), e.AddressType, old.AddressType)
				return l.Errors
			}),
			Warnings: api.Warn(func(e, _ *discoveryv1.EndpointSlice) []string {
				if e.AddressType == discoveryv1.AddressTypeFQDN {
					return []string{"addressType: FQDN endpoints are deprecated"}
				}
				return nil
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("AddressType", "string", doc["addressType"]),
			api.Column("Ports", "string", doc["ports"]),
			api.Column("Endpoints", "string", doc["endpoints"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(e *discoveryv1.EndpointSlice, now metav1.Time) []any {
			return []any{e.Name, string(e.AddressType), formatPorts(e.Ports), formatEndpoints(e.Endpoints), api.Age(e.CreationTimestamp, now)}
		}),
	}
}

func setDefaults(e *discoveryv1.EndpointSlice) {
	for i := range e.Ports {
		p := &e.Ports[i]
		if p.Name == nil {
			p.Name = new(string)
		}
		if p.Protocol == nil {
			tcp := corev1.ProtocolTCP
			p.Protocol = &tcp
		}
	}
}

func validate(e *discoveryv1.EndpointSlice) field.ErrorList {
	l := &check.List{}
	check.Choice(l, field.NewPath("addressType"), e.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	at := field.NewPath("endpoints")
	if n := len(e.Endpoints); n > maxEndpoints {
		l.TooMany(at, n, maxEndpoints)
	} else {
		for i := range e.Endpoints {
			checkEndpoint(l, at.Index(i), &e.Endpoints[i], e.AddressType)
		}
	}
	checkPorts(l, field.NewPath("ports"), e.Ports)
	return l.Errors
}

func checkEndpoint(l *check.List, p *field.Path, e *discoveryv1.Endpoint, kind discoveryv1.AddressType) {
	at := p.Child("addresses")
	if n := len(e.Addresses); n == 0 {
		l.Required(at, "")
	} else if n > maxAddresses {
		l.TooMany(at, n, maxAddresses)
	}
	for i, a := range e.Addresses {
		switch kind {
		case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
			errs := validation.IsValidIP(at.Index(i), a)
			l.Add(errs)
			if len(errs) > 0 {
				continue
			}
			if ip, err := netip.ParseAddr(a); err == nil && ip.Is4() != (kind == discoveryv1.AddressTypeIPv4) {
				l.Invalid(at, a, fmt.Sprintf("must be an %s address", kind))
			}
			core.CheckEndpointIP(l, at.Index(i), a)
		case discoveryv1.AddressTypeFQDN:
			l.Add(validation.IsFullyQualifiedDomainName(at.Index(i), a))
		}
	}
	if e.NodeName != nil {
		l.Messages(p.Child("nodeName"), *e.NodeName, apivalidation.NameIsDNSSubdomain(*e.NodeName, false))
	}
	if e.Hostname != nil {
		l.Label(p.Child("hostname"), *e.Hostname)
	}
	if h := e.Hints; h != nil {
		zones, nodes := make([]string, len(h.ForZones)), make([]string, len(h.ForNodes))
		for i := range h.ForZones {
			zones[i] = h.ForZones[i].Name
		}
		for i := range h.ForNodes {
			nodes[i] = h.ForNodes[i].Name
		}
		checkHints(l, p.Child("hints", "forZones"), zones, func(at *field.Path, s string) {
			l.Messages(at, s, validation.IsValidLabelValue(s))
		})
		checkHints(l, p.Child("hints", "forNodes"), nodes, func(at *field.Path, s string) {
			l.Messages(at, s, apivalidation.NameIsDNSSubdomain(s, false))
		})
	}
}

func checkHints(l *check.List, p *field.Path, names []string, one func(*field.Path, string)) {
	if len(names) > maxHints {
		l.TooMany(p, len(names), maxHints)
		return
	}
	seen := sets.Set[string]{}
	for i, name := range names {
		at := p.Index(i).Child("name")
		if seen.Has(name) {
			l.Duplicate(at, name)
		} else {
			seen.Insert(name)
			one(at, name)
		}
	}
}

func checkPorts(l *check.List, p *field.Path, ports []discoveryv1.EndpointPort) {
	if len(ports) > maxPorts {
		l.TooMany(p, len(ports), maxPorts)
		return
	}
	names := sets.Set[string]{}
	for i := range ports {
		port, at := &ports[i], p.Index(i)
		if name := port.Name; name != nil {
			if *name != "" {
				l.Label(at.Child("name"), *name)
			}
			if names.Has(*name) {
				l.Duplicate(at.Child("name"), name)
			}
			names.Insert(*name)
		}
		if port.Protocol == nil {
			l.Required(at.Child("protocol"), "")
		} else {
			check.OneOf(l, at.Child("protocol"), *port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
		}
		if port.AppProtocol != nil {
			l.QualifiedName(at.Child("appProtocol"), *port.AppProtocol)
		}
	}
}

func formatPorts(ports []discoveryv1.EndpointPort) string {
	var all []string
	for _, p := range ports {
		switch {
		case p.Port != nil:
			all = append(all, strconv.Itoa(int(*p.Port)))
		case p.Name != nil:
			all = append(all, *p.Name)
		default:
			all = append(all, "*")
		}
	}
	return firstThree(all, "<unset>")
}

func formatEndpoints(endpoints []discoveryv1.Endpoint) string {
	var all []string
	for _, e := range endpoints {
		all = append(all, e.Addresses...)
	}
	return firstThree(all, "<unset>")
}

// firstThree lists three texts and counts the others.
func firstThree(all []string, none string) string {
	const most = 3
	switch {
	case strings.Join(all, "") == "":
		return none
	case len(all) > most:
		return fmt.Sprintf("%s + %d more...", strings.Join(all[:most], ","), len(all)-most)
	}
	return strings.Join(all, ",")
}

// dropTopology drops what v1 cannot write.
func dropTopology(e *discoveryv1.EndpointSlice) {
	for i := range e.Endpoints {
		e.Endpoints[i].DeprecatedTopology = nil
	}
}
