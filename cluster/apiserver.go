package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/audit"
	"github.com/skiff-project/skiff/apiserver/authconfig"
	"github.com/skiff-project/skiff/apiserver/front"
	"github.com/skiff-project/skiff/apiserver/plugins"
	"github.com/skiff-project/skiff/bootstrap"
)

// APIServerOptions are those of an API server that runs by itself, as
// upstream's kube-apiserver takes them.
type APIServerOptions struct {
	// Address is where it serves, with TLS. Required.
	Address string
	// CertFile and KeyFile are what it shows clients. Default: made anew, by
	// an authority nobody knows.
	CertFile, KeyFile string
	// NamedCertificates are shown to who asks for a name of theirs. Default: none.
	NamedCertificates []CertificateFiles
	MinTLS            uint16   // default TLS 1.2
	CipherSuites      []uint16 // default Go's
	// ClientCAFile (one PEM certificate) signs client certificates. Default:
	// none are accepted.
	ClientCAFile string
	// RequestHeaderCAFile signs front proxies named RequestHeaderNames (none:
	// any). Default: none is trusted.
	RequestHeaderCAFile string
	RequestHeaderNames  []string
	// ProxyCertFile and ProxyKeyFile are shown to aggregated API servers, as a front proxy. Default: nothing is, if
	// RequestHeaderCAFile names the proxies' authority.
	ProxyCertFile, ProxyKeyFile string
	// EndpointRouting sends requests for webhooks and aggregated servers to an endpoint of their Service.
	// Default: to its cluster IP, as upstream.
	EndpointRouting bool
	// KubeletCertFile and KubeletKeyFile are shown to kubelets, whose own
	// certificates KubeletCAFile signs. Default: none, and any is accepted.
	KubeletCertFile, KubeletKeyFile, KubeletCAFile string
	// SigningKeyFile signs service account tokens; KeyFiles hold further
	// public keys that verify them. Default: a key made anew.
	SigningKeyFile string
	KeyFiles       []string
	// Issuer of those tokens. Default upstream's.
	Issuer       string
	Audiences    []string      // that are this server's own; default the issuer
	MaxTokenLife time.Duration // default: no limit
	// AdvertiseAddress is published as the kubernetes Service's endpoint,
	// unless it is a loopback one. Default: Address's host; for a loopback one this host's.
	AdvertiseAddress netip.Addr
	// ServiceCIDR holds ClusterIPs. Default 10.0.0.0/24, upstream's.
	ServiceCIDR netip.Prefix
	// Etcd is where objects are kept. Default: in memory, until the process ends.
	Etcd EtcdOptions
	// EncryptionFile is the EncryptionConfiguration of what is stored, looked at each minute with ReloadEncryption. Default: none.
	EncryptionFile   string
	ReloadEncryption bool
	APISettings
	Log *slog.Logger // default: discard
}

// CertificateFiles are a certificate, its key, and the names it is for; without, those it says.
type CertificateFiles struct {
	CertFile, KeyFile string
	Names             []string
}

// APISettings are what an operator may set of any cluster's API server. The
// zero value is upstream's defaults.
type APISettings struct {
	Audit audit.Config // of requests; default: nothing is recorded
	apiserver.Tuning
	Access authconfig.Options // who requests come from and who decides, besides the cluster's own
	// Admission is which admission plugins run, and what they are told; default those on by default.
	Admission plugins.Choice
	// NoPrivileged refuses privileged containers everywhere.
	NoPrivileged bool
	// NoTokenExtension and JWKSURI are serviceaccount.Config's.
	NoTokenExtension bool
	JWKSURI          string
}

func (c *Cluster) set(o APISettings) {
	c.tuning, c.access, c.admission, c.noPrivileged = o.Tuning, o.Access, o.Admission, o.NoPrivileged
	c.accounts.NoExtension, c.accounts.JWKSURI = o.NoTokenExtension, o.JWKSURI
}

// RunAPIServer serves the API, with nothing around it, until ctx ends.
func RunAPIServer(ctx context.Context, o APIServerOptions) error {
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = netip.MustParsePrefix("10.0.0.0/24")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := newCluster(nil)
	c.log, c.logs = o.Log, &logs{all: o.Log}
	routeKlog(o.Log)
	c.clusterIPRouting = !o.EndpointRouting
	c.encryptionFile, c.keyPrefix = o.EncryptionFile, o.Etcd.prefix()
	c.set(o.APISettings)
	c.minTLS, c.cipherSuites = o.MinTLS, o.CipherSuites
	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.openAPIServer(start, o); err != nil {
		c.stop()
		return err
	}
	start, c.abort = context.WithCancelCause(start)
	if _, err := c.startAPI(start); err != nil {
		c.stop()
		if ctx.Err() != nil { // told to end before it was ready, which is no fault
			return nil
		}
		return err
	}
	if o.ReloadEncryption && c.keys != nil {
		c.servers.wg.Go(func() { c.keys.Follow(c.servers.ctx) })
	}
	return c.Wait(ctx)
}

