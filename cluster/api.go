package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/api/unprivileged"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/authconfig"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/bootstraptoken"
	"github.com/skiff-project/skiff/auth/node"
	"github.com/skiff-project/skiff/auth/rbac"
	"github.com/skiff-project/skiff/auth/rbac/policy"
	"github.com/skiff-project/skiff/auth/requestheader"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/auth/x509"
	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/object/cached"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/etcdapi"
)

// ensureAssets makes or renews keys, certificates and kubeconfigs.
func (c *Cluster) ensureAssets(context.Context) (string, error) {
	assets, err := bootstrap.Ensure(bootstrap.Options{
		DataDir:     c.opts.DataDir,
		NodeName:    c.opts.NodeName,
		NodeIPs:     nodeIPs(c.opts),
		Server:      fmt.Sprintf("https://127.0.0.1:%d", c.opts.APIPort),
		ServiceCIDR: c.opts.ServiceCIDR,
		Domain:      c.opts.Domain,
		ExtraSANs:   c.opts.nodeGateway(),
	})
	if err != nil {
		return "", err
	}
	c.assets = assets
	return "the first ends " + assets.Expiry().Format(time.DateOnly), nil
}

// startStore opens the database and serves etcd's API on loopback, with the
// client certificates kubeadm would ask for.
func (c *Cluster) startStore(context.Context) (string, error) {
	log, err := c.logs.logger("etcd")
	if err != nil {
		return "", err
	}
	db, err := embedded.Open(embedded.Options{
		Dir: c.opts.path("etcd"), Decorate: registry.Decorate, Index: registry.Index(all.Resources()), Log: log,
	})
	if err != nil {
		return "", err
	}
	c.store = db
	if c.side, err = embedded.Open(embedded.Options{Dir: c.opts.path("etcd-side"), MaxTxnOps: 1024, Log: log}); err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.opts.EtcdPort)))
	if err != nil {
		return "", err
	}
	server, err := etcdapi.New(etcdapi.Config{
		Store: c.store,
		Side:  c.side,
		TLS: &tls.Config{
			Certificates: []tls.Certificate{c.assets.EtcdServer.TLS()},
			ClientCAs:    c.assets.EtcdCA.Pool(),
			ClientAuth:   tls.RequireAndVerifyClientCert,
			MinVersion:   tls.VersionTLS12,
		},
		Name: c.opts.NodeName,
		Log:  log,
	})
	if err != nil {
		listener.Close()
		return "", err
	}
	c.start(c.servers, "store", func(ctx context.Context) error { return c.watchStore(ctx, db) })
	c.start(c.servers, "etcd", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	s := c.store.Status()
	return fmt.Sprintf("revision %d, %d keys", s.Revision, s.Keys), nil
}

// watchStore ends the cluster when the store has stopped for good: after a
// failed sync nothing more may be acknowledged.
func (c *Cluster) watchStore(ctx context.Context, db *embedded.Store) error {
	select {
	case <-ctx.Done():
		return nil
	case <-db.Done():
		return db.Err()
	case <-c.side.Done():
		return c.side.Err()
	}
}

// startAPI serves the API, on the network and in process.
func (c *Cluster) startAPI(ctx context.Context) (string, error) {
	log, err := c.logs.logger("kube-apiserver")
	if err != nil {
		return "", err
	}
	cfg, err := c.apiConfig(log)
	if err != nil {
		return "", err
	}
	if c.api, err = apiserver.New(cfg); err != nil {
		return "", err
	}
	c.start(c.servers, "apiserver", c.api.Run)
	if c.client, err = kubernetes.NewForConfig(c.config("system:apiserver", auth.GroupMasters)); err != nil {
		return "", err
	}
	c.informers = informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(cached.New(c.opts.NodeName).Transform))
	if err := poll(ctx, "the API server to be ready", c.apiReady); err != nil {
		return "", err
	}
	return fmt.Sprintf("https://%s:%d", c.opts.NodeIP, c.opts.APIPort), nil
}

