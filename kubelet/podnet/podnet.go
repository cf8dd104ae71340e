// Package podnet computes the network identity files of a pod: hostname, /etc/hosts and
// resolv.conf settings. It is pure.
package podnet

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	hostsHeader            = "# Kubernetes-managed hosts file.\n"
	hostsHeaderHostNetwork = "# Kubernetes-managed hosts file (host network).\n"
	hostsBase              = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	hostnameMax = 63

	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// Hostname returns the pod's short host name and its domain ("" without subdomain).
func Hostname(pod *v1.Pod, clusterDomain string) (host, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil {
		if msgs := validation.IsDNS1123Subdomain(*o); len(msgs) > 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *o, strings.Join(msgs, ";"))
		}
		host, err = truncate(pod.Name, *o)
		return host, "", err
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		if msgs := validation.IsDNS1123Label(pod.Spec.Hostname); len(msgs) > 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", pod.Spec.Hostname, strings.Join(msgs, ";"))
		}
		host = pod.Spec.Hostname
	}
	if host, err = truncate(pod.Name, host); err != nil {
		return "", "", err
	}
	if pod.Spec.Subdomain != "" {
		if msgs := validation.IsDNS1123Label(pod.Spec.Subdomain); len(msgs) > 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", pod.Spec.Subdomain, strings.Join(msgs, ";"))
		}
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return host, domain, nil
}

func truncate(pod, host string) (string, error) {
	if len(host) <= hostnameMax {
		return host, nil
	}
	t := strings.TrimRight(host[:hostnameMax], "-.")
	if t == "" {
		return "", fmt.Errorf("hostname for pod %q was invalid: %q", pod, host)
	}
	return t, nil
}

// KernelHostname is the name set in the pod's UTS namespace: the full name if asked for.
func KernelHostname(host, domain string, asFQDN *bool) (string, error) {
	if asFQDN == nil || !*asFQDN || domain == "" {
		return host, nil
	}
	full := host + "." + domain
	if len(full) > 64 {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", full, len(full))
	}
	return full, nil
}

// Hosts is the pod's /etc/hosts. nodeHosts is the node's own file, used for host network pods.
func Hosts(pod *v1.Pod, podIPs []string, host, domain string, nodeHosts []byte) []byte {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		b.WriteString(hostsHeaderHostNetwork)
		b.Write(nodeHosts)
	} else {
		b.WriteString(hostsHeader + hostsBase)
		for _, ip := range podIPs {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}

// Resolver is what a pod's resolv.conf is computed from.
type Resolver struct {
	ClusterDNS    []string
	ClusterDomain string
	// Host is the node's parsed resolv.conf; NoHost says the node is configured to have none.
	Host   runtimeapi.DNSConfig
	NoHost bool
}

// ParseResolvConf reads a resolv.conf file of at most 10 MiB.
func ParseResolvConf(r io.Reader) (runtimeapi.DNSConfig, error) {
	var c runtimeapi.DNSConfig
	data, err := io.ReadAll(io.LimitReader(r, 10<<20))
	if err != nil {
		return runtimeapi.DNSConfig{}, fmt.Errorf("read resolv.conf: %w", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		switch f[0] {
		case "nameserver":
			if len(f) < 2 {
				return runtimeapi.DNSConfig{}, fmt.Errorf("resolv.conf: a nameserver line is empty")
			}
			c.Servers = append(c.Servers, f[1])
		case "search": // the last one wins
			c.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					c.Searches = append(c.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			c.Options = mergeOptions(c.Options, f[1:])
		}
	}
	return runtimeapi.DNSConfig{Servers: c.Servers, Searches: c.Searches, Options: c.Options}, nil
}

// DNS is the pod's resolver configuration by its dnsPolicy and dnsConfig. Warnings are texts for
// DNSConfigForming and MissingClusterDNS events, keyed by reason.
func (r *Resolver) DNS(pod *v1.Pod) (*runtimeapi.DNSConfig, map[string]string) {
	warn := map[string]string{}
	out := &runtimeapi.DNSConfig{Servers: slices.Clone(r.Host.Servers), Searches: slices.Clone(r.Host.Searches), Options: slices.Clone(r.Host.Options)}
	policy := pod.Spec.DNSPolicy
	cluster := policy == v1.DNSClusterFirstWithHostNet || (policy == v1.DNSClusterFirst || policy == "") && !pod.Spec.HostNetwork
	switch {
	case policy == v1.DNSNone:
		out = &runtimeapi.DNSConfig{}
	case cluster && len(r.ClusterDNS) > 0:
		out.Servers = slices.Clone(r.ClusterDNS)
		out.Options = []string{"ndots:5"}
		if r.ClusterDomain != "" {
			out.Searches = append([]string{pod.Namespace + ".svc." + r.ClusterDomain, "svc." + r.ClusterDomain, r.ClusterDomain}, out.Searches...)
		}
		out.Searches = unique(out.Searches)
	default:
		if cluster {
			warn["MissingClusterDNS"] = fmt.Sprintf("kubelet does not have ClusterDNS IP configured and cannot create Pod using %q policy. Falling back to %q policy.", v1.DNSClusterFirst, v1.DNSDefault)
		}
		if r.NoHost {
			out = &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"."}}
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = unique(append(out.Servers, c.Nameservers...))
		out.Searches = unique(append(out.Searches, c.Searches...))
		var opts []string
		for _, o := range c.Options {
			s := o.Name
			if o.Value != nil && *o.Value != "" {
				s += ":" + *o.Value
			}
			opts = append(opts, s)
		}
		out.Options = mergeOptions(out.Options, opts)
	}
	fit(out, warn)
	return out, warn
}

func fit(c *runtimeapi.DNSConfig, warn map[string]string) {
	if len(c.Servers) > maxNameservers {
		c.Servers = c.Servers[:maxNameservers]
		warn["DNSConfigForming"] = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: " + strings.Join(c.Servers, " ")
	}
	had := len(c.Searches)
	c.Searches = slices.DeleteFunc(c.Searches, func(s string) bool { return len(s) > validation.DNS1123SubdomainMaxLength })
	for len(c.Searches) > maxSearches || len(strings.Join(c.Searches, " ")) > maxSearchChars {
		c.Searches = c.Searches[:len(c.Searches)-1]
	}
	if len(c.Searches) != had {
		warn["DNSConfigForming"] = "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: " + strings.Join(c.Searches, " ")
	}
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions overlays options by name; the result is sorted by name so that it is stable.
func mergeOptions(have, more []string) []string {
	m := map[string]string{}
	for _, o := range append(slices.Clone(have), more...) {
		name, _, _ := strings.Cut(o, ":")
		m[name] = o
	}
	var out []string
	for _, o := range m {
		out = append(out, o)
	}
	sort.Strings(out)
	return out
}
