package bootstrap

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Lifetimes, and how far certificates start in the past, for clocks that
// differ a little between machines.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	backdate = 5 * time.Minute
)

// maker finds or makes one asset after another; after the first error it does
// nothing more.
type maker struct {
	opts  Options
	now   time.Time
	files fileSet
	err   error
	// inMemory finds nothing: every asset is made anew.
	inMemory bool
}

// leaf describes a certificate.
type leaf struct {
	cn     string
	orgs   []string
	usages []x509.ExtKeyUsage
	names  []string
	ips    []netip.Addr
}

func (m *maker) assets() *Assets {
	const server, client = x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	o := m.opts
	nodeIPs, nodeNames := o.nodeAddrs(), o.nodeNames()
	api := leaf{
		cn: "kube-apiserver", usages: []x509.ExtKeyUsage{server},
		names: []string{o.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + o.Domain, "localhost"},
		ips:   slices.Concat([]netip.Addr{o.ServiceCIDR.Masked().Addr().Next()}, nodeIPs),
	}
	for _, san := range o.ExtraSANs {
		if ip, err := netip.ParseAddr(san); err == nil {
			api.ips = append(api.ips, ip)
		} else {
			api.names = append(api.names, san)
		}
	}
	clientOf := func(cn string, orgs ...string) leaf {
		return leaf{cn: cn, orgs: orgs, usages: []x509.ExtKeyUsage{client}}
	}
	etcd := leaf{cn: o.NodeName, usages: []x509.ExtKeyUsage{server, client}, names: nodeNames, ips: nodeIPs}

	a := &Assets{}
	a.CA = m.authority("ca", "kubernetes")
	a.FrontProxyCA = m.authority("front-proxy-ca", "front-proxy-ca")
	a.EtcdCA = m.authority("etcd/ca", "etcd-ca")
	a.APIServer = m.pair("apiserver", a.CA, api)
	a.APIServerKubeletClient = m.pair("apiserver-kubelet-client", a.CA, clientOf("kube-apiserver-kubelet-client", "kubeadm:cluster-admins", "system:masters"))
	a.APIServerEtcd = m.pair("apiserver-etcd-client", a.EtcdCA, clientOf("kube-apiserver-etcd-client"))
	a.FrontProxyClient = m.pair("front-proxy-client", a.FrontProxyCA, clientOf("front-proxy-client"))
	a.EtcdServer = m.pair("etcd/server", a.EtcdCA, etcd)
	a.EtcdPeer = m.pair("etcd/peer", a.EtcdCA, etcd)
	a.EtcdHealthcheck = m.pair("etcd/healthcheck-client", a.EtcdCA, clientOf("kube-etcd-healthcheck-client"))
	a.Kubelet = m.pair("kubelet", a.CA, o.kubeletServer())
	a.KubeletClient = m.pair("kubelet-client", a.CA, o.kubeletClient())
	m.serviceAccountKey(a)

	// The administrator is in both groups: kubeadm's, so that an ordinary
	// binding governs what it may, and the one no policy can lock out.
	a.AdminConf, a.Admin = m.kubeconfig("admin.conf", a.CA, "kubernetes-admin", clientOf("kubernetes-admin", "kubeadm:cluster-admins", "system:masters"))
	a.ControllerManagerConf, a.ControllerManager = m.kubeconfig("controller-manager.conf", a.CA, "system:kube-controller-manager", clientOf("system:kube-controller-manager"))
	a.SchedulerConf, a.Scheduler = m.kubeconfig("scheduler.conf", a.CA, "system:kube-scheduler", clientOf("system:kube-scheduler"))
	a.KubeProxyConf, a.KubeProxy = m.kubeconfig("kube-proxy.conf", a.CA, "system:kube-proxy", clientOf("system:kube-proxy"))
	a.KubeletConf = m.kubeconfigFor("kubelet.conf", a.CA, o.nodeUser(), a.KubeletClient)
	return a
}

func (m *maker) path(name string) string { return filepath.Join(m.opts.DataDir, "pki", name) }

// authority loads or makes a CA. Its key is never made anew while its
// certificate is there: everything it signed would be worthless.
func (m *maker) authority(name, cn string) Pair {
	p := Pair{CertFile: m.path(name + ".crt"), KeyFile: m.path(name + ".key")}
	if m.err != nil {
		return p
	}
	p.Cert, p.Key = m.loadCert(p.CertFile), m.loadKey(p.KeyFile)
	switch {
	case m.err != nil:
		return p
	case p.Cert != nil && p.Key == nil:
		m.fail("%s is there but its key %s is missing: restore the key, or remove both to make a new authority and all certificates", p.CertFile, p.KeyFile)
		return p
	case p.Cert != nil && !matches(p.Cert, p.Key):
		m.fail("%s does not belong to the key %s: restore the right one from a backup", p.CertFile, p.KeyFile)
		return p
	case p.Cert != nil && m.now.After(p.Cert.NotAfter):
		m.fail("%s has expired on %s: remove it, and it is made again with the same key", p.CertFile, p.Cert.NotAfter.Format(time.DateOnly))
		return p
	case p.Cert != nil && !p.Cert.IsCA:
		m.fail("%s is not a certificate authority: restore the right file from a backup", p.CertFile)
		return p
	case p.Cert != nil:
		return p
	}
	if p.Key == nil {
		p.Key = m.newKey(p.KeyFile)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		NotBefore: m.now.Add(-backdate), NotAfter: m.now.Add(caLife),
	}
	p.Cert = m.sign(template, template, p.Key.Public(), p.Key)
	if m.err == nil {
		m.files.add(p.CertFile, certPEM(p.Cert), 0o644)
	}
	return p
}

