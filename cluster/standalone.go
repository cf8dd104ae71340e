package cluster

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/keyutil"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/controller"
	"github.com/skiff-project/skiff/internal/clientmetrics"
	"github.com/skiff-project/skiff/internal/zpages"
	"github.com/skiff-project/skiff/object/cached"
	"github.com/skiff-project/skiff/scheduler"
)

// Connection says how a component that runs by itself reaches the API server.
type Connection struct {
	// Kubeconfig is a file. Default: the service account of the pod this
	// process runs in.
	Kubeconfig string
	Server     string // instead of the kubeconfig's
	// QPS and Burst bound requests a second. Default client-go's 5 and 10; negative: no bound.
	QPS         float32
	Burst       int
	ContentType string // default protobuf
}

// protobuf is the content type of components.
const protobuf = "application/vnd.kubernetes.protobuf"

func (k Connection) config(component string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags(k.Server, k.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("connection to the API server: %w", err)
	}
	cfg.QPS, cfg.Burst, cfg.ContentType = k.QPS, k.Burst, k.ContentType
	if cfg.ContentType == "" {
		cfg.ContentType = protobuf
	}
	cfg.AcceptContentTypes = cfg.ContentType + ",application/json"
	cfg.WarningHandler = rest.NoWarnings{} // meant for people
	switch component {
	case "kube-controller-manager", "kube-scheduler", "node": // they are near the server
		cfg.DisableCompression = true
	}
	if component != "" {
		rest.AddUserAgent(cfg, component)
	}
	return cfg, nil
}

// Election says whether and how instances of a component agree on one that works.
type Election struct {
	Off                                       bool
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration // default 15 s, 10 s, 2 s
	Namespace, Name                           string        // of the Lease; default kube-system, and the component's name
}

func (e Election) withDefaults(component string) Election {
	api.SetIfEmpty(&e.LeaseDuration, 15*time.Second)
	api.SetIfEmpty(&e.RenewDeadline, 10*time.Second)
	api.SetIfEmpty(&e.RetryPeriod, 2*time.Second)
	api.SetIfEmpty(&e.Namespace, metav1.NamespaceSystem)
	api.SetIfEmpty(&e.Name, component)
	return e
}

// stopGrace is how long a leader that has lost its lease gets to stop what it does.
const stopGrace = 5 * time.Second

// lead returns run within a leader election: it waits to be elected, and ends
// with an error when the election is lost. The lease is given back after the
// work has ended, not before.
func (c *Cluster) lead(e Election, component string, w *watched, run func(context.Context) error) func(context.Context) error {
	if e.Off {
		return run
	}
	e = e.withDefaults(component)
	return func(ctx context.Context) error {
		held, release := context.WithCancel(context.WithoutCancel(ctx))
		defer release()
		var led atomic.Bool
		done := make(chan error, 1)
		elector, err := c.elector(e, component, w, leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				led.Store(true)
				work, cancel := context.WithCancel(leading)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				done <- run(work)
				release()
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(id string) {
				c.log.Info("new leader elected", "component", component, "identity", id)
			},
		})
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() {
			if !led.Load() {
				release()
			}
		})()
		elector.Run(held)
		if led.Load() {
			select {
			case err = <-done:
			case <-time.After(stopGrace):
			}
		}
		if ctx.Err() != nil || err != nil {
			return err
		}
		return errors.New("leader election lost")
	}
}

func (c *Cluster) elector(e Election, component string, w *watched, callbacks leaderelection.LeaderCallbacks) (*leaderelection.LeaderElector, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	events := record.NewBroadcaster()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, e.Namespace, e.Name, resourcelock.ResourceLockConfig{
		Identity:      host + "_" + string(uuid.NewUUID()),
		EventRecorder: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component}),
	}, c.config(""), e.RenewDeadline)
	if err != nil {
		return nil, err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: e.LeaseDuration, RenewDeadline: e.RenewDeadline, RetryPeriod: e.RetryPeriod,
		Callbacks: callbacks, ReleaseOnCancel: true, Name: e.Name,
	})
	if err != nil {
		return nil, fmt.Errorf("leader election: %w", err)
	}
	// Twenty seconds late, as upstream: the process then ends itself, or is to be ended.
	w.check("leaderElection", func() error { return elector.Check(20 * time.Second) })
	w.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "leader_election_master_status",
		Help: "Whether this instance is the leader.", ConstLabels: prometheus.Labels{"name": e.Name}}, func() float64 {
		if elector.IsLeader() {
			return 1
		}
		return 0
	}))
	return elector, nil
}

// Component is what every component that runs by itself has.
type Component struct {
	Connection Connection
	Serving    Serving
	Election   Election
	Flags      map[string]string // as given, with the defaults of others, for /flagz; nil: there is none
	Log        *slog.Logger      // default: discard
}

// local makes a Cluster that has nothing yet.
func (o *Component) local(name string) *Cluster {
	api.SetIfEmpty(&o.Log, slog.New(slog.DiscardHandler))
	c := newCluster(nil)
	c.log, c.logs = o.Log, &logs{all: o.Log}
	routeKlog(o.Log)
	c.paceCollector()
	o.Log.Info("starting", "component", name, "version", gitVersion(), "pid", os.Getpid())
	return c
}

