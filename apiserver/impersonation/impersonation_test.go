package impersonation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/auth"
)

// rules allow what they name, and note what they are asked: "verb resource[/subresource] [name]".
type rules struct {
	allow []string
	asked []string
	err   error
}

func (r *rules) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	if a.Namespace != "" {
		resource = a.Namespace + ":" + resource
	}
	q := strings.TrimSpace(a.Verb + " " + resource + " " + a.Name)
	if a.APIGroup == "authentication.k8s.io" {
		q += " (authentication)"
	}
	r.asked = append(r.asked, q)
	for _, rule := range r.allow {
		if q == rule || strings.HasSuffix(rule, "…") && strings.HasPrefix(q, strings.TrimSuffix(rule, "…")) {
			return auth.Allow, "", r.err
		}
	}
	return auth.NoOpinion, "", r.err
}

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add("Impersonate-"+pairs[i], pairs[i+1])
	}
	return h
}

var (
	alice = auth.User{Name: "alice"}
	agent = auth.User{Name: "system:serviceaccount:kube-system:agent", Extra: map[string][]string{
		"authentication.kubernetes.io/node-name": {"n1"}, "authentication.kubernetes.io/pod-name": {"p"},
	}}
	list = auth.Attributes{Verb: "list", Resource: "pods", Namespace: "default", APIVersion: "v1", ResourceRequest: true}
)