// pair loads a certificate and its key, or issues it: when it or its key is
// missing, when it is due, or when it is not what l and the CA ask for. An
// existing key is kept, so that only one file changes.
func (m *maker) pair(name string, ca Pair, l leaf) Pair {
	p := Pair{CertFile: m.path(name + ".crt"), KeyFile: m.path(name + ".key")}
	if m.err != nil {
		return p
	}
	p.Cert, p.Key = m.loadCert(p.CertFile), m.loadKey(p.KeyFile)
	if m.err != nil {
		return p
	}
	if p.Cert != nil && p.Key != nil && !matches(p.Cert, p.Key) {
		m.fail("%s does not belong to the key %s: remove both to have them made again", p.CertFile, p.KeyFile)
		return p
	}
	if p.Cert != nil && p.Key != nil && m.good(p.Cert, ca, l) {
		return p
	}
	if p.Key == nil {
		p.Key = m.newKey(p.KeyFile)
	}
	p.Cert = m.issue(ca, l, p.Key)
	if m.err == nil {
		m.files.add(p.CertFile, certPEM(p.Cert), 0o644)
	}
	return p
}

// good reports whether a certificate needs no renewal.
func (m *maker) good(c *x509.Certificate, ca Pair, l leaf) bool {
	life := c.NotAfter.Sub(c.NotBefore)
	if m.now.Before(c.NotBefore) || c.NotAfter.Sub(m.now) < life/3 || c.CheckSignatureFrom(ca.Cert) != nil {
		return false
	}
	if c.Subject.CommonName != l.cn || !sameSet(c.Subject.Organization, l.orgs) || !slices.Equal(c.ExtKeyUsage, l.usages) {
		return false
	}
	for _, n := range l.names {
		if !slices.Contains(c.DNSNames, n) {
			return false
		}
	}
	for _, ip := range l.ips {
		if !slices.ContainsFunc(c.IPAddresses, net.IP(ip.AsSlice()).Equal) {
			return false
		}
	}
	return true
}

// sameSet: the encoding orders the organizations of a subject its own way.
func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func (m *maker) issue(ca Pair, l leaf, key crypto.Signer) *x509.Certificate {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: l.cn, Organization: l.orgs}, DNSNames: unique(l.names),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.usages, BasicConstraintsValid: true,
		NotBefore: m.now.Add(-backdate), NotAfter: m.now.Add(leafLife),
	}
	for _, ip := range unique(l.ips) {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	return m.sign(template, ca.Cert, key.Public(), ca.Key)
}

func unique[T comparable](in []T) []T {
	var out []T
	for _, v := range in {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func (m *maker) sign(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	if m.err != nil {
		return nil
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err == nil {
		template.SerialNumber = serial.Add(serial, big.NewInt(1))
		var der []byte
		if der, err = x509.CreateCertificate(rand.Reader, template, parent, pub, key); err == nil {
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(der); err == nil {
				return cert
			}
		}
	}
	m.fail("make the certificate of %s: %v", template.Subject.CommonName, err)
	return nil
}

func (m *maker) newKey(file string) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.fail("make key %s: %v", file, err)
		return nil
	}
	text, err := keyPEM(key)
	if err != nil {
		m.fail("make key %s: %v", file, err)
	}
	if file != "" {
		m.files.add(file, text, 0o600)
	}
	return key
}

func (m *maker) serviceAccountKey(a *Assets) {
	a.ServiceAccountKeyFile, a.ServiceAccountPublicKeyFile = m.path("sa.key"), m.path("sa.pub")
	if m.err != nil {
		return
	}
	key := m.loadKey(a.ServiceAccountKeyFile)
	have := m.read(a.ServiceAccountPublicKeyFile)
	if m.err != nil {
		return
	}
	if key == nil {
		if have != nil {
			m.fail("%s is there but the key %s is missing: restore the key, or remove both to make a new one (every service account token becomes invalid)", a.ServiceAccountPublicKeyFile, a.ServiceAccountKeyFile)
			return
		}
		if key = m.newKey(a.ServiceAccountKeyFile); m.err != nil {
			return
		}
	}
	a.ServiceAccountKey = key
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		m.fail("%s: %v", a.ServiceAccountKeyFile, err)
		return
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	switch {
	case have == nil:
		m.files.add(a.ServiceAccountPublicKeyFile, text, 0o600)
	case string(have) != string(text):
		m.fail("%s does not belong to the key %s: remove it to have it made again", a.ServiceAccountPublicKeyFile, a.ServiceAccountKeyFile)
	}
}

func (m *maker) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

// read returns a file's content, nil when it is not there.
func (m *maker) read(path string) []byte {
	if m.inMemory {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.fail("read %s: %v", path, err)
		}
		return nil
	}
	return data
}

func (m *maker) loadCert(path string) *x509.Certificate {
	data := m.read(path)
	if data == nil {
		return nil
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		m.fail("%s is damaged: it holds no PEM certificate; restore it from a backup, or remove it to have it made again", path)
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		m.fail("%s is damaged: %v; restore it from a backup, or remove it to have it made again", path, err)
	}
	return cert
}

// loadKey also takes away what others may read of a key.
func (m *maker) loadKey(path string) crypto.Signer {
	data := m.read(path)
	if data == nil {
		return nil
	}
	key, err := parseKey(data)
	if err != nil {
		m.fail("%s is damaged: %v; restore it from a backup", path, err)
		return nil
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			m.fail("close %s to other users: %v", path, err)
		}
	}
	return key
}

func parseKey(data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("it holds no PEM private key")
		}
		data = rest
		switch block.Type {
		case "EC PARAMETERS":
			continue
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
		return nil, fmt.Errorf("it holds a %q, not a private key", block.Type)
	}
}

func matches(c *x509.Certificate, key crypto.Signer) bool {
	pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		der, err := x509.MarshalECPrivateKey(ec)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
