package bootstrap

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const clusterName = "kubernetes"

// kubeconfig finds or makes a kubeconfig with a client certificate of its own
// inside, and returns its path and that certificate.
func (m *maker) kubeconfig(name string, ca Pair, user string, l leaf) (string, Pair) {
	path := filepath.Join(m.opts.DataDir, name)
	config := m.loadKubeconfig(path)
	if m.err != nil {
		return path, Pair{}
	}
	p := embedded(config)
	if p.Cert != nil && p.Key != nil && matches(p.Cert, p.Key) && m.good(p.Cert, ca, l) && m.fits(config, ca, user) {
		return path, p
	}
	p = Pair{Key: m.newKey("")}
	if m.err == nil {
		p.Cert = m.issue(ca, l, p.Key)
	}
	m.writeKubeconfig(path, ca, user, p)
	return path, p
}

// kubeconfigFor finds or makes a kubeconfig that holds the given certificate.
func (m *maker) kubeconfigFor(name string, ca Pair, user string, p Pair) string {
	path := filepath.Join(m.opts.DataDir, name)
	config := m.loadKubeconfig(path)
	if m.err != nil {
		return path
	}
	if have := embedded(config); have.Cert != nil && have.Cert.Equal(p.Cert) && m.fits(config, ca, user) {
		return path
	}
	m.writeKubeconfig(path, ca, user, p)
	return path
}

func (m *maker) loadKubeconfig(path string) *clientcmdapi.Config {
	if m.err != nil {
		return nil
	}
	data := m.read(path)
	if data == nil {
		return nil
	}
	config, err := clientcmd.Load(data)
	if err != nil || len(config.Clusters) == 0 || len(config.AuthInfos) == 0 {
		m.fail("%s is damaged: it is no kubeconfig; remove it to have it made again", path)
		return nil
	}
	return config
}

// fits reports whether a kubeconfig leads to this cluster's API server.
func (m *maker) fits(config *clientcmdapi.Config, ca Pair, user string) bool {
	c := config.Clusters[clusterName]
	return c != nil && c.Server == m.opts.Server && bytes.Equal(c.CertificateAuthorityData, ca.CertPEM()) && config.AuthInfos[user] != nil
}

// embedded returns the one client certificate inside a kubeconfig, with nil
// members where it is missing or unreadable: such a file is made again.
func embedded(config *clientcmdapi.Config) (p Pair) {
	if config == nil {
		return p
	}
	for _, a := range config.AuthInfos {
		if block, _ := pem.Decode(a.ClientCertificateData); block != nil {
			p.Cert, _ = x509.ParseCertificate(block.Bytes)
		}
		p.Key, _ = parseKey(a.ClientKeyData)
	}
	return p
}

func (m *maker) writeKubeconfig(path string, ca Pair, user string, p Pair) {
	if m.err != nil {
		return
	}
	data, err := Kubeconfig(m.opts.Server, ca, user, p)
	if err != nil {
		m.fail("make %s: %v", path, err)
		return
	}
	m.files.add(path, data, 0o600)
}

// Kubeconfig is the text of a kubeconfig with one user, who shows the
// certificate p to the server behind a URL, which shows one signed by ca.
func Kubeconfig(server string, ca Pair, user string, p Pair) ([]byte, error) {
	key, err := p.KeyPEM()
	if err != nil {
		return nil, err
	}
	context := user + "@" + clusterName
	return clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{clusterName: {Server: server, CertificateAuthorityData: ca.CertPEM()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: {ClientCertificateData: p.CertPEM(), ClientKeyData: key}},
		Contexts:       map[string]*clientcmdapi.Context{context: {Cluster: clusterName, AuthInfo: user}},
		CurrentContext: context,
	})
}
