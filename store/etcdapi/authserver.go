package etcdapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"
)

type authServer struct {
	pb.UnimplementedAuthServer
	s *Server
}

// edit runs a change of users and roles in turn. do gets the state it may look
// at and returns the entries to write; the state is then read again. Users
// whose tokens end are returned too.
func (a *authServer) edit(ctx context.Context, do func(*access) (entries []entry, expel []string, err error)) error {
	acc := a.s.access
	a.s.authEdits.Lock()
	defer a.s.authEdits.Unlock()
	acc.mu.RLock()
	entries, expel, err := do(acc)
	rev := acc.rev
	acc.mu.RUnlock()
	if err != nil || len(entries) == 0 {
		return err
	}
	if !bytes.Equal(entries[0].value, enabled) { // turning it on changes nobody's rights
		rev++
	}
	entries = append(entries, entry{"auth", "authRevision", binary.BigEndian.AppendUint64(nil, rev)})
	if err := a.s.writeBuckets(ctx, entries...); err != nil {
		return err
	}
	if err := acc.load(ctx); err != nil {
		return err
	}
	acc.mu.Lock()
	defer acc.mu.Unlock()
	maps.DeleteFunc(acc.tokens, func(_ string, t *token) bool { return slices.Contains(expel, t.user) })
	return nil
}

// enabled is the value of authEnabled while users are asked who they are.
var enabled = []byte{1}

func userEntry(u *authpb.User) entry {
	body, _ := proto.Marshal(u) // cannot fail: it holds no required field
	return entry{"authUsers", string(u.Name), body}
}

func roleEntry(r *authpb.Role) entry {
	body, _ := proto.Marshal(r)
	return entry{"authRoles", string(r.Name), body}
}

// AuthEnable implements pb.AuthServer.
func (a *authServer) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		root := acc.users[rootName]
		switch {
		case acc.on.Load():
			return nil, nil, nil
		case root == nil:
			return nil, nil, rpctypes.ErrGRPCRootUserNotExist
		case !slices.Contains(root.Roles, rootName):
			return nil, nil, rpctypes.ErrGRPCRootRoleNotExist
		}
		return []entry{{"auth", "authEnabled", enabled}}, nil, nil
	})
	return &pb.AuthEnableResponse{Header: a.s.now()}, err
}

// AuthDisable implements pb.AuthServer.
func (a *authServer) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if !acc.on.Load() {
			return nil, nil, nil
		}
		return []entry{{"auth", "authEnabled", []byte{0}}}, slices.Collect(maps.Keys(acc.users)), nil
	})
	return &pb.AuthDisableResponse{Header: a.s.now()}, err
}

// AuthStatus implements pb.AuthServer.
func (a *authServer) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	acc := a.s.access
	acc.mu.RLock()
	defer acc.mu.RUnlock()
	return &pb.AuthStatusResponse{Header: a.s.now(), Enabled: acc.on.Load(), AuthRevision: acc.rev}, nil
}

// Authenticate implements pb.AuthServer.
func (a *authServer) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	acc := a.s.access
	if !acc.on.Load() {
		return nil, rpctypes.ErrGRPCAuthNotEnabled
	}
	acc.mu.RLock()
	u, rev := acc.users[r.Name], acc.rev
	acc.mu.RUnlock()
	if u.GetOptions().GetNoPassword() {
		return nil, errNoPassword
	}
	if u == nil || bcrypt.CompareHashAndPassword(u.Password, []byte(r.Password)) != nil {
		return nil, rpctypes.ErrGRPCAuthFailed
	}
	text, err := acc.newToken(r.Name, rev)
	if err != nil {
		return nil, err
	}
	if text == "" { // the password may have changed while it was compared
		return a.Authenticate(ctx, r)
	}
	return &pb.AuthenticateResponse{Header: a.s.now(), Token: text}, nil
}

var errNoPassword = errors.New("auth: authentication failed, password was given for no password user")

// hash makes what is stored of a password; clients may send it hashed.
func (a *authServer) hash(password, hashed string) ([]byte, error) {
	if hashed != "" {
		text, err := base64.StdEncoding.DecodeString(hashed)
		if err != nil {
			return nil, rpctypes.ErrGRPCAuthFailed
		}
		return text, nil
	}
	text, err := bcrypt.GenerateFromPassword([]byte(password), a.s.cfg.BcryptCost)
	if err != nil {
		return nil, toGRPC(err)
	}
	return text, nil
}

