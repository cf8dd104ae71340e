package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// CredentialIDKey is the extra key naming the credential a request was made
// with ("JTI=…" or "X509SHA256=…").
const CredentialIDKey = "authentication.kubernetes.io/credential-id"

// ServiceAccountPrefix starts the user name of every service account.
const ServiceAccountPrefix = "system:serviceaccount:"

// ServiceAccountUser is the user name of a service account.
func ServiceAccountUser(namespace, name string) string {
	return ServiceAccountPrefix + namespace + ":" + name
}

// IsServiceAccount reports whether username is that of namespace/name, without
// allocating.
func IsServiceAccount(username, namespace, name string) bool {
	rest, ok := strings.CutPrefix(username, ServiceAccountPrefix)
	if !ok {
		return false
	}
	ns, n, ok := strings.Cut(rest, ":")
	return ok && ns == namespace && n == name
}

// Authenticators tries each authenticator in turn; the first success wins. A
// failure does not end the search, but with no success all failures are
// returned.
func Authenticators(list ...Authenticator) Authenticator { return unionAuthenticator(list) }

type unionAuthenticator []Authenticator

func (u unionAuthenticator) Authenticate(req *http.Request) (Identity, bool, error) {
	var errs []error
	for _, a := range u {
		id, ok, err := a.Authenticate(req)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			return id, true, nil
		}
	}
	return Identity{}, false, utilerrors.NewAggregate(errs)
}

// Server is the server's chain: the given authenticators with
// system:authenticated added to who they find, and after them the anonymous
// user for the paths that anonymous says. A bad credential is never anonymous.
func Server(anonymous func(path string) bool, list ...Authenticator) Authenticator {
	return server{Authenticators(list...), anonymous}
}

// HealthPaths are for everybody, unless somebody says otherwise.
func HealthPaths(path string) bool {
	return path == "/healthz" || path == "/livez" || path == "/readyz"
}

type server struct {
	credentials Authenticator
	anonymous   func(path string) bool
}

func (s server) Authenticate(req *http.Request) (Identity, bool, error) {
	id, ok, err := s.credentials.Authenticate(req)
	if err != nil {
		return Identity{}, false, err
	}
	if ok {
		if id.User.Name != UserAnonymous && !slices.Contains(id.User.Groups, GroupAuthenticated) && !slices.Contains(id.User.Groups, GroupUnauthenticated) {
			id.User.Groups = append(slices.Clone(id.User.Groups), GroupAuthenticated)
		}
		return id, true, nil
	}
	if s.anonymous(req.URL.Path) {
		return Identity{User: User{Name: UserAnonymous, Groups: []string{GroupUnauthenticated}}}, true, nil
	}
	return Identity{}, false, nil
}

// ErrInvalidToken says that no authenticator knows a token.
var ErrInvalidToken = errors.New("invalid bearer token")

// Tokens tries token authenticators in turn, as Authenticators does.
func Tokens(list ...TokenAuthenticator) TokenAuthenticator { return unionToken(list) }

type unionToken []TokenAuthenticator

func (u unionToken) AuthenticateToken(ctx context.Context, token string, audiences []string) (Identity, bool, error) {
	var errs []error
	for _, a := range u {
		id, ok, err := a.AuthenticateToken(ctx, token, audiences)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			return id, true, nil
		}
	}
	return Identity{}, false, utilerrors.NewAggregate(errs)
}

// ForAudiences makes an authenticator whose tokens know of no audiences one
// whose tokens are for own, the API server's.
func ForAudiences(own []string, of TokenAuthenticator) TokenAuthenticator { return agnostic{own, of} }

type agnostic struct {
	own []string
	of  TokenAuthenticator
}

func (a agnostic) AuthenticateToken(ctx context.Context, token string, audiences []string) (Identity, bool, error) {
	both := a.own
	if len(audiences) > 0 {
		both = slices.DeleteFunc(slices.Clone(both), func(own string) bool { return !slices.Contains(audiences, own) })
		if len(both) == 0 {
			return Identity{}, false, nil
		}
	}
	id, ok, err := a.of.AuthenticateToken(ctx, token, nil)
	id.Audiences = both
	return id, ok, err
}

