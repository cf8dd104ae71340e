// Package authwebhook asks another server who a token belongs to and what a
// user may do: TokenReviews and SubjectAccessReviews sent to the server of a
// kubeconfig file, with upstream's versions, caches and retries.
package authwebhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	authorizationv1beta1 "k8s.io/api/authorization/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

// Upstream's bounds.
const (
	tries        = 5
	firstWait    = 500 * time.Millisecond
	timeout      = 10 * time.Second
	maxAnswer    = 3 << 20
	maxCached    = 4096
	maxCachedKey = 10_000 // longer questions are asked each time
)

// server is the one that is asked.
type server struct {
	url    string
	client *http.Client
	wait   time.Duration // before the second try
}

func newServer(kubeconfig string) (*server, error) {
	conf, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	conf.Timeout = timeout
	client, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, err
	}
	s := &server{url: conf.Host, client: client, wait: firstWait}
	if !strings.Contains(s.url, "://") {
		s.url = "https://" + s.url
	}
	return s, nil
}

// ask sends a review and reads the answer. What may pass is tried again.
func (s *server) ask(ctx context.Context, review, answer any) error {
	body, err := json.Marshal(review)
	if err != nil {
		return err
	}
	for wait, try := s.wait, 1; ; wait, try = wait*3/2, try+1 {
		again, err := s.post(ctx, body, answer)
		if err == nil || !again || try == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func (s *server) post(ctx context.Context, body []byte, answer any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return ctx.Err() == nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return ctx.Err() == nil, err
	}
	if resp.StatusCode >= 300 {
		return resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the webhook answered %s", resp.Status)
	}
	return false, json.Unmarshal(data, answer)
}

// cache remembers answers for a while. It is emptied when it is full.
type cache[T any] struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	known map[string]cached[T]
}

type cached[T any] struct {
	answer T
	until  time.Time
}

func (c *cache[T]) get(key string) (answer T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.known[key]
	if !ok || !c.clock.Now().Before(have.until) {
		return answer, false
	}
	return have.answer, true
}