// Who may do what as whom, what was asked for that, and what is said when not.
func TestModes(t *testing.T) {
	userInfo := []string{"impersonate-on:user-info:list default:pods", "impersonate:user-info users bob (authentication)"}
	for _, tc := range []struct {
		name  string
		by    auth.User
		h     http.Header
		allow []string
		asked string // "" : not compared
		want  string
	}{
		{"a user", alice, headers("User", "bob"), userInfo, strings.Join(userInfo, ", "), "bob [system:authenticated] by impersonate:user-info"},
		{"not what is done", alice, headers("User", "bob"), userInfo[1:], "impersonate-on:user-info:list default:pods, impersonate users bob",
			`pods is forbidden: User "alice" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "default"`},
		{"not whom", alice, headers("User", "eve"), userInfo, "",
			`users.authentication.k8s.io "eve" is forbidden: User "alice" cannot impersonate:user-info resource "users" in API group "authentication.k8s.io" at the cluster scope`},
		{"the plain verb", alice, headers("User", "bob"), []string{"impersonate users bob"}, "impersonate-on:user-info:list default:pods, impersonate users bob",
			"bob [system:authenticated] by "},
		{"all of a user", alice, headers("User", "bob", "Uid", "7", "Group", "g", "Extra-Example.com%2fkey", "v"),
			append([]string{"impersonate:user-info uids 7 (authentication)", "impersonate:user-info groups g (authentication)",
				"impersonate:user-info userextras/example.com/key v (authentication)"}, userInfo...), "",
			"bob 7 [g system:authenticated] map[example.com/key:[v]] by impersonate:user-info"},
		{"anonymous", alice, headers("User", "system:anonymous"), []string{"impersonate…"}, "", "system:anonymous [system:unauthenticated] by impersonate:user-info"},
		{"unauthenticated", alice, headers("User", "bob", "Group", "system:unauthenticated"), []string{"impersonate…"}, "",
			"bob [system:unauthenticated] by impersonate:user-info"},
		{"masters need the plain verb", alice, headers("User", "bob", "Group", "system:masters"), []string{"impersonate-on…", "impersonate:…"}, "",
			`groups.authentication.k8s.io "system:masters" is forbidden: User "alice" cannot impersonate:user-info resource "groups" ` +
				`in API group "authentication.k8s.io" at the cluster scope: impersonating the system:masters group is not allowed`},
		{"masters by the plain verb", alice, headers("User", "bob", "Group", "system:masters"), []string{"impersonate…"}, "",
			"bob [system:masters system:authenticated] by "},
		{"a key that is none", alice, headers("User", "bob", "Extra-Scopes", "v"), []string{"impersonate-on…", "impersonate:…"}, "",
			`userextras.authentication.k8s.io is forbidden: User "alice" cannot impersonate:user-info resource "userextras" ` +
				`in API group "authentication.k8s.io" at the cluster scope: impersonating an invalid key in extra is not allowed: ` +
				`extra.key: Invalid value: "scopes": must be a domain-prefixed path (such as "acme.io/foo")`},
		{"a key in upper case", alice, headers("User", "bob", "Extra-a.io%2f%41", "v"), []string{"impersonate-on…", "impersonate:…"}, "",
			`userextras.authentication.k8s.io is forbidden: User "alice" cannot impersonate:user-info resource "userextras" ` +
				`in API group "authentication.k8s.io" at the cluster scope: impersonating a non-lowercase key in extra is not allowed: "a.io/A"`},
		{"many groups at once", alice, headers("User", "bob", "Group", "a", "Group", "b", "Group", "c", "Group", "d"),
			append([]string{"impersonate:user-info groups * (authentication)"}, userInfo...),
			strings.Join(userInfo, ", ") + ", impersonate:user-info groups * (authentication)", "bob [a b c d system:authenticated] by impersonate:user-info"},
		{"many extras, not all", alice, headers("User", "bob", "Extra-a.io%2fk", "1", "Extra-a.io%2fk", "2", "Extra-a.io%2fk", "3", "Extra-a.io%2fk", "4"),
			append([]string{"impersonate:user-info userextras/a.io/k…"}, userInfo...),
			strings.Join(userInfo, ", ") + ", impersonate:user-info userextras/* * (authentication), impersonate:user-info userextras/a.io/k 1 (authentication), " +
				"impersonate:user-info userextras/a.io/k 2 (authentication), impersonate:user-info userextras/a.io/k 3 (authentication), " +
				"impersonate:user-info userextras/a.io/k 4 (authentication)", "bob [system:authenticated] map[a.io/k:[1 2 3 4]] by impersonate:user-info"},
		{"a service account", alice, headers("User", "system:serviceaccount:ns:sa"),
			[]string{"impersonate-on:serviceaccount:list default:pods", "impersonate:serviceaccount ns:serviceaccounts sa (authentication)"}, "",
			"system:serviceaccount:ns:sa [system:serviceaccounts system:serviceaccounts:ns system:authenticated] by impersonate:serviceaccount"},
		{"a service account with groups", alice, headers("User", "system:serviceaccount:ns:sa", "Group", "g"), []string{"impersonate-on…", "impersonate:…"}, "impersonate ns:serviceaccounts sa",
			`serviceaccounts "sa" is forbidden: User "alice" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "ns"`},
		{"what only looks like one", alice, headers("User", "system:serviceaccount:ns:s:a"), []string{"impersonate…"}, "",
			"system:serviceaccount:ns:s:a [system:authenticated] by impersonate:user-info"},
		{"a node", alice, headers("User", "system:node:n1"), []string{"impersonate-on:arbitrary-node:list default:pods", "impersonate:arbitrary-node nodes n1 (authentication)"}, "",
			"system:node:n1 [system:nodes system:authenticated] by impersonate:arbitrary-node"},
		{"a node by the plain verb", alice, headers("User", "system:node:n1"), []string{"impersonate users system:node:n1"}, "", "system:node:n1 [system:authenticated] by "},
		{"the own node", agent, headers("User", "system:node:n1"), []string{"impersonate-on:associated-node:list default:pods", "impersonate:associated-node nodes * (authentication)"}, "",
			"system:node:n1 [system:nodes system:authenticated] by impersonate:associated-node"},
		{"not another's", agent, headers("User", "system:node:n2"), []string{"impersonate-on:associated-node…", "impersonate:associated-node…"}, "",
			`pods is forbidden: User "system:serviceaccount:kube-system:agent" cannot impersonate-on:arbitrary-node:list resource "pods" in API group "" in the namespace "default"`},
	} {
		r := &rules{allow: tc.allow}
		i := New(r)
		got := as(t, i, tc.by, tc.h, list)
		if got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
		if asked := strings.Join(r.asked, ", "); tc.asked != "" && asked != tc.asked {
			t.Errorf("%s: asked\n got %s\nwant %s", tc.name, asked, tc.asked)
		}
	}
}