// UserAdd implements pb.AuthServer.
func (a *authServer) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if r.Name == "" {
		return nil, rpctypes.ErrGRPCUserEmpty
	}
	u := &authpb.User{Name: []byte(r.Name), Options: &authpb.UserAddOptions{NoPassword: r.GetOptions().GetNoPassword()}}
	if !u.Options.NoPassword {
		var err error
		if u.Password, err = a.hash(r.Password, r.HashedPassword); err != nil {
			return nil, err
		}
	}
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.users[r.Name] != nil {
			return nil, nil, rpctypes.ErrGRPCUserAlreadyExist
		}
		return []entry{userEntry(u)}, nil, nil
	})
	return &pb.AuthUserAddResponse{Header: a.s.now()}, err
}

// errNothing says that a user is already as wanted.
var errNothing = errors.New("nothing to change")

// changeUser edits a copy of a user; its tokens end if expel is set.
func (a *authServer) changeUser(ctx context.Context, name string, expel bool, change func(acc *access, u *authpb.User) error) error {
	return a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.users[name] == nil {
			return nil, nil, rpctypes.ErrGRPCUserNotFound
		}
		u := proto.Clone(acc.users[name]).(*authpb.User)
		if err := change(acc, u); err == errNothing {
			return nil, nil, nil
		} else if err != nil {
			return nil, nil, err
		}
		if expel {
			return []entry{userEntry(u)}, []string{name}, nil
		}
		return []entry{userEntry(u)}, nil, nil
	})
}

// UserChangePassword implements pb.AuthServer.
func (a *authServer) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	hashed, err := a.hash(r.Password, r.HashedPassword)
	if err != nil {
		return nil, err
	}
	err = a.changeUser(ctx, r.Name, true, func(_ *access, u *authpb.User) error {
		u.Password = hashed
		return nil
	})
	return &pb.AuthUserChangePasswordResponse{Header: a.s.now()}, err
}

// UserGrantRole implements pb.AuthServer.
func (a *authServer) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	err := a.changeUser(ctx, r.User, false, func(acc *access, u *authpb.User) error {
		if r.Role != rootName && acc.roles[r.Role] == nil {
			return rpctypes.ErrGRPCRoleNotFound
		}
		if slices.Contains(u.Roles, r.Role) {
			return errNothing
		}
		u.Roles = append(u.Roles, r.Role)
		slices.Sort(u.Roles)
		return nil
	})
	return &pb.AuthUserGrantRoleResponse{Header: a.s.now()}, err
}

// UserRevokeRole implements pb.AuthServer.
func (a *authServer) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	err := a.changeUser(ctx, r.Name, false, func(acc *access, u *authpb.User) error {
		if acc.on.Load() && r.Name == rootName && r.Role == rootName {
			return rpctypes.ErrGRPCInvalidAuthMgmt
		}
		i := slices.Index(u.Roles, r.Role)
		if i < 0 {
			return rpctypes.ErrGRPCRoleNotGranted
		}
		u.Roles = slices.Delete(u.Roles, i, i+1)
		return nil
	})
	return &pb.AuthUserRevokeRoleResponse{Header: a.s.now()}, err
}

// UserDelete implements pb.AuthServer.
func (a *authServer) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.on.Load() && r.Name == rootName {
			return nil, nil, rpctypes.ErrGRPCInvalidAuthMgmt
		}
		if acc.users[r.Name] == nil {
			return nil, nil, rpctypes.ErrGRPCUserNotFound
		}
		return []entry{{bucket: "authUsers", key: r.Name}}, []string{r.Name}, nil
	})
	return &pb.AuthUserDeleteResponse{Header: a.s.now()}, err
}

// UserGet implements pb.AuthServer.
func (a *authServer) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	acc := a.s.access
	acc.mu.RLock()
	defer acc.mu.RUnlock()
	u := acc.users[r.Name]
	if u == nil {
		return nil, rpctypes.ErrGRPCUserNotFound
	}
	return &pb.AuthUserGetResponse{Header: a.s.now(), Roles: u.Roles}, nil
}

// UserList implements pb.AuthServer.
func (a *authServer) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	acc := a.s.access
	acc.mu.RLock()
	defer acc.mu.RUnlock()
	return &pb.AuthUserListResponse{Header: a.s.now(), Users: slices.Sorted(maps.Keys(acc.users))}, nil
}