func (c *cache[T]) put(key string, answer T, life time.Duration) {
	if life <= 0 || len(key) > maxCachedKey {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxCached {
		c.known = map[string]cached[T]{}
	}
	c.known[key] = cached[T]{answer, c.clock.Now().Add(life)}
}

// TokenConfig makes a token authenticator.
type TokenConfig struct {
	Kubeconfig string
	Version    string        // of TokenReview: v1 or v1beta1
	CacheTTL   time.Duration // of answers, good or bad
	Audiences  []string      // of this server; a webhook that names none means them
}

// Tokens implements auth.TokenAuthenticator.
type Tokens struct {
	conf   TokenConfig
	server *server
	cache  cache[tokenAnswer]
}

type tokenAnswer struct {
	id auth.Identity
	ok bool
}

// NewTokens reads the kubeconfig file.
func NewTokens(c TokenConfig) (*Tokens, error) {
	s, err := newServer(c.Kubeconfig)
	return &Tokens{conf: c, server: s, cache: cache[tokenAnswer]{clock: clock.RealClock{}}}, err
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (t *Tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	want := audiences
	if want == nil {
		want = t.conf.Audiences
	}
	key := token + "\x00" + strings.Join(want, "\x00")
	if have, ok := t.cache.get(key); ok {
		return have.id, have.ok, nil
	}
	review := authenticationv1.TokenReview{
		TypeMeta: metav1.TypeMeta{Kind: "TokenReview", APIVersion: authenticationv1.GroupName + "/" + t.conf.Version},
		Spec:     authenticationv1.TokenReviewSpec{Token: token, Audiences: want},
	}
	var answer authenticationv1.TokenReview // of either version: they are alike
	if err := t.server.ask(ctx, &review, &answer); err != nil {
		return auth.Identity{}, false, err
	}
	if !answer.Status.Authenticated && answer.Status.Error != "" {
		return auth.Identity{}, false, errors.New(answer.Status.Error)
	}
	got := tokenAnswer{ok: answer.Status.Authenticated}
	if got.ok {
		got.id, got.ok = t.identity(answer.Status, want)
	}
	t.cache.put(key, got, t.conf.CacheTTL)
	return got.id, got.ok, nil
}

func (t *Tokens) identity(s authenticationv1.TokenReviewStatus, want []string) (auth.Identity, bool) {
	id := auth.Identity{User: auth.User{Name: s.User.Username, UID: s.User.UID, Groups: s.User.Groups}}
	for k, v := range s.User.Extra {
		if id.User.Extra == nil {
			id.User.Extra = map[string][]string{}
		}
		id.User.Extra[k] = v
	}
	if len(want) == 0 {
		return id, true
	}
	good := s.Audiences
	if len(good) == 0 { // the webhook knows of no audiences
		good = t.conf.Audiences
	}
	for _, a := range want {
		if slices.Contains(good, a) {
			id.Audiences = append(id.Audiences, a)
		}
	}
	return id, len(id.Audiences) > 0
}

// AccessConfig makes an authorizer.
type AccessConfig struct {
	Kubeconfig             string
	Version                string // of SubjectAccessReview: v1 or v1beta1
	AllowedTTL, RefusedTTL time.Duration
}

// Access implements auth.Authorizer.
type Access struct {
	conf   AccessConfig
	server *server
	cache  cache[accessAnswer]
}

type accessAnswer struct {
	decision auth.Decision
	reason   string
}

// NewAccess reads the kubeconfig file.
func NewAccess(c AccessConfig) (*Access, error) {
	s, err := newServer(c.Kubeconfig)
	return &Access{conf: c, server: s, cache: cache[accessAnswer]{clock: clock.RealClock{}}}, err
}

// Authorize implements auth.Authorizer. A webhook that does not answer has no opinion.
func (w *Access) Authorize(ctx context.Context, a auth.Attributes) (auth.Decision, string, error) {
	spec := specOf(a)
	key, err := json.Marshal(spec)
	if err != nil {
		return auth.NoOpinion, "", err
	}
	if have, ok := w.cache.get(string(key)); ok {
		return have.decision, have.reason, nil
	}
	meta := metav1.TypeMeta{Kind: "SubjectAccessReview", APIVersion: authorizationv1.GroupName + "/" + w.conf.Version}
	var review any = &authorizationv1.SubjectAccessReview{TypeMeta: meta, Spec: spec}
	if w.conf.Version == "v1beta1" { // it calls groups otherwise
		old := &authorizationv1beta1.SubjectAccessReview{TypeMeta: meta}
		if err := json.Unmarshal(key, &old.Spec); err != nil {
			return auth.NoOpinion, "", err
		}
		old.Spec.Groups = spec.Groups
		review = old
	}
	var answer authorizationv1.SubjectAccessReview
	if err := w.server.ask(ctx, review, &answer); err != nil {
		return auth.NoOpinion, "", err
	}
	got, life := accessAnswer{auth.NoOpinion, answer.Status.Reason}, w.conf.RefusedTTL
	switch s := answer.Status; {
	case s.Denied && s.Allowed:
		return auth.Deny, s.Reason, errors.New("webhook subject access review returned both allow and deny response")
	case s.Denied:
		got.decision = auth.Deny
	case s.Allowed:
		got.decision, life = auth.Allow, w.conf.AllowedTTL
	}
	w.cache.put(string(key), got, life)
	return got.decision, got.reason, nil
}

func specOf(a auth.Attributes) authorizationv1.SubjectAccessReviewSpec {
	spec := authorizationv1.SubjectAccessReviewSpec{User: a.User.Name, UID: a.User.UID, Groups: a.User.Groups}
	for k, v := range a.User.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		spec.Extra[k] = v
	}
	if !a.ResourceRequest {
		spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		return spec
	}
	r := &authorizationv1.ResourceAttributes{Namespace: a.Namespace, Verb: a.Verb, Group: a.APIGroup, Version: a.APIVersion,
		Resource: a.Resource, Subresource: a.Subresource, Name: a.Name}
	for _, f := range a.FieldSelector {
		op := metav1.FieldSelectorOpIn
		if f.Operator == selection.NotEquals {
			op = metav1.FieldSelectorOpNotIn
		}
		if r.FieldSelector == nil {
			r.FieldSelector = &authorizationv1.FieldSelectorAttributes{}
		}
		r.FieldSelector.Requirements = append(r.FieldSelector.Requirements, metav1.FieldSelectorRequirement{Key: f.Field, Operator: op, Values: []string{f.Value}})
	}
	spec.ResourceAttributes = r
	return spec
}