// as tells who it is that does a.
func as(t *testing.T, i *Impersonation, by auth.User, h http.Header, a auth.Attributes) string {
	t.Helper()
	want, err := Wanted(h)
	if err != nil || want == nil {
		t.Fatalf("%v: %v %v", h, want, err)
	}
	if len(h) > 0 {
		t.Errorf("headers are left: %v", h)
	}
	a.User = by
	u, constraint, err := i.As(t.Context(), want, a)
	if err != nil {
		return err.Error()
	}
	s := u.Name
	if u.UID != "" {
		s += " " + u.UID
	}
	s += " " + fmt.Sprint(u.Groups)
	if len(u.Extra) > 0 {
		s += " " + fmt.Sprint(u.Extra)
	}
	return s + " by " + constraint
}

// The authorizer is asked for all nodes, by a user who is tied to none: which extra keys it has is all it is told.
func TestAssociatedNodeAsksWithoutTheNode(t *testing.T) {
	var asked []auth.Attributes
	i := New(authorizerFunc(func(a auth.Attributes) (auth.Decision, string, error) {
		asked = append(asked, a)
		return auth.Allow, "", nil
	}))
	as(t, i, agent, headers("User", "system:node:n1"), list)
	want := map[string][]string{"authentication.kubernetes.io/associated-node-keys": {"authentication.kubernetes.io/node-name", "authentication.kubernetes.io/pod-name"}}
	if len(asked) != 2 {
		t.Fatalf("asked %v", asked)
	}
	for _, a := range asked {
		if !maps.EqualFunc(a.User.Extra, want, slices.Equal) {
			t.Errorf("%s: extra %v", a.Verb, a.User.Extra)
		}
	}
	if len(agent.Extra) != 2 {
		t.Errorf("the requester was changed: %v", agent)
	}
}

type authorizerFunc func(auth.Attributes) (auth.Decision, string, error)

func (f authorizerFunc) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	return f(a)
}

// The mode that was last allowed is tried first, so who uses the plain verb pays one check, and reads its refusal.
func TestLastModeFirst(t *testing.T) {
	r := &rules{allow: []string{"impersonate users bob"}}
	i := New(r)
	as(t, i, alice, headers("User", "bob"), list)
	r.asked = nil
	as(t, i, alice, headers("User", "bob"), list)
	if got := strings.Join(r.asked, ", "); got != "impersonate users bob" {
		t.Errorf("asked %s", got)
	}
	if got, want := as(t, i, alice, headers("User", "eve"), list), `users "eve" is forbidden: User "alice" cannot impersonate resource "users" in API group "" at the cluster scope`; got != want {
		t.Errorf("got %s", got)
	}
	families := map[string]bool{}
	reg := prometheus.NewRegistry()
	reg.MustRegister(i.Collectors()...)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.Metric {
			line := f.GetName()
			for _, l := range m.Label {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			if m.Counter != nil {
				families[fmt.Sprint(line, " ", m.Counter.GetValue())] = true
			}
		}
	}
	for _, want := range []string{
		"apiserver_impersonation_attempts_total decision=allowed mode=legacy 2", "apiserver_impersonation_attempts_total decision=denied mode= 1",
		"apiserver_impersonation_authorization_attempts_total decision=denied mode=user-info 2",
	} {
		if !families[want] {
			t.Errorf("no %s in %v", want, families)
		}
	}
}

// What an authorizer met is in the refusal, and does not undo what it allows.
func TestAuthorizerErrors(t *testing.T) {
	i := New(&rules{err: errors.New("role is gone")})
	want := `pods is forbidden: User "alice" cannot impersonate-on:user-info:list resource "pods" in API group "" in the namespace "default": role is gone`
	if got := as(t, i, alice, headers("User", "bob"), list); got != want {
		t.Errorf("got %s", got)
	}
	i = New(&rules{err: errors.New("role is gone"), allow: []string{"impersonate…"}})
	if got := as(t, i, alice, headers("User", "bob"), list); got != "bob [system:authenticated] by impersonate:user-info" {
		t.Errorf("got %s", got)
	}
}

func TestHeaders(t *testing.T) {
	_, err := Wanted(headers("Group", "g"))
	want := `requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)} without impersonating a user name`
	if err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	for _, h := range []http.Header{{}, headers("User", ""), headers("Else", "x")} {
		if u, err := Wanted(h); u != nil || err != nil {
			t.Errorf("%v: %v %v", h, u, err)
		}
	}
}
