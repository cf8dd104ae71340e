package core

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func endpointsResource() *api.Resource {
	v := api.Versioned[corev1.Endpoints, corev1.EndpointsList]("v1", defaultEndpoints)
	v.Deprecated = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
	return &api.Resource{
		Name: "endpoints", Singular: "endpoints", Kind: "Endpoints",
		ShortNames:    []string{"ep"},
		Namespaced:    true,
		Versions:      []api.Version{v},
		StoragePrefix: "services/endpoints",
		Strategy: api.Strategy{
			Validate: api.Check(validateEndpoints),
			ValidateUpdate: api.CheckUpdate(func(e, old *corev1.Endpoints) field.ErrorList {
				if !api.Changed(e.Subsets, old.Subsets) {
					return nil
				}
				return validateEndpoints(e)
			}),
			AllowCreateOnUpdate: true,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Endpoints", "string", corev1.Endpoints{}.SwaggerDoc()["subsets"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(e *corev1.Endpoints, now metav1.Time) []any {
			return []any{e.Name, formatEndpoints(e), api.Age(e.CreationTimestamp, now)}
		}),
	}
}

func validateEndpoints(e *corev1.Endpoints) field.ErrorList {
	l := &check.List{}
	for i := range e.Subsets {
		s, at := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			l.Required(at, "must specify `addresses` or `notReadyAddresses`")
		}
		for j := range s.Addresses {
			checkEndpointAddress(l, at.Child("addresses").Index(j), &s.Addresses[j])
		}
		for j := range s.NotReadyAddresses {
			checkEndpointAddress(l, at.Child("notReadyAddresses").Index(j), &s.NotReadyAddresses[j])
		}
		for j := range s.Ports {
			p, path := &s.Ports[j], at.Child("ports").Index(j)
			if p.Name != "" {
				l.Label(path.Child("name"), p.Name)
			} else if len(s.Ports) > 1 {
				l.Required(path.Child("name"), "")
			}
			l.Port(path.Child("port"), p.Port)
			check.Choice(l, path.Child("protocol"), p.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
			if p.AppProtocol != nil {
				l.QualifiedName(path.Child("appProtocol"), *p.AppProtocol)
			}
		}
	}
	return l.Errors
}

func checkEndpointAddress(l *check.List, p *field.Path, a *corev1.EndpointAddress) {
	l.Add(validation.IsValidIPForLegacyField(p.Child("ip"), a.IP, true, nil))
	if a.Hostname != "" {
		l.Label(p.Child("hostname"), a.Hostname)
	}
	if a.NodeName != nil {
		l.Messages(p.Child("nodeName"), *a.NodeName, apivalidation.NameIsDNSSubdomain(*a.NodeName, false))
	}
	checkEndpointIP(l, p.Child("ip"), a.IP)
}

// CheckEndpointIP forbids addresses that would point traffic at the node
// itself or nowhere.
func CheckEndpointIP(l *check.List, p *field.Path, ip string) { checkEndpointIP(l, p, ip) }

// formatEndpoints lists the first three endpoints and counts the others.
func formatEndpoints(e *corev1.Endpoints) string {
	if len(e.Subsets) == 0 {
		return "<none>"
	}
	const most = 3
	var all []string
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				all = append(all, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				all = append(all, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	if len(all) > most {
		return fmt.Sprintf("%s + %d more...", strings.Join(all[:most], ","), len(all)-most)
	}
	return strings.Join(all, ",")
}
