package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/tokencache"
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
	users  auth.Authenticator
	access *cache.LRUExpireCache // of verdicts
}

type verdict struct {
	allowed bool
	reason  string
}

func newAuthority(c kubernetes.Interface, clk clock.PassiveClock) *authority {
	return &authority{
		client: c, access: cache.NewLRUExpireCacheWithClock(cacheSize, clk),
		users: auth.Bearer(tokencache.New(tokens{c}, tokenTTL, tokenTTL, clk, nil)),
	}
}

// authenticate tells who asks; false without an error means nobody that is known.
func (a *authority) authenticate(r *http.Request) (auth.User, bool, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		subject := r.TLS.VerifiedChains[0][0].Subject
		if subject.CommonName != "" {
			return auth.User{Name: subject.CommonName, Groups: append(subject.Organization, auth.GroupAuthenticated)}, true, nil
		}
	}
	id, ok, err := a.users.Authenticate(r)
	return id.User, ok, err
}

// tokens implements auth.TokenAuthenticator: the API server knows.
type tokens struct{ client kubernetes.Interface }

// AuthenticateToken implements auth.TokenAuthenticator.
func (t tokens) AuthenticateToken(ctx context.Context, token string, _ []string) (auth.Identity, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	res, err := t.client.AuthenticationV1().TokenReviews().Create(ctx,
		&authnv1.TokenReview{Spec: authnv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return auth.Identity{}, false, fmt.Errorf("token review: %w", err)
	}
	return auth.Identity{User: auth.UserOf(res.Status.User)}, res.Status.Authenticated, nil
}

// authorize says whether the user may do any of the things asked for.
func (a *authority) authorize(ctx context.Context, u auth.User, asked []authzv1.ResourceAttributes) (bool, string, error) {
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

func (a *authority) ask(ctx context.Context, u auth.User, attr *authzv1.ResourceAttributes) (verdict, error) {
	key := fmt.Sprintf("%q %q %q %v %s/%s", u.Name, u.UID, u.Groups, u.Extra, attr.Verb, attr.Subresource)
	if v, ok := a.access.Get(key); ok {
		return v.(verdict), nil
	}
	extra := map[string]authzv1.ExtraValue{}
	for k, v := range u.Extra {
		extra[k] = v
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	res, err := a.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authzv1.SubjectAccessReview{
		Spec: authzv1.SubjectAccessReviewSpec{User: u.Name, UID: u.UID, Groups: u.Groups, Extra: extra, ResourceAttributes: attr},
	}, metav1.CreateOptions{})
	if err != nil {
		return verdict{}, fmt.Errorf("subject access review: %w", err)
	}
	v := verdict{res.Status.Allowed, res.Status.Reason}
	ttl := denyTTL
	if v.allowed {
		ttl = allowTTL
	}
	a.access.Add(key, v, ttl)
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