func (c *Cluster) openAPIServer(ctx context.Context, o APIServerOptions) error {
	var err error
	if c.listener, err = net.Listen("tcp", o.Address); err != nil {
		return err
	}
	at := c.listener.Addr().(*net.TCPAddr).AddrPort()
	if !o.AdvertiseAddress.IsValid() {
		o.AdvertiseAddress = advertisedFor(at.Addr().Unmap(), defaultRouteIP)
	}
	c.opts = Options{NodeName: "kube-apiserver", NodeIP: o.AdvertiseAddress, APIPort: int(at.Port()), ServiceCIDR: o.ServiceCIDR, Domain: "cluster.local"}
	c.assets, err = bootstrap.InMemory(bootstrap.Options{NodeName: c.opts.NodeName, NodeIPs: nodeIPs(c.opts), ServiceCIDR: o.ServiceCIDR})
	if err != nil {
		return err
	}
	if err := c.loadAssets(o); err != nil {
		return err
	}
	if c.audit, err = audit.New(o.Audit); err != nil {
		return err
	}
	c.shared = len(o.Etcd.Servers) > 0
	c.store, err = openStore(ctx, o.Etcd, o.Log)
	return err
}

// advertisedFor is what a server bound to an address advertises: the host's own where the address says
// nothing to others, as upstream. A loopback address stays if the host has no other.
func advertisedFor(bound netip.Addr, host func() netip.Addr) netip.Addr {
	switch {
	case bound.IsUnspecified():
		return host()
	case bound.IsLoopback():
		return cmp.Or(host(), bound)
	}
	return bound
}

// loadAssets puts what files hold in the place of what was made.
func (c *Cluster) loadAssets(o APIServerOptions) error {
	var err error
	if o.CertFile != "" {
		if c.assets.APIServer, err = bootstrap.LoadPair("serving certificate", o.CertFile, o.KeyFile); err != nil {
			return err
		}
	}
	if err = c.loadNamed(o.NamedCertificates); err != nil {
		return err
	}
	if o.ClientCAFile != "" {
		if c.assets.CA, err = bootstrap.LoadAuthority("client CA", o.ClientCAFile); err != nil {
			return err
		}
	}
	if err := c.loadPeers(o); err != nil {
		return err
	}
	c.accounts.Issuer, c.accounts.Audiences, c.accounts.MaxExpirationSeconds = o.Issuer, o.Audiences, int64(o.MaxTokenLife/time.Second)
	for _, file := range o.KeyFiles {
		keys, err := keyutil.PublicKeysFromFile(file)
		if err != nil {
			return fmt.Errorf("service account key: %w", err)
		}
		for _, k := range keys {
			c.accounts.VerifyKeys = append(c.accounts.VerifyKeys, k)
		}
	}
	if o.SigningKeyFile != "" {
		c.assets.ServiceAccountKey, err = loadSigner("service account signing key", o.SigningKeyFile)
	}
	return err
}

func (c *Cluster) loadNamed(list []CertificateFiles) error {
	if len(list) == 0 {
		return nil
	}
	var named []front.Named
	for _, f := range list {
		pair, err := bootstrap.LoadPair("serving certificate for names", f.CertFile, f.KeyFile)
		if err != nil {
			return err
		}
		named = append(named, front.Named{Certificate: pair.TLS(), Names: f.Names})
	}
	var err error
	c.byName, err = front.Choose(named, c.assets.APIServer.TLS())
	return err
}

// loadPeers reads what front proxies and kubelets are known by.
func (c *Cluster) loadPeers(o APIServerOptions) error {
	var err error
	if o.RequestHeaderCAFile != "" {
		if c.assets.FrontProxyCA, err = bootstrap.LoadAuthority("request header CA", o.RequestHeaderCAFile); err != nil {
			return err
		}
		c.frontNames, c.assets.FrontProxyClient = o.RequestHeaderNames, bootstrap.Pair{}
	}
	if o.ProxyCertFile != "" {
		if c.assets.FrontProxyClient, err = bootstrap.LoadPair("front proxy's certificate", o.ProxyCertFile, o.ProxyKeyFile); err != nil {
			return err
		}
	}
	if o.KubeletCertFile != "" {
		if c.assets.APIServerKubeletClient, err = bootstrap.LoadPair("certificate for kubelets", o.KubeletCertFile, o.KubeletKeyFile); err != nil {
			return err
		}
	}
	c.kubeletTLS = &tls.Config{Certificates: []tls.Certificate{c.assets.APIServerKubeletClient.TLS()}, MinVersion: tls.VersionTLS12}
	if o.KubeletCAFile == "" {
		// As upstream: a kubelet's own certificate proves nothing, and nobody else's was named.
		c.kubeletTLS.InsecureSkipVerify = true
		return nil
	}
	if c.kubeletTLS.RootCAs, err = cert.NewPool(o.KubeletCAFile); err != nil {
		return fmt.Errorf("kubelets' CA: %w", err)
	}
	return nil
}
