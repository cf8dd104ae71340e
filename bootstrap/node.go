package bootstrap

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/util/cert"
)

// EnsureNode makes or renews, in the folder of a node without a control plane,
// what its agent needs: kubelet.conf, which leads to o.Server as
// system:node:<name>, the node API's certificate, and the authority's
// certificate, all signed by ca. LoadNode reads them back.
func EnsureNode(o Options, ca Pair) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(o.DataDir, "pki"), 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	m := &maker{opts: o, now: o.Clock.Now()}
	m.pair("kubelet", ca, o.kubeletServer())
	m.kubeconfig("kubelet.conf", ca, o.nodeUser(), o.kubeletClient())
	if have := m.loadCert(m.path("ca.crt")); have == nil || !have.Equal(ca.Cert) {
		m.files.add(m.path("ca.crt"), ca.CertPEM(), 0o644)
	}
	if m.err != nil {
		return m.err
	}
	if err := m.files.write(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// LoadNode reads what EnsureNode made in a folder.
func LoadNode(dataDir string) (*Assets, error) {
	at := func(name string) string { return filepath.Join(dataDir, "pki", name) }
	a := &Assets{KubeletConf: filepath.Join(dataDir, "kubelet.conf")}
	pair, err := tls.LoadX509KeyPair(at("kubelet.crt"), at("kubelet.key"))
	if err != nil {
		return nil, fmt.Errorf("the node API's certificate: %w", err)
	}
	list, err := cert.CertsFromFile(at("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	a.CA = Pair{CertFile: at("ca.crt"), Cert: list[0]}
	a.Kubelet = Pair{CertFile: at("kubelet.crt"), KeyFile: at("kubelet.key"), Cert: pair.Leaf}
	a.Kubelet.Key, _ = pair.PrivateKey.(crypto.Signer) // every key that can serve TLS signs
	return a, nil
}

func (o Options) nodeUser() string { return "system:node:" + o.NodeName }

func (o Options) nodeNames() []string { return []string{o.NodeName, "localhost"} }

// nodeAddrs are the node's addresses and loopback's.
func (o Options) nodeAddrs() []netip.Addr {
	return slices.Concat(o.NodeIPs, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()})
}

func (o Options) kubeletServer() leaf {
	return leaf{cn: o.nodeUser(), orgs: []string{"system:nodes"}, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		names: o.nodeNames(), ips: o.nodeAddrs()}
}

func (o Options) kubeletClient() leaf {
	return leaf{cn: o.nodeUser(), orgs: []string{"system:nodes"}, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}
