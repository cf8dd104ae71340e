package impersonation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/lru"

	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/serviceaccount"
)

// mode is one way of impersonation. The empty name is the plain verb impersonate,
// which asks nothing about what is done.
type mode struct {
	name  string
	fits  func(want *auth.User, by auth.User) bool
	asked func(auth.Attributes) auth.Attributes // what the authorizer is asked instead; nil: the same
}

// modes in the order they are tried.
func modes() []*mode {
	return []*mode{
		{"associated-node", func(want *auth.User, by auth.User) bool { return onlyName(want) && runsOn(by, want.Name) }, anyNode},
		{"arbitrary-node", func(want *auth.User, _ auth.User) bool { return onlyName(want) && isNode(want.Name) }, nil},
		{"serviceaccount", func(want *auth.User, _ auth.User) bool { return onlyName(want) && isServiceAccount(want.Name) }, nil},
		{"user-info", func(want *auth.User, _ auth.User) bool { return !isNode(want.Name) && !isServiceAccount(want.Name) }, nil},
		{"", func(*auth.User, auth.User) bool { return true }, nil},
	}
}

// maxRemembered bounds the requesters whose last mode is remembered; an entry is some 100 bytes.
const maxRemembered = 10_000

// Impersonation decides by an authorizer. It is safe for concurrent use.
type Impersonation struct {
	authorizer auth.Authorizer
	modes      []*mode
	last       *lru.Cache // name of who asks: the mode that was last allowed, which is tried first
	metrics
}

// New returns an Impersonation that asks a.
func New(a auth.Authorizer) *Impersonation {
	return &Impersonation{authorizer: a, modes: modes(), last: lru.New(maxRemembered), metrics: newMetrics()}
}

// As returns the user that the request a is done as when a.User impersonates want, and the verb of the constrained
// mode that allowed it ("": the plain verb did). When no mode allows it, the error is the 403 of the first that was tried.
//
// Unlike upstream, what was allowed is not remembered for ten seconds: RBAC answers from memory, and webhooks' answers are cached.
func (i *Impersonation) As(ctx context.Context, want *auth.User, a auth.Attributes) (u auth.User, constraint string, err error) {
	began := time.Now()
	u, m, err := i.search(ctx, want, a)
	i.attempted(m, time.Since(began))
	if m != nil && m.name != "" {
		constraint = m.verb()
	}
	return u, constraint, err
}

// search tries the modes; without an error, it returns the one that allowed it.
func (i *Impersonation) search(ctx context.Context, want *auth.User, a auth.Attributes) (auth.User, *mode, error) {
	order := i.modes
	if last, ok := i.last.Get(a.User.Name); ok {
		order = append([]*mode{last.(*mode)}, slices.DeleteFunc(slices.Clone(order), func(m *mode) bool { return m == last })...)
	}
	var first error
	for _, m := range order {
		u, err := i.try(ctx, m, want, a)
		if err == nil {
			i.last.Add(a.User.Name, m)
			return u, m, nil
		}
		if first == nil && !errors.Is(err, errUnfit) {
			first = err
		}
	}
	return auth.User{}, nil, first
}

// verb is what the user's parts are asked for with.
func (m *mode) verb() string { return strings.TrimSuffix("impersonate:"+m.name, ":") }

// errUnfit says that a mode is not for this user.
var errUnfit = errors.New("no such mode for this user")

// try asks for everything one mode needs.
func (i *Impersonation) try(ctx context.Context, m *mode, want *auth.User, a auth.Attributes) (auth.User, error) {
	if !m.fits(want, a.User) {
		return auth.User{}, errUnfit
	}
	c := &checks{Impersonation: i, ctx: ctx, mode: m, by: a.User}
	if m.name != "" {
		c.group = authenticationv1.GroupName
		on := a
		on.Verb = "impersonate-on:" + m.name + ":" + a.Verb
		if err := c.ask(on); err != nil {
			return auth.User{}, err
		}
	}
	u := *want
	if err := c.name(&u); err != nil {
		return u, err
	}
	if u.UID != "" {
		if err := c.ask(c.about(authenticationv1.GroupName, "uids", u.UID)); err != nil {
			return u, err
		}
	}
	if err := c.groups(want.Groups); err != nil {
		return u, err
	}
	if err := c.extra(want.Extra); err != nil {
		return u, err
	}
	switch {
	case u.Name == auth.UserAnonymous:
		u.Groups = with(u.Groups, auth.GroupUnauthenticated)
	case !slices.Contains(u.Groups, auth.GroupUnauthenticated):
		u.Groups = with(u.Groups, auth.GroupAuthenticated)
	}
	return u, nil
}

func with(groups []string, group string) []string {
	if slices.Contains(groups, group) {
		return groups
	}
	return append(slices.Clip(groups), group)
}

// checks are those of one attempt.
type checks struct {
	*Impersonation
	ctx   context.Context
	mode  *mode
	by    auth.User
	group string // API group of users and groups
}

func (c *checks) about(group, resource, name string) auth.Attributes {
	return auth.Attributes{User: c.by, Verb: c.mode.verb(), APIGroup: group, APIVersion: "v1", Resource: resource, Name: name, ResourceRequest: true}
}

