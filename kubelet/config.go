// Package kubelet runs the pods bound to one node: it turns what the API (or a manifest file) wants
// into calls of a container runtime behind CRI, and reports what became of it.
//
// What decides is pure and lives in sub-packages (podworker, status, admit, node, cri, env,
// podnet); this package is the shell: goroutines, API, CRI, disk. A pod has one worker, which
// sleeps until something about its pod changes: the API object, a container event, a probe's
// verdict, the end of an action, or a time the state machine asked for.
package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/kubelet/node"
	"github.com/skiff-project/skiff/kubelet/podworker"
)

// Config says what a Kubelet runs with.
type Config struct {
	NodeName string            // required
	NodeIPs  []string          // required: one, or one per family, the primary first
	Version  string            // reported kubeletVersion; default v1.37.2
	Flags    map[string]string // of the command line, for /flagz; nil: there is none

	Metrics prometheus.Gatherer // more of them for /metrics; or nil

	Client kubernetes.Interface // required
	// Informers, if set, is a factory shared within the process: pods, services and nodes are taken
	// from it. Otherwise the kubelet watches only what concerns its node (and all services).
	Informers informers.SharedInformerFactory

	Runtime internalapi.RuntimeService      // required
	Images  internalapi.ImageManagerService // required

	RootDir       string  // default /var/lib/skiff/kubelet
	LogDir        string  // pods' logs; default /var/log/pods
	StaticPodPath string  // folder (or file) of static pod manifests; "" = none
	SeccompRoot   string  // localhost seccomp profiles; default <RootDir>/seccomp
	ResolvConf    *string // node's resolv.conf; nil = /etc/resolv.conf, "" = none

	ClusterDNS    []string // name servers of pods with dnsPolicy ClusterFirst
	ClusterDomain string   // default cluster.local

	CgroupRoot string // cgroup under which kubepods is made; default /
	NoCgroups  bool   // leave cgroups alone (tests)

	MaxPods            int64             // default 110
	NodeLabels         map[string]string // added at registration
	RegisterWithTaints []v1.Taint
	ProviderID         string

	ServerAddr string // default :10250; "-" = no server
	// ServerCert is the server's certificate; required unless ServerAddr is "-".
	ServerCert *tls.Certificate
	ClientCA   *x509.CertPool // issuers of client certificates; nil = none are accepted

	Eviction           node.Thresholds // pressure conditions; defaults as upstream's
	ImageGCHighPercent int             // disk use at which unused images are deleted; default 85; 100 = never
	ImageGCLowPercent  int             // down to which; default 80
	ImageMinAge        time.Duration   // younger images are kept; default 2 min
	LogMaxSize         int64           // bytes; default 10 MiB
	LogMaxFiles        int             // default 5
	Backoff            podworker.Limits

	StatusPeriod    time.Duration // how often the node is looked at; default 10 s
	StatusReport    time.Duration // node status is sent at least so often; default 5 min
	LeaseSeconds    int32         // default 40; renewed every quarter
	RelistPeriod    time.Duration // safety net for lost container events; default 60 s
	HousekeepPeriod time.Duration // garbage collection; default 60 s
	EvictionPeriod  time.Duration // check of disk limits; default 10 s

	Log   *slog.Logger     // default: discards
	Clock clock.WithTicker // default: the real one
}

// complete fills defaults in and checks the rest.
func (c *Config) complete() error {
	api.SetIfEmpty(&c.Version, "v1.37.2")
	api.SetIfEmpty(&c.RootDir, "/var/lib/skiff/kubelet")
	api.SetIfEmpty(&c.LogDir, "/var/log/pods")
	api.SetIfEmpty(&c.ClusterDomain, "cluster.local")
	api.SetIfEmpty(&c.MaxPods, 110)
	api.SetIfEmpty(&c.ServerAddr, ":10250")
	api.SetIfEmpty(&c.ImageGCHighPercent, 85)
	api.SetIfEmpty(&c.ImageGCLowPercent, 80)
	api.SetIfEmpty(&c.ImageMinAge, 2*time.Minute)
	api.SetIfEmpty(&c.StatusPeriod, 10*time.Second)
	api.SetIfEmpty(&c.StatusReport, 5*time.Minute)
	api.SetIfEmpty(&c.LeaseSeconds, 40)
	api.SetIfEmpty(&c.RelistPeriod, time.Minute)
	api.SetIfEmpty(&c.HousekeepPeriod, time.Minute)
	api.SetIfEmpty(&c.EvictionPeriod, defaultEvictionPeriod)
	api.SetIfEmpty(&c.SeccompRoot, filepath.Join(c.RootDir, "seccomp"))
	if c.ResolvConf == nil {
		path := "/etc/resolv.conf"
		c.ResolvConf = &path
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	switch {
	case c.NodeName == "":
		return errors.New("kubelet: NodeName is required")
	case len(c.NodeIPs) == 0:
		return errors.New("kubelet: NodeIPs is required: at least one address of the node")
	case c.Client == nil:
		return errors.New("kubelet: Client is required")
	case c.Runtime == nil || c.Images == nil:
		return errors.New("kubelet: Runtime and Images are required: the container runtime's CRI services")
	case !filepath.IsAbs(c.RootDir) || !filepath.IsAbs(c.LogDir):
		return fmt.Errorf("kubelet: RootDir %q and LogDir %q must be absolute paths", c.RootDir, c.LogDir)
	case c.ServerAddr != "-" && c.ServerCert == nil:
		return errors.New("kubelet: ServerCert is required to serve the node API (or set ServerAddr to \"-\")")
	case c.ImageGCLowPercent >= c.ImageGCHighPercent && c.ImageGCHighPercent < 100:
		return fmt.Errorf("kubelet: ImageGCLowPercent %d must be below ImageGCHighPercent %d", c.ImageGCLowPercent, c.ImageGCHighPercent)
	}
	for _, ip := range c.NodeIPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			return fmt.Errorf("kubelet: NodeIPs: %w", err)
		}
	}
	return nil
}

// sleep waits for d or until ctx ends; false when it ended.
func (k *Kubelet) sleep(ctx context.Context, d time.Duration) bool {
	t := k.cfg.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C():
		return true
	}
}
