// Package bootstrap makes what a cluster needs before its first component can
// start: the certificate authorities and certificates, laid out as kubeadm
// lays them out, the service account key, and a kubeconfig per identity.
package bootstrap

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/utils/clock"
)

// Options says for which node and cluster to make the assets.
type Options struct {
	DataDir  string       // required; pki/ and the kubeconfigs are made in it
	NodeName string       // required
	NodeIPs  []netip.Addr // addresses the node is reached at
	// Server is the API server's URL in the kubeconfigs; default
	// https://127.0.0.1:6443.
	Server      string
	ServiceCIDR netip.Prefix       // default 10.96.0.0/12; its first address is the kubernetes Service
	Domain      string             // default cluster.local
	ExtraSANs   []string           // further names and addresses of the API server
	Clock       clock.PassiveClock // default the real one
}

func (o Options) withDefaults() (Options, error) {
	if o.DataDir == "" || o.NodeName == "" {
		return o, fmt.Errorf("bootstrap needs a data folder and a node name")
	}
	if o.Server == "" {
		o.Server = "https://127.0.0.1:6443"
	}
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")
	}
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return o, nil
}

// Assets is everything Ensure found or made, loaded.
type Assets struct {
	CA, FrontProxyCA, EtcdCA                           Pair
	APIServer, APIServerKubeletClient, APIServerEtcd   Pair
	FrontProxyClient                                   Pair
	EtcdServer, EtcdPeer, EtcdHealthcheck              Pair
	Kubelet                                            Pair // the node API's server certificate
	KubeletClient                                      Pair // system:node:<name>
	Admin, ControllerManager, Scheduler, KubeProxy     Pair // only in kubeconfigs: their files are empty names
	ServiceAccountKey                                  crypto.Signer
	ServiceAccountKeyFile, ServiceAccountPublicKeyFile string
	AdminConf, KubeletConf, ControllerManagerConf      string // paths of kubeconfigs
	SchedulerConf, KubeProxyConf                       string
}

// Pair is a certificate with its key and the files they are in.
type Pair struct {
	CertFile, KeyFile string
	Cert              *x509.Certificate
	Key               crypto.Signer
}

// TLS is the pair for use in a tls.Config.
func (p Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
}

// Client is the pair as what a client shows; nil where there is none.
func (p Pair) Client() *tls.Certificate {
	if p.Cert == nil {
		return nil
	}
	c := p.TLS()
	return &c
}

// CertPEM is the certificate as in its file.
func (p Pair) CertPEM() []byte { return certPEM(p.Cert) }

// KeyPEM is the private key as in its file.
func (p Pair) KeyPEM() ([]byte, error) { return keyPEM(p.Key) }

// Pool is a pool with just this certificate, for verifying what it signed.
func (p Pair) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Cert)
	return pool
}

func (a *Assets) leaves() []*Pair {
	return []*Pair{
		&a.APIServer, &a.APIServerKubeletClient, &a.APIServerEtcd, &a.FrontProxyClient,
		&a.EtcdServer, &a.EtcdPeer, &a.EtcdHealthcheck, &a.Kubelet, &a.KubeletClient,
		&a.Admin, &a.ControllerManager, &a.Scheduler, &a.KubeProxy,
	}
}

// Expiry is when the first certificate ends.
func (a *Assets) Expiry() time.Time {
	first := a.CA.Cert.NotAfter
	for _, p := range append(a.leaves(), &a.FrontProxyCA, &a.EtcdCA) {
		if p.Cert != nil && p.Cert.NotAfter.Before(first) {
			first = p.Cert.NotAfter
		}
	}
	return first
}

// Ensure makes what is missing below o.DataDir, renews what has less than a
// third of its life left or does not fit o any more, keeps the rest, and
// returns it all. A file that is there but damaged is an error that names it;
// nothing is written then.
func Ensure(o Options) (*Assets, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{o.DataDir, filepath.Join(o.DataDir, "pki"), filepath.Join(o.DataDir, "pki", "etcd")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("close folder %s to other users: %w", dir, err)
		}
	}
	m := &maker{opts: o, now: o.Clock.Now()}
	a := m.assets()
	if m.err != nil {
		return nil, m.err
	}
	if err := m.files.write(); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return a, nil
}

// InMemory makes everything Ensure makes but reads and writes no file: for
// clusters that end with their process. Paths in the result are empty names
// below o.DataDir, which may be empty.
func InMemory(o Options) (*Assets, error) {
	if o.DataDir == "" {
		o.DataDir = "/nonexistent"
	}
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &maker{opts: o, now: o.Clock.Now(), inMemory: true}
	a := m.assets()
	return a, m.err
}
