package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// How long the API server's verdicts are believed.
const (
	tokenTTL  = 2 * time.Minute
	allowTTL  = 5 * time.Minute
	denyTTL   = 30 * time.Second
	cacheSize = 4096
	askTime   = 10 * time.Second
)

// authority asks the API server who may do what, and remembers for a while.
type authority struct {
	client kubernetes.Interface
	users  *memo[*authnv1.UserInfo]
	access *memo[verdict]
}

type verdict struct {
	allowed bool
	reason  string
}

func newAuthority(c kubernetes.Interface, clk clock.PassiveClock) *authority {
	return &authority{client: c, users: newMemo[*authnv1.UserInfo](clk), access: newMemo[verdict](clk)}
}

// authenticate tells who asks; nil means nobody that is known.
func (a *authority) authenticate(r *http.Request) (*authnv1.UserInfo, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		subject := r.TLS.VerifiedChains[0][0].Subject
		if subject.CommonName != "" {
			return &authnv1.UserInfo{Username: subject.CommonName, Groups: append(subject.Organization, "system:authenticated")}, nil
		}
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return nil, nil
	}
	sum := sha256.Sum256([]byte(token))
	key := string(sum[:])
	if u, ok := a.users.get(key); ok {
		return u, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	res, err := a.client.AuthenticationV1().TokenReviews().Create(ctx,
		&authnv1.TokenReview{Spec: authnv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token review: %w", err)
	}
	var user *authnv1.UserInfo
	if res.Status.Authenticated {
		user = &res.Status.User
	}
	a.users.put(key, user, tokenTTL)
	return user, nil
}

// authorize says whether the user may do any of the things asked for.
func (a *authority) authorize(ctx context.Context, u *authnv1.UserInfo, asked []authzv1.ResourceAttributes) (bool, string, error) {
	var reason string
	for i := range asked {
		v, err := a.ask(ctx, u, &asked[i])
		if err != nil {
			return false, "", err
		}
		if v.allowed {
			return true, "", nil
		}
		reason = v.reason
	}
	return false, reason, nil
}

func (a *authority) ask(ctx context.Context, u *authnv1.UserInfo, attr *authzv1.ResourceAttributes) (verdict, error) {
	key := fmt.Sprintf("%q %q %q %v %s/%s", u.Username, u.UID, u.Groups, u.Extra, attr.Verb, attr.Subresource)
	if v, ok := a.access.get(key); ok {
		return v, nil
	}
	extra := map[string]authzv1.ExtraValue{}
	for k, v := range u.Extra {
		extra[k] = authzv1.ExtraValue(v)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	res, err := a.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authzv1.SubjectAccessReview{
		Spec: authzv1.SubjectAccessReviewSpec{User: u.Username, UID: u.UID, Groups: u.Groups, Extra: extra, ResourceAttributes: attr},
	}, metav1.CreateOptions{})
	if err != nil {
		return verdict{}, fmt.Errorf("subject access review: %w", err)
	}
	v := verdict{res.Status.Allowed, res.Status.Reason}
	ttl := denyTTL
	if v.allowed {
		ttl = allowTTL
	}
	a.access.put(key, v, ttl)
	return v, nil
}

func verb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return ""
}

// subresources are what of the node a path belongs to, finest first: any of them suffices.
func subresources(path string) []string {
	under := func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") }
	switch {
	case under("/stats"):
		return []string{"stats"}
	case under("/metrics"):
		return []string{"metrics"}
	case under("/logs"):
		return []string{"log"}
	case under("/checkpoint"):
		return []string{"checkpoint"}
	case under("/statusz"):
		return []string{"statusz"}
	case under("/flagz"):
		return []string{"configz"}
	case under("/pods"), under("/runningpods"):
		return []string{"pods", "proxy"}
	case under("/healthz"):
		return []string{"healthz", "proxy"}
	case under("/configz"):
		return []string{"configz", "proxy"}
	}
	return []string{"proxy"}
}

func attributes(r *http.Request, node string) []authzv1.ResourceAttributes {
	var out []authzv1.ResourceAttributes
	for _, sub := range subresources(r.URL.Path) {
		out = append(out, authzv1.ResourceAttributes{Verb: verb(r.Method), Version: "v1", Resource: "nodes", Subresource: sub, Name: node})
	}
	return out
}

// memo remembers answers for a time; it is bounded by forgetting everything when full.
type memo[T any] struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	m     map[string]memory[T]
}

type memory[T any] struct {
	value T
	until time.Time
}

func newMemo[T any](c clock.PassiveClock) *memo[T] {
	return &memo[T]{clock: c, m: map[string]memory[T]{}}
}

func (m *memo[T]) get(key string) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.m[key]
	if !ok || m.clock.Now().After(e.until) {
		var zero T
		return zero, false
	}
	return e.value, true
}

func (m *memo[T]) put(key string, v T, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.m) >= cacheSize {
		clear(m.m)
	}
	m.m[key] = memory[T]{v, m.clock.Now().Add(ttl)}
}
