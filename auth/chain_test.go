package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http/httptest"
	"reflect"
	"testing"
)

type staticTokens map[string]string // token → user; "bad" errs

func (s staticTokens) AuthenticateToken(_ context.Context, token string, _ []string) (Identity, bool, error) {
	if token == "bad" {
		return Identity{}, false, errors.New("bad token")
	}
	u, ok := s[token]
	return Identity{User: User{Name: u, Groups: []string{"g"}}}, ok, nil
}

func TestServerChain(t *testing.T) {
	chain := Server(HealthPaths, Bearer(Tokens(staticTokens{"one": "first"}, staticTokens{"one": "second", "two": "second"})))
	for _, c := range []struct {
		name, path, header string
		user               string
		groups             []string
		err                string
	}{
		{"the first that knows wins", "/api", "Bearer one", "first", []string{"g", GroupAuthenticated}, ""},
		{"the scheme has no case", "/api", "bearer two", "second", []string{"g", GroupAuthenticated}, ""},
		{"unknown token", "/api", "Bearer three", "", nil, "invalid bearer token"},
		{"bad token", "/api", "Bearer bad", "", nil, "bad token"},
		{"a bad credential is not anonymous", "/healthz", "Bearer three", "", nil, "invalid bearer token"},
		{"anonymous health", "/healthz", "", UserAnonymous, []string{GroupUnauthenticated}, ""},
		{"anonymous readiness", "/readyz", "", UserAnonymous, []string{GroupUnauthenticated}, ""},
		{"but nothing below it", "/readyz/etcd", "", "", nil, ""},
		{"nor anything else", "/api", "", "", nil, ""},
		{"another scheme", "/api", "Basic b25l", "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest("GET", c.path, nil)
			if c.header != "" {
				req.Header.Set("Authorization", c.header)
			}
			id, ok, err := chain.Authenticate(req)
			if text(err) != c.err || ok != (c.user != "") || id.User.Name != c.user || !reflect.DeepEqual(id.User.Groups, c.groups) {
				t.Fatalf("got %+v %v %v", id, ok, err)
			}
			if ok && req.Header.Get("Authorization") != "" {
				t.Error("the token is still in the request")
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestWebsocketToken(t *testing.T) {
	proto := func(tok string) string {
		return "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(tok))
	}
	for _, c := range []struct{ name, protocols, user, err string }{
		{"token and protocol", proto("one") + ", v5.channel.k8s.io", "first", ""},
		{"token alone", proto("one"), "", "missing additional subprotocol"},
		{"two tokens", proto("one") + "," + proto("one") + ",x", "", "multiple base64.bearer.authorization tokens specified"},
		{"not base64", "base64url.bearer.authorization.k8s.io.?,x", "", "invalid base64.bearer.authorization token encoding"},
		{"not text", proto("\xff") + ",x", "", "invalid base64.bearer.authorization token"},
		{"no token", "v5.channel.k8s.io", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest("GET", "/", nil)
			req.Header.Set("Upgrade", "websocket")
			req.Header.Set("Sec-WebSocket-Protocol", c.protocols)
			id, ok, err := Bearer(staticTokens{"one": "first"}).Authenticate(req)
			if id.User.Name != c.user || ok != (c.user != "") || text(err) != c.err {
				t.Fatalf("got %+v %v %v", id, ok, err)
			}
			if ok && req.Header.Get("Sec-WebSocket-Protocol") != "v5.channel.k8s.io" {
				t.Errorf("subprotocols left: %q", req.Header.Get("Sec-WebSocket-Protocol"))
			}
		})
	}
}

type verdict struct {
	d      Decision
	reason string
	err    error
}

func (v verdict) Authorize(context.Context, Attributes) (Decision, string, error) {
	return v.d, v.reason, v.err
}

func TestAuthorizers(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name   string
		chain  []Authorizer
		d      Decision
		reason string
		err    string
	}{
		{"none", nil, NoOpinion, "", ""},
		{"all shrug", []Authorizer{verdict{reason: "a"}, verdict{}, verdict{reason: "b", err: boom}}, NoOpinion, "a\nb", "boom"},
		{"the first to speak", []Authorizer{verdict{reason: "a"}, verdict{d: Deny, reason: "no"}, verdict{d: Allow}}, Deny, "no", ""},
		{"allow", []Authorizer{verdict{err: boom}, verdict{d: Allow, reason: "yes"}}, Allow, "yes", ""},
		{"masters", []Authorizer{Masters(), verdict{d: Deny}}, Allow, "", ""},
	} {
		d, reason, err := Authorizers(c.chain...).Authorize(context.Background(), Attributes{User: User{Groups: []string{GroupMasters}}})
		if d != c.d || reason != c.reason || text(err) != c.err {
			t.Errorf("%s: got %v %q %v", c.name, d, reason, err)
		}
	}
}

func TestForbiddenMessage(t *testing.T) {
	u := User{Name: "eve"}
	for want, a := range map[string]Attributes{
		`User "eve" cannot get path "/metrics"`:                                             {User: u, Verb: "get", Path: "/metrics"},
		`User "eve" cannot list resource "pods" in API group "" in the namespace "a"`:       {User: u, Verb: "list", ResourceRequest: true, Resource: "pods", Namespace: "a"},
		`User "eve" cannot get resource "nodes/proxy" in API group "" at the cluster scope`: {User: u, Verb: "get", ResourceRequest: true, Resource: "nodes", Subresource: "proxy"},
		`User "eve" cannot get resource "roles" in API group "rbac" at the cluster scope`:   {User: u, Verb: "get", ResourceRequest: true, APIGroup: "rbac", Resource: "roles"},
	} {
		if got := ForbiddenMessage(a); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}

func TestIsServiceAccount(t *testing.T) {
	for _, c := range []struct {
		user, ns, name string
		want           bool
	}{
		{"system:serviceaccount:a:b", "a", "b", true}, {"system:serviceaccount:a:bc", "a", "b", false},
		{"system:serviceaccount:aa:b", "a", "b", false}, {"system:serviceaccount:a", "a", "", false}, {"a:b", "a", "b", false},
	} {
		if IsServiceAccount(c.user, c.ns, c.name) != c.want {
			t.Errorf("%+v", c)
		}
	}
}