func (c *Cluster) apiReady(ctx context.Context) error {
	return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// apiConfig wires who may do what: certificates, service accounts, bootstrap
// tokens and the front proxy find the user; Node and RBAC decide.
func (c *Cluster) apiConfig(log *slog.Logger) (apiserver.Config, error) {
	resources := all.Resources()
	if c.noPrivileged {
		resources = unprivileged.Restrict(resources)
	}
	sealing, err := c.openEncryption()
	if err != nil {
		return apiserver.Config{}, err
	}
	reader, err := apiserver.NewReader(c.store, resources, sealing)
	if err != nil {
		return apiserver.Config{}, err
	}
	source := policyReader{registry.RBAC{Reader: reader}}
	accounts := c.accounts
	accounts.SigningKey, accounts.Getter = c.assets.ServiceAccountKey, source
	if c.tokens, err = serviceaccount.New(accounts); err != nil {
		return apiserver.Config{}, err
	}
	front, err := requestheader.New(requestheader.Config{Pool: x509.Static(c.assets.FrontProxyCA.Pool()), AllowedNames: c.frontNames})
	if err != nil {
		return apiserver.Config{}, err
	}
	if c.kubeletTLS == nil {
		own := []tls.Certificate{c.assets.APIServerKubeletClient.TLS()}
		c.kubeletTLS = &tls.Config{Certificates: own, RootCAs: c.assets.CA.Pool(), MinVersion: tls.VersionTLS12}
	}
	c.access.Log = log
	access, err := authconfig.New(c.access, authconfig.Own{Accounts: c.tokens, Node: node.New(source, policy.NodeRules()), RBAC: rbac.New(source),
		Bootstrap: bootstraptoken.New(func(ctx context.Context, name string) (*corev1.Secret, error) {
			return source.Secret(ctx, metav1.NamespaceSystem, name)
		}, nil),
	})
	if err != nil {
		return apiserver.Config{}, err
	}
	c.servers.wg.Go(func() { access.Run(c.servers.ctx) })
	if c.tuning.ExternalHost == "" {
		c.tuning.ExternalHost = c.opts.NodeIP.String() // a loopback one, too, which is no endpoint
	}
	return apiserver.Config{
		Store: c.store, SharedStore: c.shared, Encryption: sealing, Audit: c.audit, Tuning: c.tuning, Log: log,
		Resources:          resources,
		Address:            net.JoinHostPort("", strconv.Itoa(c.opts.APIPort)),
		Listener:           c.listener,
		TLS:                c.servingTLS(),
		ClientCA:           c.assets.CA.CertPEM(),
		RequestHeaderCA:    c.assets.FrontProxyCA.CertPEM(),
		RequestHeaderNames: c.frontNames,
		FrontProxy:         c.assets.FrontProxyClient.Client,
		ClusterIPRouting:   c.clusterIPRouting,
		Authenticator:      access.Server(front, x509.New(x509.Static(c.assets.CA.Pool()), nil)),
		Tokens:             access,
		ServiceAccounts:    c.tokens,
		Authorizer:         access,
		Rules:              access,
		OwnHealth:          c.ownHealth,
		Admission:          c.admission.Plugins(admission.Config{Reader: reader, Authorizer: access}, c.clusterIPRouting, log),
		Policy:             policy.Bootstrap(),
		KubeletTLS:         c.kubeletTLS,
		ServiceCIDR:        c.opts.ServiceCIDR,
		AdvertiseAddress:   c.advertised(),
		AdvertisePort:      c.opts.APIPort,
		Version:            versionInfo(),
	}, nil
}

// servingTLS is what the API's port shows clients.
func (c *Cluster) servingTLS() *tls.Config {
	conf := &tls.Config{MinVersion: max(c.minTLS, tls.VersionTLS12), CipherSuites: c.cipherSuites, GetCertificate: c.byName}
	if c.byName == nil {
		conf.Certificates = []tls.Certificate{c.assets.APIServer.TLS()}
	}
	return conf
}

func versionInfo() version.Info {
	return version.Info{
		Major: "1", Minor: "37", GitVersion: gitVersion(), GitTreeState: "clean", Compiler: "gc", Platform: platform(),
		EmulationMajor: "1", EmulationMinor: "37", MinCompatibilityMajor: "1", MinCompatibilityMinor: "36",
	}
}

// advertised is the endpoint of the kubernetes Service; none where only this
// machine can reach the server.
func (c *Cluster) advertised() netip.Addr {
	if c.opts.NodeIP.IsLoopback() {
		return netip.Addr{}
	}
	return c.opts.NodeIP
}

// config is a connection to the API in this process under an identity, or to
// the API server of another process as whom the kubeconfig says.
func (c *Cluster) config(user string, groups ...string) *rest.Config {
	if c.remote != nil {
		return rest.CopyConfig(c.remote)
	}
	cfg := c.api.InProcess(auth.User{Name: user, Groups: append(groups, auth.GroupAuthenticated)})
	cfg.QPS = -1                           // in one process a client-side limit only delays
	cfg.WarningHandler = rest.NoWarnings{} // meant for people
	return cfg
}

// clientFor is a typed client under an identity; it can only fail on a
// programming error.
func (c *Cluster) clientFor(user string, groups ...string) kubernetes.Interface {
	return kubernetes.NewForConfigOrDie(c.config(user, groups...))
}

// poll asks until ready says nil, often at first, then every 100 ms; the last
// answer is in the error when ctx ends first.
func poll(ctx context.Context, what string, ready func(context.Context) error) error {
	delay := time.Millisecond
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); cause != ctx.Err() {
				return cause
			}
			return fmt.Errorf("gave up waiting for %s: %w", what, err)
		case <-time.After(delay):
		}
		delay = min(2*delay, 20*time.Millisecond)
	}
}
