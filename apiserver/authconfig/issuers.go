package authconfig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/apiserver/oidc"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
	"github.com/skiff-project/skiff/auth/tokencache"
)

const (
	// rememberUsers is how long it is known whose a good token is, as upstream.
	rememberUsers = 10 * time.Second
	// reachTime bounds how long new issuers may take to be reached.
	reachTime = time.Minute
)

// issuers implements auth.TokenAuthenticator by the configured issuers.
type issuers struct {
	opts    *Options
	own     string // the server's own issuer, which no other may be
	metrics *oidc.Metrics
	reloads *reloads
	cached  *tokencache.Metrics

	file    []byte // what was read of the file
	first   *config.Authentication
	current atomic.Pointer[issuerSet]
}

// issuerSet is what one version of the configuration makes.
type issuerSet struct {
	list   []*oidc.Issuer
	tokens auth.TokenAuthenticator
}

// open reads the file or takes what flags say, and returns which requests are anonymous.
func (s *issuers) open() (config.Anonymous, error) {
	s.first = &config.Authentication{JWT: s.opts.JWT}
	algorithms := s.opts.Algorithms
	if file := s.opts.AuthenticationFile; file != "" {
		var err error
		if s.file, err = os.ReadFile(file); err == nil {
			s.first, err = config.ParseAuthentication(s.file)
		}
		if err != nil {
			return config.Anonymous{}, fmt.Errorf("failed to load authentication configuration from file %q: %w", file, err)
		}
		algorithms = oidc.Algorithms()
		s.reloads.use(s.file)
	}
	if s.first.Anonymous != nil && s.opts.AnonymousFlag {
		return config.Anonymous{}, field.Forbidden(field.NewPath("anonymous"),
			"--anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file")
	}
	set, err := s.build(s.first, algorithms)
	if err != nil {
		return config.Anonymous{}, fmt.Errorf("invalid authentication configuration: %w", err)
	}
	s.current.Store(set)
	switch {
	case s.first.Anonymous != nil:
		return *s.first.Anonymous, nil
	case s.opts.Anonymous != nil:
		return *s.opts.Anonymous, nil
	}
	return config.Anonymous{Enabled: true, Conditions: []config.AnonymousCondition{{Path: "/healthz"}, {Path: "/livez"}, {Path: "/readyz"}}}, nil
}

func (s *issuers) build(c *config.Authentication, algorithms []string) (*issuerSet, error) {
	compiled, err := c.Compile([]string{s.own})
	if err != nil {
		return nil, err
	}
	set := &issuerSet{}
	var tokens []auth.TokenAuthenticator
	for _, claims := range compiled {
		i, err := oidc.New(oidc.Config{Claims: claims, Algorithms: algorithms, Metrics: s.metrics, Log: s.opts.Log, Clock: s.opts.Clock})
		if err != nil {
			return nil, err
		}
		set.list, tokens = append(set.list, i), append(tokens, i)
	}
	set.tokens = tokencache.New(auth.Tokens(tokens...), rememberUsers, 0, s.opts.Clock, s.cached)
	return set, nil
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (s *issuers) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	set := s.current.Load()
	if len(set.list) == 0 {
		return auth.Identity{}, false, nil
	}
	return set.tokens.AuthenticateToken(ctx, token, audiences)
}

// reach reaches for the issuers of a set until ctx or stop ends it.
func (set *issuerSet) reach(ctx context.Context, all *sync.WaitGroup) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	for _, i := range set.list {
		all.Go(func() { i.Run(ctx) })
	}
	return stop
}

// run reaches for the issuers and follows the file, until ctx ends.
func (s *issuers) run(ctx context.Context, all *sync.WaitGroup) {
	stop := s.current.Load().reach(ctx, all)
	if s.opts.AuthenticationFile == "" {
		return
	}
	all.Go(func() {
		follow(ctx, s.opts.AuthenticationFile, s.file, s.reloads, s.opts.Log, func(data []byte) (again bool, err error) {
			set, err := s.changed(data)
			if err != nil {
				return false, err
			}
			next := set.reach(ctx, all)
			if err := set.wait(ctx); err != nil {
				next()
				return true, err
			}
			old := s.current.Swap(set)
			stop()
			stop = next
			for _, i := range old.list {
				if !slices.ContainsFunc(set.list, func(n *oidc.Issuer) bool { return n.URL() == i.URL() }) {
					s.metrics.Forget(i.URL())
				}
			}
			return false, nil
		})
	})
}

// changed makes a set of what the file holds now. Who is anonymous cannot change.
func (s *issuers) changed(data []byte) (*issuerSet, error) {
	c, err := config.ParseAuthentication(data)
	if err != nil {
		return nil, err
	}
	set, err := s.build(c, oidc.Algorithms())
	if !reflect.DeepEqual(c.Anonymous, s.first.Anonymous) {
		err = errors.Join(err, field.Forbidden(field.NewPath("anonymous"), "changed from initial configuration file"))
	}
	return set, err
}

// wait waits until all issuers are reached: until then the old set serves.
func (set *issuerSet) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	for _, i := range set.list {
		select {
		case <-i.Ready():
		case <-ctx.Done():
			return errors.Join(i.Health(), ctx.Err())
		}
	}
	return nil
}
