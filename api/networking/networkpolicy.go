package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

func networkPolicyResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "networkpolicies", Singular: "networkpolicy", Kind: "NetworkPolicy",
		ShortNames:    []string{"netpol"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList]("v1", nil)},
		StoragePrefix: "networkpolicies",
	}
}
