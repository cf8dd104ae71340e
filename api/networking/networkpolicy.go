package networking

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

var specPath = field.NewPath("spec")

func networkPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "networkpolicies", Singular: "networkpolicy", Kind: "NetworkPolicy",
		ShortNames: []string{"netpol"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList]("v1", defaultNetworkPolicy)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(p *networkingv1.NetworkPolicy) { p.Generation = 1 }),
			PrepareForUpdate: api.OnUpdate(func(p, old *networkingv1.NetworkPolicy) {
				api.BumpGeneration(p, old, api.Changed(p.Spec, old.Spec))
			}),
			Validate:       api.Check(validateNetworkPolicy),
			ValidateUpdate: api.CheckUpdate(func(p, _ *networkingv1.NetworkPolicy) field.ErrorList { return validateNetworkPolicy(p) }),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Pod-Selector", "string", networkingv1.NetworkPolicySpec{}.SwaggerDoc()["podSelector"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(p *networkingv1.NetworkPolicy, now metav1.Time) []any {
			return []any{p.Name, metav1.FormatLabelSelector(&p.Spec.PodSelector), api.Age(p.CreationTimestamp, now)}
		}),
	}
}

func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) != 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	ports := func(list []networkingv1.NetworkPolicyPort) {
		for i := range list {
			if list[i].Protocol == nil {
				tcp := corev1.ProtocolTCP
				list[i].Protocol = &tcp
			}
		}
	}
	for i := range p.Spec.Ingress {
		ports(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		ports(p.Spec.Egress[i].Ports)
	}
}

func validateNetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	l, s := &check.List{}, &p.Spec
	l.Selector(specPath.Child("podSelector"), &s.PodSelector)
	for i, r := range s.Ingress {
		at := specPath.Child("ingress").Index(i)
		checkPolicyPorts(l, at.Child("ports"), r.Ports)
		checkPeers(l, at.Child("from"), r.From)
	}
	for i, r := range s.Egress {
		at := specPath.Child("egress").Index(i)
		checkPolicyPorts(l, at.Child("ports"), r.Ports)
		checkPeers(l, at.Child("to"), r.To)
	}
	types := specPath.Child("policyTypes")
	if len(s.PolicyTypes) > 2 {
		l.Invalid(types, &s.PolicyTypes, "may not specify more than two policyTypes")
		return l.Errors
	}
	for i, t := range s.PolicyTypes {
		check.OneOf(l, types.Index(i), t, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)
	}
	return l.Errors
}

func checkPolicyPorts(l *check.List, p *field.Path, ports []networkingv1.NetworkPolicyPort) {
	for i, port := range ports {
		at := p.Index(i)
		if port.Protocol != nil {
			check.OneOf(l, at.Child("protocol"), *port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		}
		end := port.EndPort
		switch {
		case port.Port == nil:
			if end != nil {
				l.Invalid(at.Child("endPort"), *end, "may not be specified when `port` is not specified")
			}
		case port.Port.Type == intstr.Int:
			l.Port(at.Child("port"), port.Port.IntVal)
			if end != nil {
				if *end < port.Port.IntVal {
					l.Invalid(at.Child("endPort"), *end, "must be greater than or equal to `port`")
				}
				l.Port(at.Child("endPort"), *end)
			}
		default:
			if end != nil {
				l.Invalid(at.Child("endPort"), *end, "may not be specified when `port` is non-numeric")
			}
			l.Messages(at.Child("port"), port.Port.StrVal, validation.IsValidPortName(port.Port.StrVal))
		}
	}
}

func checkPeers(l *check.List, p *field.Path, peers []networkingv1.NetworkPolicyPeer) {
	for i, peer := range peers {
		at := p.Index(i)
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		l.Selector(at.Child("podSelector"), peer.PodSelector)
		l.Selector(at.Child("namespaceSelector"), peer.NamespaceSelector)
		if peer.IPBlock != nil {
			checkIPBlock(l, at.Child("ipBlock"), peer.IPBlock)
		}
		switch {
		case !selects && peer.IPBlock == nil:
			l.Required(at, "must specify a peer")
		case selects && peer.IPBlock != nil:
			l.Forbidden(at, "may not specify both ipBlock and another peer")
		}
	}
}

func checkIPBlock(l *check.List, p *field.Path, b *networkingv1.IPBlock) {
	if b.CIDR == "" {
		l.Required(p.Child("cidr"), "")
		return
	}
	l.Add(validation.IsValidCIDRForLegacyField(p.Child("cidr"), b.CIDR, true, nil))
	whole, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return
	}
	for i, e := range b.Except {
		at := p.Child("except").Index(i)
		l.Add(validation.IsValidCIDRForLegacyField(at, e, true, nil))
		part, err := netip.ParsePrefix(e)
		if err == nil && (!whole.Contains(part.Addr()) || whole.Bits() >= part.Bits()) {
			l.Invalid(at, e, "must be a strict subset of `cidr`")
		}
	}
}