// RoleAdd implements pb.AuthServer.
func (a *authServer) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	if r.Name == "" {
		return nil, rpctypes.ErrGRPCRoleEmpty
	}
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.roles[r.Name] != nil {
			return nil, nil, rpctypes.ErrGRPCRoleAlreadyExist
		}
		return []entry{roleEntry(&authpb.Role{Name: []byte(r.Name)})}, nil, nil
	})
	return &pb.AuthRoleAddResponse{Header: a.s.now()}, err
}

// changeRole edits a copy of a role.
func (a *authServer) changeRole(ctx context.Context, name string, change func(*authpb.Role) error) error {
	return a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.roles[name] == nil {
			return nil, nil, rpctypes.ErrGRPCRoleNotFound
		}
		role := proto.Clone(acc.roles[name]).(*authpb.Role)
		if err := change(role); err != nil {
			return nil, nil, err
		}
		return []entry{roleEntry(role)}, nil, nil
	})
}

func samePermission(p *authpb.Permission, key, end []byte) bool {
	return bytes.Equal(p.Key, key) && bytes.Equal(p.RangeEnd, end)
}

// RoleGrantPermission implements pb.AuthServer.
func (a *authServer) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	if r.Perm == nil {
		return nil, rpctypes.ErrGRPCPermissionNotGiven
	}
	if end := r.Perm.RangeEnd; len(r.Perm.Key) == 0 || len(end) > 0 && !bytes.Equal(end, []byte{0}) && bytes.Compare(r.Perm.Key, end) >= 0 {
		return nil, rpctypes.ErrGRPCInvalidAuthMgmt
	}
	err := a.changeRole(ctx, r.Name, func(role *authpb.Role) error {
		for _, p := range role.KeyPermission {
			if samePermission(p, r.Perm.Key, r.Perm.RangeEnd) {
				p.PermType = r.Perm.PermType
				return nil
			}
		}
		role.KeyPermission = append(role.KeyPermission, r.Perm)
		slices.SortFunc(role.KeyPermission, func(x, y *authpb.Permission) int { return bytes.Compare(x.Key, y.Key) })
		return nil
	})
	return &pb.AuthRoleGrantPermissionResponse{Header: a.s.now()}, err
}

// RoleRevokePermission implements pb.AuthServer.
func (a *authServer) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	err := a.changeRole(ctx, r.Role, func(role *authpb.Role) error {
		n := len(role.KeyPermission)
		role.KeyPermission = slices.DeleteFunc(role.KeyPermission, func(p *authpb.Permission) bool { return samePermission(p, r.Key, r.RangeEnd) })
		if len(role.KeyPermission) == n {
			return rpctypes.ErrGRPCPermissionNotGranted
		}
		return nil
	})
	return &pb.AuthRoleRevokePermissionResponse{Header: a.s.now()}, err
}

// RoleDelete implements pb.AuthServer: the role is taken from its users too.
func (a *authServer) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	err := a.edit(ctx, func(acc *access) ([]entry, []string, error) {
		if acc.on.Load() && r.Role == rootName {
			return nil, nil, rpctypes.ErrGRPCInvalidAuthMgmt
		}
		if acc.roles[r.Role] == nil {
			return nil, nil, rpctypes.ErrGRPCRoleNotFound
		}
		entries := []entry{{bucket: "authRoles", key: r.Role}}
		for _, u := range acc.users {
			if i := slices.Index(u.Roles, r.Role); i >= 0 {
				u = proto.Clone(u).(*authpb.User)
				u.Roles = slices.Delete(u.Roles, i, i+1)
				entries = append(entries, userEntry(u))
			}
		}
		return entries, nil, nil
	})
	return &pb.AuthRoleDeleteResponse{Header: a.s.now()}, err
}

// RoleGet implements pb.AuthServer.
func (a *authServer) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	acc := a.s.access
	acc.mu.RLock()
	defer acc.mu.RUnlock()
	role := acc.roles[r.Role]
	if role == nil {
		return nil, rpctypes.ErrGRPCRoleNotFound
	}
	if r.Role == rootName {
		return &pb.AuthRoleGetResponse{Header: a.s.now(), Perm: []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}}, nil
	}
	return &pb.AuthRoleGetResponse{Header: a.s.now(), Perm: role.KeyPermission}, nil
}

// RoleList implements pb.AuthServer.
func (a *authServer) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	acc := a.s.access
	acc.mu.RLock()
	defer acc.mu.RUnlock()
	return &pb.AuthRoleListResponse{Header: a.s.now(), Roles: slices.Sorted(maps.Keys(acc.roles))}, nil
}

// hasRole reports whether a user has a role.
func (a *access) hasRole(user, role string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.users[user] != nil && slices.Contains(a.users[user].Roles, role)
}
