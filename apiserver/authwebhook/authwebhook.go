// Package authwebhook asks another server who a token belongs to and what a
// user may do: TokenReviews and SubjectAccessReviews sent to the server of a
// kubeconfig file, with upstream's versions, caches and retries.
package authwebhook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	authorizationv1beta1 "k8s.io/api/authorization/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/config"
	"github.com/skiff-project/skiff/auth/tokencache"
)

// Upstream's bounds.
const (
	tries         = 5
	firstWait     = 500 * time.Millisecond
	timeout       = 30 * time.Second
	maxAnswer     = 3 << 20
	maxCached     = 8192
	maxClientsOwn = 10_000
)

// server is the one that is asked.
type server struct {
	url    string
	client *http.Client
	wait   time.Duration // before the second try
}

func newServer(kubeconfig string, timeout time.Duration) (*server, error) {
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

// ask sends a review and reads the answer. What may pass is tried again; tried is told of each try.
func (s *server) ask(ctx context.Context, review, answer any, tried func(time.Duration, error)) error {
	body, err := json.Marshal(review)
	if err != nil {
		return err
	}
	for wait, try := s.wait, 1; ; wait, try = wait*3/2, try+1 {
		begun := time.Now()
		again, err := s.post(ctx, body, answer)
		tried(time.Since(begun), err)
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

var errGatewayTimeout = errors.New("the webhook answered 504 Gateway Timeout")

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
	if resp.StatusCode == http.StatusGatewayTimeout {
		return true, errGatewayTimeout
	}
	if resp.StatusCode >= 300 {
		return resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the webhook answered %s", resp.Status)
	}
	return false, json.Unmarshal(data, answer)
}

// TokenConfig makes a token authenticator.
type TokenConfig struct {
	Kubeconfig string
	Version    string        // of TokenReview: v1 or v1beta1
	CacheTTL   time.Duration // of answers, good or bad
	Audiences  []string      // of this server; a webhook that names none means them
	Cached     *tokencache.Metrics
}

// NewTokens reads the kubeconfig file and returns what asks its server about tokens and remembers the answers.
func NewTokens(c TokenConfig) (auth.TokenAuthenticator, error) {
	s, err := newServer(c.Kubeconfig, timeout)
	return tokencache.New(&tokens{c, s}, c.CacheTTL, c.CacheTTL, clock.RealClock{}, c.Cached), err
}

// tokens implements auth.TokenAuthenticator.
type tokens struct {
	conf   TokenConfig
	server *server
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (t *tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	want := audiences
	if want == nil {
		want = t.conf.Audiences
	}
	review := authenticationv1.TokenReview{
		TypeMeta: metav1.TypeMeta{Kind: "TokenReview", APIVersion: authenticationv1.GroupName + "/" + t.conf.Version},
		Spec:     authenticationv1.TokenReviewSpec{Token: token, Audiences: want},
	}
	var answer authenticationv1.TokenReview // of either version: they are alike
	if err := t.server.ask(ctx, &review, &answer, func(time.Duration, error) {}); err != nil {
		return auth.Identity{}, false, err
	}
	if !answer.Status.Authenticated && answer.Status.Error != "" {
		return auth.Identity{}, false, errors.New(answer.Status.Error)
	}
	if !answer.Status.Authenticated {
		return auth.Identity{}, false, nil
	}
	id, ok := t.identity(answer.Status, want)
	return id, ok, nil
}

func (t *tokens) identity(s authenticationv1.TokenReviewStatus, want []string) (auth.Identity, bool) {
	id := auth.Identity{User: auth.UserOf(s.User)}
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
	Name                   string // in metrics
	Kubeconfig             string
	Version                string // of SubjectAccessReview: v1 or v1beta1
	AllowedTTL, RefusedTTL time.Duration
	Timeout                time.Duration      // of one try; default 30 s
	Failed                 auth.Decision      // when the server does not answer; default NoOpinion
	Conditions             *config.Conditions // of requests it is asked about; default all
	Metrics                *Metrics           // default: nothing is counted
}

// Access implements auth.Authorizer.
type Access struct {
	conf   AccessConfig
	server *server
	known  *cache.LRUExpireCache // of SubjectAccessReviewStatus
}

// NewAccess reads the kubeconfig file.
func NewAccess(c AccessConfig) (*Access, error) {
	s, err := newServer(c.Kubeconfig, cmp.Or(c.Timeout, timeout))
	return &Access{conf: c, server: s, known: cache.NewLRUExpireCache(maxCached)}, err
}

// Authorize implements auth.Authorizer.
func (w *Access) Authorize(ctx context.Context, a auth.Attributes) (auth.Decision, string, error) {
	spec := specOf(a)
	if w.conf.Conditions != nil {
		begun := time.Now()
		match, err := w.conf.Conditions.Match(ctx, &spec)
		w.conf.Metrics.matched(w.conf.Name, match, err, time.Since(begun))
		if err != nil {
			return w.conf.Failed, "", err
		}
		if !match {
			return auth.NoOpinion, "", nil
		}
	}
	key, err := json.Marshal(spec)
	if err != nil {
		return w.conf.Failed, "", err
	}
	if have, ok := w.known.Get(string(key)); ok {
		return decide(have.(authorizationv1.SubjectAccessReviewStatus))
	}
	meta := metav1.TypeMeta{Kind: "SubjectAccessReview", APIVersion: authorizationv1.GroupName + "/" + w.conf.Version}
	var review any = &authorizationv1.SubjectAccessReview{TypeMeta: meta, Spec: spec}
	if w.conf.Version == "v1beta1" { // it calls groups otherwise
		old := &authorizationv1beta1.SubjectAccessReview{TypeMeta: meta}
		if err := json.Unmarshal(key, &old.Spec); err != nil {
			return w.conf.Failed, "", err
		}
		old.Spec.Groups = spec.Groups
		review = old
	}
	var answer authorizationv1.SubjectAccessReview
	var result string
	err = w.server.ask(ctx, review, &answer, func(took time.Duration, err error) {
		result = resultOf(ctx, err)
		w.conf.Metrics.asked(w.conf.Name, result, took)
	})
	if err != nil {
		if w.conf.Failed == auth.NoOpinion && ctx.Err() == nil {
			w.conf.Metrics.failedOpen(w.conf.Name, result)
		}
		return w.conf.Failed, "", err
	}
	life := w.conf.RefusedTTL
	if answer.Status.Allowed {
		life = w.conf.AllowedTTL
	}
	if life > 0 && clientsOwn(&a) < maxClientsOwn {
		w.known.Add(string(key), answer.Status, life)
	}
	return decide(answer.Status)
}

// clientsOwn is how much of a question the client makes up, in bytes. Long ones are asked each time.
func clientsOwn(a *auth.Attributes) int {
	return len(a.Namespace) + len(a.Verb) + len(a.APIGroup) + len(a.APIVersion) + len(a.Resource) + len(a.Subresource) + len(a.Name) + len(a.Path)
}

func decide(s authorizationv1.SubjectAccessReviewStatus) (auth.Decision, string, error) {
	switch {
	case s.Denied && s.Allowed:
		return auth.Deny, s.Reason, errors.New("webhook subject access review returned both allow and deny response")
	case s.Denied:
		return auth.Deny, s.Reason, nil
	case s.Allowed:
		return auth.Allow, s.Reason, nil
	}
	return auth.NoOpinion, s.Reason, nil
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
	if list := labelRequirements(a.LabelSelector); len(list) > 0 {
		r.LabelSelector = &authorizationv1.LabelSelectorAttributes{Requirements: list}
	}
	spec.ResourceAttributes = r
	return spec
}

// labelRequirements leaves out what a review cannot say (numbers compared): that only asks for more.
func labelRequirements(selector string) (list []metav1.LabelSelectorRequirement) {
	all, err := labels.ParseToRequirements(selector)
	if err != nil { // the request will be refused
		return nil
	}
	operators := map[selection.Operator]metav1.LabelSelectorOperator{
		selection.Equals: metav1.LabelSelectorOpIn, selection.DoubleEquals: metav1.LabelSelectorOpIn, selection.In: metav1.LabelSelectorOpIn,
		selection.NotEquals: metav1.LabelSelectorOpNotIn, selection.NotIn: metav1.LabelSelectorOpNotIn,
		selection.Exists: metav1.LabelSelectorOpExists, selection.DoesNotExist: metav1.LabelSelectorOpDoesNotExist,
	}
	for _, r := range all {
		if op := operators[r.Operator()]; op != "" {
			list = append(list, metav1.LabelSelectorRequirement{Key: r.Key(), Operator: op, Values: sets.List(sets.New(r.ValuesUnsorted()...))})
		}
	}
	return list
}
