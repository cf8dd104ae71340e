package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/skiff-project/skiff/api"
)

func ipAddressResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "ipaddresses", Singular: "ipaddress", Kind: "IPAddress",
		ShortNames:    []string{"ip"},
		Versions:      []api.Version{api.Versioned[networkingv1.IPAddress, networkingv1.IPAddressList]("v1", nil)},
		StoragePrefix: "ipaddresses",
	}
}
