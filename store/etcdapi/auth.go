package etcdapi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"
)

const (
	rootName = "root" // of the user and the role that may do everything
	// defaultTokenTTL is how long a simple token lives unused.
	defaultTokenTTL = 5 * time.Minute
	// maxTokens bounds the simple tokens alive.
	maxTokens = 100_000
)

// access is who may do what: users, roles and tokens. It is read at every
// call, so off it costs one load.
type access struct {
	s     *Server
	clock clock.Clock
	on    atomic.Bool

	mu     sync.RWMutex
	rev    uint64
	users  map[string]*authpb.User
	roles  map[string]*authpb.Role
	tokens map[string]*token
}

type token struct {
	user    string
	expires time.Time
}

// load reads users and roles from the side store.
func (a *access) load(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rev, a.users, a.roles = 1, map[string]*authpb.User{}, map[string]*authpb.Role{}
	if a.tokens == nil {
		a.tokens = map[string]*token{}
	}
	settings, err := a.s.bucket(ctx, "auth")
	if err != nil {
		return err
	}
	if v := settings["authRevision"]; len(v) == 8 {
		a.rev = binary.BigEndian.Uint64(v)
	}
	users, err := a.s.bucket(ctx, "authUsers")
	if err != nil {
		return err
	}
	for name, v := range users {
		u := &authpb.User{}
		if err := proto.Unmarshal(v, u); err != nil {
			return fmt.Errorf("user %s does not decode: %w", name, err)
		}
		a.users[name] = u
	}
	roles, err := a.s.bucket(ctx, "authRoles")
	if err != nil {
		return err
	}
	for name, v := range roles {
		r := &authpb.Role{}
		if err := proto.Unmarshal(v, r); err != nil {
			return fmt.Errorf("role %s does not decode: %w", name, err)
		}
		a.roles[name] = r
	}
	enabled := settings["authEnabled"]
	a.on.Store(len(enabled) == 1 && enabled[0] == 1)
	return nil
}

// caller finds the user of a call: by its token, else by the name in its
// client certificate. "" is nobody. Errors: an invalid token.
func (a *access) caller(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, field := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := md.Get(field); len(v) > 0 {
			return a.tokenUser(v[0])
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			return info.State.VerifiedChains[0][0].Subject.CommonName, nil
		}
	}
	return "", nil
}

func (a *access) tokenUser(text string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if j := a.s.cfg.JWT; j != nil {
		user, rev, ok := j.read(text, a.clock.Now())
		switch {
		case !ok:
			return "", rpctypes.ErrGRPCInvalidAuthToken
		case rev < a.rev:
			return "", rpctypes.ErrGRPCAuthOldRevision
		}
		return user, nil
	}
	t := a.tokens[text]
	now := a.clock.Now()
	if t == nil || !now.Before(t.expires) {
		return "", rpctypes.ErrGRPCInvalidAuthToken
	}
	t.expires = now.Add(a.s.cfg.TokenTTL)
	return t.user, nil
}

// newToken makes a token of a user whose password was compared at revision
// rev; "" if users have changed since.
func (a *access) newToken(user string, rev uint64) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rev != rev {
		return "", nil
	}
	now := a.clock.Now()
	if j := a.s.cfg.JWT; j != nil {
		return j.issue(user, rev, now)
	}
	maps.DeleteFunc(a.tokens, func(_ string, t *token) bool { return !now.Before(t.expires) })
	if len(a.tokens) >= maxTokens {
		return "", rpctypes.ErrGRPCRequestTooManyRequests
	}
	text := rand.Text() + fmt.Sprintf(".%d", a.rev)
	a.tokens[text] = &token{user: user, expires: now.Add(a.s.cfg.TokenTTL)}
	return text, nil
}

// need is a right a request needs: to read or write a range of keys.
type need struct {
	write    bool
	key, end string
}

// permits decides whether a user has every right of needs.
func (a *access) permits(user string, needs ...need) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if user == "" {
		return rpctypes.ErrGRPCUserEmpty
	}
	u := a.users[user]
	if u == nil {
		return rpctypes.ErrGRPCPermissionDenied
	}
	if slices.Contains(u.Roles, rootName) {
		return nil
	}
	for _, n := range needs {
		if !covered(a.ranges(u, n.write), n.key, n.end) {
			return rpctypes.ErrGRPCPermissionDenied
		}
	}
	return nil
}

// admin decides whether a user may do everything.
func (a *access) admin(user string) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if user == "" {
		return rpctypes.ErrGRPCUserEmpty
	}
	if u := a.users[user]; u == nil || !slices.Contains(u.Roles, rootName) {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return nil
}

// interval is [from, to); unbounded ignores to.
type interval struct {
	from, to  string
	unbounded bool
}

func newInterval(key, end string) interval {
	switch end {
	case "":
		return interval{from: key, to: key + "\x00"}
	case "\x00":
		return interval{from: key, unbounded: true}
	}
	return interval{from: key, to: end}
}

// ranges are what a user may read or write.
func (a *access) ranges(u *authpb.User, write bool) []interval {
	var out []interval
	for _, name := range u.Roles {
		role := a.roles[name]
		if role == nil {
			continue
		}
		for _, p := range role.KeyPermission {
			if p.PermType == authpb.Permission_READWRITE || (p.PermType == authpb.Permission_WRITE) == write {
				out = append(out, newInterval(string(p.Key), string(p.RangeEnd)))
			}
		}
	}
	return out
}

// covered reports whether the intervals together hold all of [key, end).
func covered(all []interval, key, end string) bool {
	want := newInterval(key, end)
	slices.SortFunc(all, func(a, b interval) int {
		if a.from < b.from {
			return -1
		}
		return 1
	})
	at := want.from // everything before is covered
	for _, i := range all {
		if i.from > at {
			break
		}
		if i.unbounded {
			return true
		}
		at = max(at, i.to)
		if !want.unbounded && at >= want.to {
			return true
		}
	}
	return false
}
