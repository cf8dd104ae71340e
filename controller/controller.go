// Package controller is Skiff's controller manager: the one explicit list of controllers and what
// runs them. Each controller lives in a folder of its own and is built from engine.Env; how a
// controller works in general is said in package engine.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/controller/certificates"
	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/nodelifecycle"
	"github.com/skiff-project/skiff/controller/tokens"
)

// Config is what the controllers need.
type Config struct {
	Client kubernetes.Interface // required; reads, events, and all writes unless ClientFor is set
	// ClientFor returns the client a controller writes with, by the name of its service account in
	// kube-system ("deployment-controller"). Default: Client for all.
	ClientFor func(account string) kubernetes.Interface
	Metadata  metadata.Interface // required by the garbage collector and namespace deletion
	// MetadataFor is ClientFor for those two. Default: Metadata for both.
	MetadataFor func(account string) metadata.Interface
	// Discovery finds the resources those two work on. Default: Client's.
	Discovery discovery.DiscoveryInterface
	Informers informers.SharedInformerFactory // required; shared in process, started by Run

	ClusterCIDRs     []netip.Prefix // Pod addresses for nodes, one or one per family; none: node IPAM is off
	NodeCIDRMaskSize int            // default 24
	NodeMaskSizeIPv6 int            // default 64
	ServiceCIDR      netip.Prefix   // kept out of the nodes' blocks if it overlaps; may be zero
	RootCA           []byte         // PEM, published in every namespace; none: the publisher is off
	SignToken        tokens.Sign    // signs legacy token secrets; nil: they get no token
	// Authorities sign CertificateSigningRequests, by signer's name; those of other signers wait.
	Authorities     map[string]certificates.Authority
	SigningDuration time.Duration // the longest life of what they sign; default one year

	// Enabled is upstream's --controllers: names, "*" for those on by default, "-name" to leave one
	// out. Default: "*".
	Enabled []string

	Node               nodelifecycle.Config // timings; zero values are upstream's
	LegacyTokenPeriod  time.Duration        // unused tokens in Secrets are kept for it; default a year
	TerminatedPodLimit int                  // finished Pods that are kept; default 12500, negative: all

	Log   *slog.Logger     // default: discard
	Clock clock.WithTicker // default: the real clock
}

// Controllers is the set of controllers that Run runs.
type Controllers struct {
	cfg  Config
	list []running
}

type running struct {
	*engine.Controller
	env engine.Env
}

// New validates cfg and builds the enabled controllers. Nothing runs and no request is made yet.
func New(cfg Config) (*Controllers, error) {
	if cfg.Client == nil || cfg.Informers == nil {
		return nil, errors.New("controllers: Client and Informers are required")
	}
	cfg = withDefaults(cfg)
	enabled, err := choose(cfg.Enabled)
	if err != nil {
		return nil, err
	}
	c := &Controllers{cfg: cfg}
	for _, e := range list {
		if !enabled(e) || e.off != nil && e.off(cfg) {
			continue
		}
		env := engine.Env{
			Client:    cfg.Client,
			Informers: cfg.Informers,
			Events:    &lateRecorder{},
			Clock:     cfg.Clock,
			Log:       cfg.Log.With("controller", e.name),
		}
		if e.account != "" {
			env.Client = cfg.ClientFor(e.account)
		}
		built, err := e.build(env, cfg)
		if err == nil {
			err = built.Validate()
		}
		if err != nil {
			return nil, err
		}
		if built.Name != e.name {
			return nil, fmt.Errorf("controllers: %s calls itself %s", e.name, built.Name)
		}
		c.list = append(c.list, running{built, env})
	}
	return c, nil
}

func withDefaults(cfg Config) Config {
	if cfg.ClientFor == nil {
		cfg.ClientFor = func(string) kubernetes.Interface { return cfg.Client }
	}
	if cfg.Discovery == nil {
		cfg.Discovery = cfg.Client.Discovery()
	}
	if cfg.NodeCIDRMaskSize == 0 {
		cfg.NodeCIDRMaskSize = 24
	}
	if cfg.NodeMaskSizeIPv6 == 0 {
		cfg.NodeMaskSizeIPv6 = 64
	}
	if cfg.SigningDuration == 0 {
		cfg.SigningDuration = 365 * 24 * time.Hour
	}
	switch {
	case cfg.TerminatedPodLimit == 0:
		cfg.TerminatedPodLimit = 12500
	case cfg.TerminatedPodLimit < 0:
		cfg.TerminatedPodLimit = 0
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if len(cfg.Enabled) == 0 {
		cfg.Enabled = []string{"*"}
	}
	return cfg
}

// choose reads upstream's --controllers syntax.
func choose(names []string) (func(entry) bool, error) {
	for _, n := range names {
		plain := strings.TrimPrefix(n, "-")
		if n != "*" && !slices.ContainsFunc(list, func(e entry) bool { return e.name == plain || e.alias == plain }) {
			return nil, fmt.Errorf("controllers: %q is not a controller Skiff has; known: %s", plain, strings.Join(Names(), ", "))
		}
	}
	has := func(e entry, sign string) bool {
		return slices.Contains(names, sign+e.name) || e.alias != "" && slices.Contains(names, sign+e.alias)
	}
	return func(e entry) bool {
		switch {
		case has(e, "-"):
			return false
		case has(e, ""):
			return true
		}
		return slices.Contains(names, "*")
	}, nil
}

// Names lists every controller there is, in the order they start.
func Names() []string {
	var out []string
	for _, e := range list {
		out = append(out, e.name)
	}
	return out
}

// Run starts the informers and runs every controller until ctx ends. It returns the first error of
// a controller that could not run at all; failures of single objects are retried, not returned.
func (c *Controllers) Run(ctx context.Context) error {
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.cfg.Client.CoreV1().Events("")})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, r := range c.list {
		source := corev1.EventSource{Component: component(r.Name)}
		r.env.Events.(*lateRecorder).set(events.NewRecorder(scheme.Scheme, source))
	}
	for _, r := range c.list {
		wg.Go(func() {
			start := func() { c.cfg.Informers.Start(ctx.Done()) }
			if err := r.Controller.Run(ctx, r.env, start); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("controller %s: %w", r.Name, err))
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// metadataFor is the metadata client of a service account.
func (c Config) metadataFor(account string) metadata.Interface {
	if c.MetadataFor == nil {
		return c.Metadata
	}
	return c.MetadataFor(account)
}