// Bearer takes the token from the Authorization header, or from a websocket's
// base64url.bearer.authorization.k8s.io subprotocol, and on success removes it
// from the request so that nothing later can leak it.
func Bearer(tokens TokenAuthenticator) Authenticator { return bearer{tokens} }

type bearer struct{ tokens TokenAuthenticator }

func (b bearer) Authenticate(req *http.Request) (Identity, bool, error) {
	if scheme, token, ok := strings.Cut(strings.TrimSpace(req.Header.Get("Authorization")), " "); ok && strings.EqualFold(scheme, "bearer") {
		if token = strings.TrimSpace(token); token == "" || strings.Contains(token, " ") {
			return Identity{}, false, nil
		}
		id, err := b.check(req.Context(), token)
		if err != nil {
			return Identity{}, false, err
		}
		req.Header.Del("Authorization")
		return id, true, nil
	}
	token, rest, err := websocketToken(req)
	if token == "" || err != nil {
		return Identity{}, false, err
	}
	id, err := b.check(req.Context(), token)
	if err != nil {
		return Identity{}, false, err
	}
	req.Header.Set("Sec-Websocket-Protocol", strings.Join(rest, ","))
	return id, true, nil
}

func (b bearer) check(ctx context.Context, token string) (Identity, error) {
	id, ok, err := b.tokens.AuthenticateToken(ctx, token, nil)
	if err == nil && !ok {
		err = ErrInvalidToken
	}
	return id, err
}

// websocketToken returns the token among the subprotocols, and the other
// subprotocols; browsers cannot set the Authorization header.
func websocketToken(req *http.Request) (token string, rest []string, err error) {
	if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		return "", nil, nil
	}
	for _, header := range req.Header["Sec-Websocket-Protocol"] {
		for protocol := range strings.SplitSeq(header, ",") {
			protocol = strings.TrimSpace(protocol)
			encoded, ok := strings.CutPrefix(protocol, "base64url.bearer.authorization.k8s.io.")
			if !ok {
				rest = append(rest, protocol)
				continue
			}
			if token != "" {
				return "", nil, errors.New("multiple base64.bearer.authorization tokens specified")
			}
			raw, err := base64.RawURLEncoding.DecodeString(encoded)
			if err != nil {
				return "", nil, errors.New("invalid base64.bearer.authorization token encoding")
			}
			if !utf8.Valid(raw) {
				return "", nil, errors.New("invalid base64.bearer.authorization token")
			}
			token = string(raw)
		}
	}
	if token != "" && len(rest) == 0 {
		return "", nil, errors.New("missing additional subprotocol")
	}
	return token, rest, nil
}

// Authorizers asks each authorizer in turn; the first that allows or denies
// decides. With none the answer is NoOpinion, with all reasons and errors.
func Authorizers(list ...Authorizer) Authorizer { return unionAuthorizer(list) }

type unionAuthorizer []Authorizer

func (u unionAuthorizer) Authorize(ctx context.Context, a Attributes) (Decision, string, error) {
	var (
		errs    []error
		reasons []string
	)
	for _, z := range u {
		d, reason, err := z.Authorize(ctx, a)
		if err != nil {
			errs = append(errs, err)
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
		if d == Allow || d == Deny {
			return d, reason, err
		}
	}
	return NoOpinion, strings.Join(reasons, "\n"), utilerrors.NewAggregate(errs)
}

// Masters allows members of system:masters everything, before any policy is
// read: a broken policy must not lock its repairer out.
func Masters() Authorizer { return masters{} }

type masters struct{}

func (masters) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	if slices.Contains(a.User.Groups, GroupMasters) {
		return Allow, "", nil
	}
	return NoOpinion, "", nil
}

// ForbiddenMessage is the text of the 403 for a request that was not allowed.
// The API's Forbidden error follows it with ": reason" when there is one.
func ForbiddenMessage(a Attributes) string {
	if !a.ResourceRequest {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	scope := "at the cluster scope"
	if a.Namespace != "" {
		scope = fmt.Sprintf("in the namespace %q", a.Namespace)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", a.User.Name, a.Verb, resource, a.APIGroup, scope)
}