// alone makes a Cluster whose API server is another process.
func (o *Component) alone(name string) (*Cluster, error) {
	c := o.local(name)
	var err error
	if c.remote, err = o.Connection.config(name); err != nil {
		return nil, err
	}
	if c.client, err = kubernetes.NewForConfig(c.remote); err != nil {
		return nil, err
	}
	c.informers = informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(cached.New("").Transform))
	return c, nil
}

// ControllerManager is kube-controller-manager by itself.
type ControllerManager struct {
	Component
	// Controllers is what flags say of the controllers; connections, RootCA and SignToken are set here.
	Controllers controller.Config
	// AccountCredentials: each controller is its own service account, as which it asks for tokens.
	AccountCredentials bool
	RootCAFile         string // published to every namespace; default: not
	TokenKeyFile       string // signs legacy tokens; default: none are signed
}

// Run runs until ctx ends, or until another instance has taken over.
func (o ControllerManager) Run(ctx context.Context) error {
	const name = "kube-controller-manager"
	c, err := o.alone(name)
	if err != nil {
		return err
	}
	cfg := o.Controllers
	if o.RootCAFile != "" {
		if cfg.RootCA, err = os.ReadFile(o.RootCAFile); err != nil {
			return fmt.Errorf("root CA: %w", err)
		}
	}
	if o.TokenKeyFile != "" {
		if err := c.loadTokenKey(o.TokenKeyFile); err != nil {
			return err
		}
		cfg.SignToken = c.signLegacy
	}
	if o.AccountCredentials {
		c.accountTokens = &accountTokens{client: c.client, tokens: map[string]*accountToken{}}
	}
	controllers, err := c.newControllers(cfg)
	if err != nil {
		return err
	}
	return c.runAlone(ctx, o.Component, name, controllers.Run)
}

// runAlone serves, elects and works until ctx ends or one of them fails.
func (c *Cluster) runAlone(ctx context.Context, o Component, name string, run func(context.Context) error) error {
	w := newWatched()
	w.pages = zpages.New(name, gitVersion(), o.Flags, "/healthz", "/livez", "/metrics", "/readyz")
	clientmetrics.Install(w.registry)
	if err := c.startServing(o.Serving, name, w); err != nil {
		c.stop()
		return err
	}
	c.start(c.agents, name, c.lead(o.Election, name, w, run))
	return c.Wait(ctx)
}

func (c *Cluster) loadTokenKey(file string) error {
	signer, err := loadSigner("service account key", file)
	if err != nil {
		return err
	}
	// Only the API server checks tokens and needs to look things up for it.
	c.tokens, err = serviceaccount.New(serviceaccount.Config{SigningKey: signer, Getter: policyReader{}})
	return err
}

// loadSigner reads a private key; what says in errors what it is for.
func loadSigner(what, file string) (crypto.Signer, error) {
	key, err := keyutil.PrivateKeyFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: %s holds a key that cannot sign", what, file)
	}
	return signer, nil
}

// Scheduler is kube-scheduler by itself.
type Scheduler struct {
	Component
	Profiles []scheduler.Profile
}

// Run runs until ctx ends, or until another instance has taken over.
func (o Scheduler) Run(ctx context.Context) error {
	const name = "kube-scheduler"
	c, err := o.alone(name)
	if err != nil {
		return err
	}
	sched, err := scheduler.New(scheduler.Config{Client: c.client, Informers: c.informers, Profiles: o.Profiles, Log: o.Log})
	if err != nil {
		return err
	}
	return c.runAlone(ctx, o.Component, name, sched.Run)
}

// accountTokens makes connections as service accounts of kube-system, with
// tokens asked of the API server.
type accountTokens struct {
	client kubernetes.Interface
	mu     sync.Mutex
	tokens map[string]*accountToken // by account; one per controller
}

// config is base with an account's token in the place of base's credentials.
func (a *accountTokens) config(base *rest.Config, account string) *rest.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tokens[account]
	if t == nil {
		t = &accountToken{client: a.client, account: account}
		a.tokens[account] = t
	}
	cfg := rest.AnonymousClientConfig(base)
	cfg.WarningHandler = base.WarningHandler
	cfg.UserAgent = base.UserAgent + "/" + account
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return tokenTransport{t, next} })
	return cfg
}

// accountToken is the current token of one account.
type accountToken struct {
	client  kubernetes.Interface
	account string
	mu      sync.Mutex
	token   string
	renew   time.Time
}

// get returns a token that is good for a while; the account is made if it is missing.
func (t *accountToken) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != "" && time.Now().Before(t.renew) {
		return t.token, nil
	}
	accounts := t.client.CoreV1().ServiceAccounts(metav1.NamespaceSystem)
	request := &authnv1.TokenRequest{}
	res, err := accounts.CreateToken(ctx, t.account, request, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: t.account}}
		if _, err = accounts.Create(ctx, account, metav1.CreateOptions{}); err == nil || apierrors.IsAlreadyExists(err) {
			res, err = accounts.CreateToken(ctx, t.account, request, metav1.CreateOptions{})
		}
	}
	if err != nil {
		return "", fmt.Errorf("a token of service account kube-system/%s: %w", t.account, err)
	}
	t.token = res.Status.Token
	t.renew = time.Now().Add(time.Until(res.Status.ExpirationTimestamp.Time) * 3 / 4)
	return t.token, nil
}

func (t *accountToken) forget(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token == token {
		t.token = ""
	}
}

// tokenTransport sends an account's token with each request.
type tokenTransport struct {
	token *accountToken
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.token.get(req.Context())
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := t.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		t.token.forget(token)
	}
	return resp, err
}
