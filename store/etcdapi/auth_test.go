package etcdapi

import (
	"crypto/tls"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/crypto/bcrypt"

	"github.com/skiff-project/skiff/store/embedded"
)

func TestCovered(t *testing.T) {
	all := func(pairs ...string) (out []interval) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, newInterval(pairs[i], pairs[i+1]))
		}
		return out
	}
	for _, tt := range []struct {
		have     []interval
		key, end string
		want     bool
	}{
		{all("a", "c"), "a", "", true},
		{all("a", "c"), "c", "", false},
		{all("a", "c"), "a", "c", true},
		{all("a", "c"), "a", "d", false},
		{all("a", "c"), "a", "\x00", false},
		{all("b", "d", "a", "b"), "a", "d", true},
		{all("a", "b", "c", "d"), "a", "d", false},
		{all("a", "\x00"), "b", "\x00", true},
		{all("a", "\x00"), "A", "\x00", false},
		{all("a", ""), "a", "b", false},
		{nil, "a", "", false},
	} {
		if got := covered(tt.have, tt.key, tt.end); got != tt.want {
			t.Errorf("covered(%v, %q, %q) = %v", tt.have, tt.key, tt.end, got)
		}
	}
}

func login(t testing.TB, url, name, password string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Username: name, Password: password, DialTimeout: 5e9})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// first is the error of a watch's first answer.
func first(w clientv3.WatchChan) error {
	r := <-w
	return r.Err()
}

func TestAuth(t *testing.T) {
	dir := t.TempDir()
	side, err := embedded.Open(embedded.Options{Dir: dir, MaxTxnOps: 1024})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { side.Close() })
	srv := serve(t, Config{Side: side, BcryptCost: bcrypt.MinCost})
	ctx := t.Context()
	anyone := dial(t, srv.url, nil)
	if _, err := anyone.AuthEnable(ctx); err == nil || !strings.Contains(err.Error(), "root user does not exist") {
		t.Errorf("enable without root: %v", err)
	}
	must(anyone.UserAdd(ctx, "root", "r"))
	must(anyone.UserGrantRole(ctx, "root", "root"))
	must(anyone.UserAdd(ctx, "u", "p"))
	must(anyone.RoleAdd(ctx, "reader"))
	must(anyone.RoleGrantPermission(ctx, "reader", "a/", "a0", clientv3.PermissionType(clientv3.PermRead)))
	must(anyone.RoleGrantPermission(ctx, "reader", "a/w", "", clientv3.PermissionType(clientv3.PermReadWrite)))
	must(anyone.UserGrantRole(ctx, "u", "reader"))
	must(anyone.Put(ctx, "b", "1"))
	must(anyone.AuthEnable(ctx))

	if _, err := login(t, srv.url, "u", "wrong"); err == nil || !strings.Contains(err.Error(), "authentication failed") {
		t.Errorf("wrong password: %v", err)
	}
	root, u := must(login(t, srv.url, "root", "r")), must(login(t, srv.url, "u", "p"))
	lease := must(root.Grant(ctx, 100)).ID
	must(root.Put(ctx, "b", "1", clientv3.WithLease(lease)))
	const denied = "etcdserver: permission denied"
	for _, tt := range []struct {
		what string
		do   func() error
		want string
	}{
		{"nobody reads", func() error { _, err := anyone.Get(ctx, "a/1"); return err }, "etcdserver: user name is empty"},
		{"reads its own", func() error { _, err := u.Get(ctx, "a/", clientv3.WithPrefix()); return err }, ""},
		{"reads another", func() error { _, err := u.Get(ctx, "b"); return err }, denied},
		{"reads past its own", func() error { _, err := u.Get(ctx, "a/", clientv3.WithRange("b")); return err }, denied},
		{"reads from a key on", func() error { _, err := u.Get(ctx, "a/", clientv3.WithFromKey()); return err }, denied},
		{"writes its own", func() error { _, err := u.Put(ctx, "a/w", "1"); return err }, ""},
		{"writes what it only reads", func() error { _, err := u.Put(ctx, "a/1", "1"); return err }, denied},
		{"deletes", func() error { _, err := u.Delete(ctx, "a/", clientv3.WithPrefix()); return err }, denied},
		{"compares another", func() error {
			_, err := u.Txn(ctx).If(clientv3.Compare(clientv3.Version("b"), "=", 1)).Commit()
			return err
		}, denied},
		{"writes in a branch not taken", func() error { _, err := u.Txn(ctx).Else(clientv3.OpPut("b", "")).Commit(); return err }, denied},
		{"nests", func() error {
			_, err := u.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("b")}, nil)).Commit()
			return err
		}, denied},
		{"revokes the lease of another's key", func() error { _, err := u.Revoke(ctx, lease); return err }, denied},
		{"joins the lease of another's key", func() error { _, err := u.Put(ctx, "a/w", "", clientv3.WithLease(lease)); return err }, denied},
		{"sees the keys of a lease", func() error { _, err := u.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()); return err }, denied},
		{"watches its own", func() error { return first(u.Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(1))) }, ""},
		{"watches another", func() error { return first(u.Watch(ctx, "b")) }, denied},
		{"nobody watches", func() error { return first(anyone.Watch(ctx, "b")) }, "user name is empty"},
		{"adds a user", func() error { _, err := u.UserAdd(ctx, "x", "y"); return err }, denied},
		{"defragments", func() error { _, err := u.Defragment(ctx, srv.url); return err }, denied},
		{"takes a snapshot", func() error {
			r, err := u.Snapshot(ctx)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
			}
			return err
		}, denied},
		{"looks at itself", func() error { _, err := u.UserGet(ctx, "u"); return err }, ""},
		{"looks at root", func() error { _, err := u.UserGet(ctx, "root"); return err }, denied},
		{"looks at its role", func() error { _, err := u.RoleGet(ctx, "reader"); return err }, ""},
		{"root is deleted", func() error { _, err := root.UserDelete(ctx, "root"); return err }, "invalid auth management"},
		{"root reads all", func() error { _, err := root.Get(ctx, "\x00", clientv3.WithFromKey()); return err }, ""},
	} {
		err := tt.do()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.what, err, tt.want)
		}
	}
	// A restart keeps it all.
	again := serve(t, Config{Side: side, Store: srv.s})
	if _, err := dial(t, again.url, nil).Get(ctx, "b"); err == nil {
		t.Error("after a restart nobody reads")
	}
	must(root.RoleDelete(ctx, "reader"))
	if _, err := u.Get(ctx, "a/1"); err == nil {
		t.Error("a role that is gone still permits")
	}
	must(root.AuthDisable(ctx))
	must(anyone.Get(ctx, "b"))
}

// Without a token the common name of the client's certificate is the user.
func TestAuthByCertificate(t *testing.T) {
	ca := newAuthority()
	side, err := embedded.Open(embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { side.Close() })
	srv := serve(t, Config{Side: side, BcryptCost: bcrypt.MinCost, TLS: &tls.Config{Certificates: []tls.Certificate{ca.issue("server")},
		ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert}})
	as := func(name string) *clientv3.Client {
		return dial(t, srv.url, &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.issue(name)}})
	}
	root, ctx := as("root"), t.Context()
	must(root.UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true}))
	must(root.UserGrantRole(ctx, "root", "root"))
	must(root.AuthEnable(ctx))
	must(root.Put(ctx, "k", "1"))
	if _, err := as("stranger").Get(ctx, "k"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a stranger reads: %v", err)
	}
}
