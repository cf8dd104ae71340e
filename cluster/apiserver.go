package cluster

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store/embedded"
)

// APIServerOptions are those of an API server that runs by itself, as
// upstream's kube-apiserver takes them. Its store is in memory.
type APIServerOptions struct {
	// Address is where it serves, with TLS. Required.
	Address string
	// CertFile and KeyFile are what it shows clients. Default: made anew, by
	// an authority nobody knows.
	CertFile, KeyFile string
	// ClientCAFile (one PEM certificate) signs client certificates. Default:
	// none are accepted.
	ClientCAFile string
	// SigningKeyFile signs service account tokens; KeyFiles hold further
	// public keys that verify them. Default: a key made anew.
	SigningKeyFile string
	KeyFiles       []string
	// Issuer of those tokens. Default upstream's.
	Issuer string
	// AdvertiseAddress is published as the kubernetes Service's endpoint,
	// unless it is a loopback one. Default: Address's host.
	AdvertiseAddress netip.Addr
	// ServiceCIDR holds ClusterIPs. Default 10.0.0.0/24, upstream's.
	ServiceCIDR netip.Prefix
	// DisableAdmission names admission plugins to leave out.
	DisableAdmission []string
	Log              *slog.Logger // default: discard
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
	c.notAdmitted = o.DisableAdmission
	if err := c.openAPIServer(o); err != nil {
		c.stop()
		return err
	}
	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	start, c.abort = context.WithCancelCause(start)
	if _, err := c.startAPI(start); err != nil {
		c.stop()
		return err
	}
	return c.Wait(ctx)
}

func (c *Cluster) openAPIServer(o APIServerOptions) error {
	var err error
	if c.listener, err = net.Listen("tcp", o.Address); err != nil {
		return err
	}
	at := c.listener.Addr().(*net.TCPAddr).AddrPort()
	if !o.AdvertiseAddress.IsValid() {
		o.AdvertiseAddress = at.Addr().Unmap()
		if o.AdvertiseAddress.IsUnspecified() {
			o.AdvertiseAddress = defaultRouteIP()
		}
	}
	c.opts = Options{NodeName: "kube-apiserver", NodeIP: o.AdvertiseAddress, APIPort: int(at.Port()), ServiceCIDR: o.ServiceCIDR, Domain: "cluster.local"}
	c.assets, err = bootstrap.InMemory(bootstrap.Options{NodeName: c.opts.NodeName, NodeIPs: nodeIPs(c.opts), ServiceCIDR: o.ServiceCIDR})
	if err != nil {
		return err
	}
	if err := c.loadAssets(o); err != nil {
		return err
	}
	c.store, err = embedded.Open(embedded.Options{Decorate: wire.Decorate, Log: o.Log})
	return err
}

// loadAssets puts what files hold in the place of what was made.
func (c *Cluster) loadAssets(o APIServerOptions) error {
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return fmt.Errorf("serving certificate: %w", err)
		}
		key, ok := pair.PrivateKey.(crypto.Signer)
		if !ok {
			return fmt.Errorf("serving certificate: %s holds a key that cannot sign", o.KeyFile)
		}
		c.assets.APIServer = bootstrap.Pair{Cert: pair.Leaf, Key: key}
	}
	if o.ClientCAFile != "" {
		list, err := cert.CertsFromFile(o.ClientCAFile)
		if err != nil {
			return fmt.Errorf("client CA: %w", err)
		}
		if len(list) != 1 {
			return fmt.Errorf("client CA: %s holds %d certificates; one is supported", o.ClientCAFile, len(list))
		}
		c.assets.CA = bootstrap.Pair{Cert: list[0]}
	}
	c.accounts = serviceaccount.Config{Issuer: o.Issuer}
	for _, file := range o.KeyFiles {
		keys, err := keyutil.PublicKeysFromFile(file)
		if err != nil {
			return fmt.Errorf("service account key: %w", err)
		}
		for _, k := range keys {
			c.accounts.VerifyKeys = append(c.accounts.VerifyKeys, k)
		}
	}
	if o.SigningKeyFile == "" {
		return nil
	}
	key, err := keyutil.PrivateKeyFromFile(o.SigningKeyFile)
	if err != nil {
		return fmt.Errorf("service account signing key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("service account signing key: %s holds a key that cannot sign", o.SigningKeyFile)
	}
	c.assets.ServiceAccountKey = signer
	return nil
}
