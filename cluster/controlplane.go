package cluster

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net/netip"
	goruntime "runtime"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/controller"
	"github.com/skiff-project/skiff/controller/certificates"
	"github.com/skiff-project/skiff/scheduler"
)

// Upstream's identities of the components.
const (
	userControllerManager = "system:kube-controller-manager"
	userScheduler         = "system:kube-scheduler"
)

// dnsService is the place of the DNS Service in the service range, upstream's convention.
const dnsService = 10

func gitVersion() string { return KubernetesVersion + "+skiff." + Version }
func platform() string   { return goruntime.GOOS + "/" + goruntime.GOARCH }

// startControlPlane runs the controllers and the scheduler, and makes what
// the node expects to find.
func (c *Cluster) startControlPlane(ctx context.Context) (string, error) {
	if err := errors.Join(c.startControllers(nil), c.startScheduler()); err != nil {
		return "", err
	}
	if err := errors.Join(c.ensureDNSService(ctx), c.writeStaticPods()); err != nil {
		return "", err
	}
	return "controllers and scheduler started", c.startNodes(ctx)
}

// startControllers runs the controllers of upstream's --controllers list (nil:
// those on by default).
func (c *Cluster) startControllers(enabled []string) error {
	log, err := c.logs.logger("kube-controller-manager")
	if err != nil {
		return err
	}
	controllers, err := c.newControllers(controller.Config{
		ClusterCIDRs: []netip.Prefix{c.opts.PodCIDR},
		ServiceCIDR:  c.opts.ServiceCIDR,
		RootCA:       c.assets.CA.CertPEM(),
		SignToken:    c.signLegacy,
		Authorities:  certificates.ForAll(func() (*x509.Certificate, crypto.Signer, error) { return c.assets.CA.Cert, c.assets.CA.Key, nil }),
		Enabled:      enabled,
		Log:          log,
	})
	if err != nil {
		return err
	}
	c.start(c.agents, "controllers", controllers.Run)
	return nil
}

// newControllers connects the controllers cfg tells of, each under its
// upstream identity.
func (c *Cluster) newControllers(cfg controller.Config) (*controller.Controllers, error) {
	var err error
	if cfg.Metadata, err = metadata.NewForConfig(c.config(userControllerManager)); err != nil {
		return nil, err
	}
	cfg.Client, cfg.Informers = c.clientFor(userControllerManager), c.informers
	cfg.ClientFor = func(account string) kubernetes.Interface {
		return kubernetes.NewForConfigOrDie(c.accountConfig(account))
	}
	cfg.MetadataFor = func(account string) metadata.Interface {
		return metadata.NewForConfigOrDie(c.accountConfig(account))
	}
	return controller.New(cfg)
}

// signLegacy signs the tokens that live in Secrets.
func (c *Cluster) signLegacy(_ context.Context, sa *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	return c.tokens.Legacy(sa, secret.Name)
}

func (c *Cluster) startScheduler() error {
	log, err := c.logs.logger("kube-scheduler")
	if err != nil {
		return err
	}
	sched, err := scheduler.New(scheduler.Config{Client: c.clientFor(userScheduler), Informers: c.informers, Log: log})
	if err != nil {
		return err
	}
	c.start(c.agents, "scheduler", sched.Run)
	return nil
}

// accountConfig is a connection as a service account of kube-system, as
// upstream's controller manager uses one per controller.
func (c *Cluster) accountConfig(account string) *rest.Config {
	if c.accountTokens != nil {
		return c.accountTokens.config(c.remote, account)
	}
	return c.config(auth.ServiceAccountUser(metav1.NamespaceSystem, account),
		auth.GroupServiceAccounts, auth.GroupServiceAccounts+":"+metav1.NamespaceSystem)
}

// ensureDNSService makes kube-system/kube-dns without a selector: each node's
// DNS server publishes itself as an endpoint, and pods use their own node's.
func (c *Cluster) ensureDNSService(ctx context.Context) error {
	local := corev1.ServiceInternalTrafficPolicyLocal
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kube-dns", Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP:             c.opts.serviceIP(dnsService).String(),
			InternalTrafficPolicy: &local,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
	services := c.client.CoreV1().Services(metav1.NamespaceSystem)
	_, err := services.Get(ctx, svc.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = services.Create(ctx, svc, metav1.CreateOptions{})
	}
	return err
}