// ask returns the 403 unless a is allowed. An authorizer may allow and have met errors.
func (c *checks) ask(a auth.Attributes) error {
	if c.mode.asked != nil {
		a = c.mode.asked(a)
	}
	d, reason, err := c.authorize(c.ctx, a, c.mode)
	if d == auth.Allow {
		return nil
	}
	if err != nil {
		if reason != "" {
			reason = ": " + reason
		}
		reason = err.Error() + reason
	}
	return request.Refusal(a, auth.Deny, reason, nil)
}

// name asks for the name, and gives nodes and service accounts the groups they always have.
func (c *checks) name(u *auth.User) error {
	a := c.about(c.group, "users", u.Name)
	if c.mode.name != "" && isNode(u.Name) {
		a.Resource, a.Name = "nodes", strings.TrimPrefix(u.Name, nodePrefix)
		u.Groups = []string{auth.GroupNodes}
	}
	if ns, name, ok := splitServiceAccount(u.Name); ok {
		a.Resource, a.Namespace, a.Name = "serviceaccounts", ns, name
		if len(u.Groups) == 0 {
			u.Groups = []string{auth.GroupServiceAccounts, auth.GroupServiceAccounts + ":" + ns}
		}
	}
	return c.ask(a)
}

// many is from how many on a constrained mode asks for all ("*") before it asks for each.
const many = 4

func (c *checks) groups(groups []string) error {
	a := c.about(c.group, "groups", "")
	if c.mode.name != "" {
		if slices.Contains(groups, "") {
			return request.Refusal(a, auth.Deny, "impersonating the empty string group is not allowed", nil)
		}
		if slices.Contains(groups, auth.GroupMasters) {
			a.Name = auth.GroupMasters
			return request.Refusal(a, auth.Deny, "impersonating the system:masters group is not allowed", nil)
		}
		if a.Name = "*"; len(groups) >= many && c.ask(a) == nil {
			return nil
		}
	}
	for _, a.Name = range groups {
		if err := c.ask(a); err != nil {
			return err
		}
	}
	return nil
}

func (c *checks) extra(extra map[string][]string) error {
	a := c.about(authenticationv1.GroupName, "userextras", "")
	if c.mode.name != "" {
		if err := validExtra(extra); err != nil {
			return request.Refusal(a, auth.Deny, err.Error(), nil)
		}
		n := 0
		for _, values := range extra {
			n += len(values) // each has one
		}
		if a.Subresource, a.Name = "*", "*"; n >= many && c.ask(a) == nil {
			return nil
		}
	}
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		a.Subresource = key
		for _, a.Name = range extra[key] {
			if err := c.ask(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func validExtra(extra map[string][]string) error {
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		if key == "" {
			return errors.New("impersonating the empty string key in extra is not allowed")
		}
		if err := utilvalidation.IsDomainPrefixedPath(field.NewPath("extra", "key"), key).ToAggregate(); err != nil {
			return fmt.Errorf("impersonating an invalid key in extra is not allowed: %w", err)
		}
		if key != strings.ToLower(key) {
			return fmt.Errorf("impersonating a non-lowercase key in extra is not allowed: %q", key)
		}
		if len(extra[key]) == 0 {
			return errors.New("impersonating empty values in extra is not allowed")
		}
		if slices.Contains(extra[key], "") {
			return errors.New("impersonating the empty string value in extra is not allowed")
		}
	}
	return nil
}

const nodePrefix = "system:node:"

func isNode(username string) bool {
	name, ok := strings.CutPrefix(username, nodePrefix)
	return ok && len(validation.NameIsDNSSubdomain(name, false)) == 0
}

func isServiceAccount(username string) bool {
	_, _, ok := splitServiceAccount(username)
	return ok
}

func splitServiceAccount(username string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(username, auth.ServiceAccountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	if !ok || len(validation.ValidateNamespaceName(namespace, false)) > 0 || len(validation.ValidateServiceAccountName(name, false)) > 0 {
		return "", "", false
	}
	return namespace, name, true
}

func onlyName(u *auth.User) bool { return u.UID == "" && len(u.Groups) == 0 && len(u.Extra) == 0 }

// runsOn tells whether by is a service account whose token is bound to the node that the user name is of.
func runsOn(by auth.User, username string) bool {
	on := by.Extra[serviceaccount.NodeNameKey]
	return isNode(username) && isServiceAccount(by.Name) && len(on) == 1 && on[0] == strings.TrimPrefix(username, nodePrefix)
}

const nodeKeysKey = "authentication.kubernetes.io/associated-node-keys"

// anyNode asks the authorizer for all nodes at once, and by a user without what ties it to one: what is allowed to a
// service account in associated-node mode is allowed to it on each node.
func anyNode(a auth.Attributes) auth.Attributes {
	a.User.Extra = map[string][]string{nodeKeysKey: slices.Sorted(maps.Keys(a.User.Extra))}
	if a.Verb == "impersonate:associated-node" {
		a.Name = "*"
	}
	return a
}
