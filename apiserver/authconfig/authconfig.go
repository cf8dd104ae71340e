// Package authconfig puts together who requests come from and who decides
// about them, as flags and the configuration files of authentication and
// authorization say, and follows those files while the server runs.
package authconfig

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/apiserver/authwebhook"
	"github.com/skiff-project/skiff/apiserver/oidc"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
	"github.com/skiff-project/skiff/auth/rbac"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/auth/tokencache"
	"github.com/skiff-project/skiff/auth/tokenfile"
)

// Options are what flags say.
type Options struct {
	// AuthenticationFile is an AuthenticationConfiguration. Default: none, and
	// JWT, with tokens signed by one of Algorithms, are the issuers of tokens.
	AuthenticationFile string
	JWT                []config.JWT
	Algorithms         []string
	// Anonymous says whose requests without a credential are, unless the file
	// does; with Flag it may not. Default: the health endpoints are for everybody.
	Anonymous     *config.Anonymous
	AnonymousFlag bool
	// Tokens is who is asked about tokens nobody else knows, for the server's own audiences. Default: nobody.
	Tokens *authwebhook.TokenConfig
	// TokenFile has users and their tokens, see tokenfile.Read. Default: none.
	TokenFile string
	// NoBootstrapTokens: tokens of Secrets in kube-system, by which nodes join, are nobody's.
	NoBootstrapTokens bool
	// AuthorizationFile is an AuthorizationConfiguration. Default: none, and
	// Authorizers decide in their order; default Node and RBAC.
	AuthorizationFile string
	Authorizers       []config.Authorizer
	Log               *slog.Logger     // default: discard
	Clock             clock.WithTicker // default the real one
}

// Own are the server's own authenticators and authorizers.
type Own struct {
	Accounts  *serviceaccount.Tokens
	Bootstrap auth.TokenAuthenticator
	Node      auth.Authorizer
	RBAC      *rbac.Authorizer
}

// Auth implements auth.TokenAuthenticator and auth.Authorizer, answers
// SelfSubjectRulesReviews, and has the metrics of all of it.
type Auth struct {
	opts      Options
	own       Own
	tokens    auth.TokenAuthenticator // all of them
	issuers   issuers
	access    access
	anonymous config.Anonymous
	metrics   []prometheus.Collector
}

// New reads the files.
func New(o Options, own Own) (*Auth, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	a := &Auth{opts: o, own: own}
	id := oidc.Hash([]byte(identity()))
	jwt, hooks, cached := oidc.NewMetrics(id), authwebhook.NewMetrics(), tokencache.NewMetrics()
	a.issuers = issuers{opts: &a.opts, own: own.Accounts.Issuer(), metrics: jwt, reloads: newReloads("authentication", id), cached: cached}
	a.access = access{own: own, hooks: hooks, decisions: newDecisions(), reloads: newReloads("authorization", id), log: o.Log}
	a.metrics = slices.Concat(jwt.Collectors(), hooks.Collectors(), cached.Collectors(), a.issuers.reloads.collectors(), a.access.reloads.collectors(),
		[]prometheus.Collector{a.access.decisions})
	var err error
	if a.anonymous, err = a.issuers.open(); err != nil {
		return nil, err
	}
	if err := a.access.open(o.AuthorizationFile, o.Authorizers); err != nil {
		return nil, err
	}
	// The server's own come first: an issuer may have to be asked for new keys.
	audiences, list := own.Accounts.Audiences(), []auth.TokenAuthenticator{}
	if o.TokenFile != "" {
		file, err := readTokens(o.TokenFile)
		if err != nil {
			return nil, err
		}
		list = append(list, auth.ForAudiences(audiences, file))
	}
	list = append(list, own.Accounts)
	if !o.NoBootstrapTokens {
		list = append(list, auth.ForAudiences(audiences, own.Bootstrap))
	}
	list = append(list, auth.ForAudiences(audiences, &a.issuers))
	if o.Tokens != nil {
		conf := *o.Tokens
		conf.Audiences, conf.Cached = audiences, cached
		hook, err := authwebhook.NewTokens(conf)
		if err != nil {
			return nil, fmt.Errorf("token webhook: %w", err)
		}
		list = append(list, hook)
	}
	a.tokens = auth.Tokens(list...)
	return a, nil
}

func readTokens(path string) (tokenfile.Tokens, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--token-auth-file: %w", err)
	}
	defer file.Close()
	tokens, err := tokenfile.Read(file)
	if err != nil {
		return nil, fmt.Errorf("--token-auth-file %s: %w", path, err)
	}
	return tokens, nil
}

// Run reaches for the issuers of tokens and follows the files, until ctx ends.
func (a *Auth) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	a.issuers.run(ctx, &all)
	if file := a.opts.AuthorizationFile; file != "" {
		all.Go(func() { a.access.follow(ctx, file) })
	}
}

// Server is the server's chain of authenticators: the given ones, then bearer
// tokens, then what is anonymous.
func (a *Auth) Server(list ...auth.Authenticator) auth.Authenticator {
	return auth.Server(a.isAnonymous, append(list, auth.Bearer(a))...)
}

func (a *Auth) isAnonymous(path string) bool {
	return a.anonymous.Enabled && (len(a.anonymous.Conditions) == 0 || slices.Contains(a.anonymous.Conditions, config.AnonymousCondition{Path: path}))
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (a *Auth) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	return a.tokens.AuthenticateToken(ctx, token, audiences)
}

// Describe implements prometheus.Collector.
func (a *Auth) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range a.metrics {
		m.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (a *Auth) Collect(ch chan<- prometheus.Metric) {
	for _, m := range a.metrics {
		m.Collect(ch)
	}
}
