package etcd

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/cli/etcdctl"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
)

func noEnv(string) (string, bool) { return "", false }

func TestFlagsThatAreRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel() // a flag that is not refused starts a server
	for _, tt := range []struct{ args, want string }{
		{"--no-such-flag=1", "flag provided but not defined: -no-such-flag"},
		{"--no-such-flag=1", "(skiff etcd --help lists the flags)"},
		{"--v2-deprecation not-yet", "gone, write-only,"},
		{"--peer-cert-file x", "--peer-cert-file and --peer-key-file must be given together"},
		{"--peer-auto-tls --peer-client-cert-auth", "needs --peer-trusted-ca-file"},
		{"--peer-auto-tls --peer-cert-allowed-cn a --peer-cert-allowed-hostname b", "exclude each other"},
		{"--listen-peer-urls https://127.0.0.1:0 --listen-client-urls http://127.0.0.1:0", "(--peer-cert-file, --peer-key-file) must be provided for peer url"},
		{"--auth-token jwt,sign-method=RS256", "need pub-key, priv-key or both"},
		{"--auth-token jwt,sign-method=XX,priv-key=/x", `"XX" of JWT tokens is unknown`},
		{"--auth-token jwt,sign-method=RS256,pub-key=testdata/jwt.pub", "does not fit sign-method RS256"},
		{"extra", `unexpected argument "extra"`},
		{"--initial-cluster a=http://1:2380,b=http://2:2380", "names 2 members"},
		{"--initial-cluster a=http://1:2380", `couldn't find local name "default"`},
		{"--auto-compaction-mode x", "periodic or revision"},
		{"--auto-compaction-retention x", "does not fit"},
		{"--log-level x", "unknown level"},
		{"--cert-file x", "must be given together"},
		{"--auto-tls --client-cert-auth", "needs --trusted-ca-file"},
		{"--auto-tls --tls-min-version TLS1.3 --tls-max-version TLS1.2", "the least first"},
		{"--listen-client-urls ftp://x", "scheme must be"},
		{"--listen-client-urls https://127.0.0.1:0", "--cert-file"},
	} {
		args := append(strings.Fields(tt.args), "--data-dir", t.TempDir())
		if strings.HasPrefix(tt.args, "extra") {
			args = []string{"extra"}
		}
		err := run(ctx, args, noEnv, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// The flags kubeadm gives its etcd.
func TestKubeadmFlags(t *testing.T) {
	o := newOptions()
	pki := filepath.Join(t.TempDir(), "peer")
	if err := selfSigned(pki+".crt", pki+".key", nil, 1); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(strings.ReplaceAll(`--advertise-client-urls=https://10.0.0.1:2379 --client-cert-auth=false --data-dir=/var/lib/etcd
		--feature-gates=InitialCorruptCheck=true --watch-progress-notify-interval=5s --initial-advertise-peer-urls=https://10.0.0.1:2380
		--initial-cluster=n1=https://10.0.0.1:2380 --listen-client-urls=http://127.0.0.1:2379 --listen-metrics-urls=http://127.0.0.1:2381
		--listen-peer-urls=https://10.0.0.1:2380 --name=n1 --peer-cert-file=PKI.crt --peer-client-cert-auth=true --peer-key-file=PKI.key
		--peer-trusted-ca-file=PKI.crt --snapshot-count=10000 --experimental-initial-corrupt-check=true`, "PKI", pki))
	env := func(name string) (string, bool) {
		if name == "ETCD_MAX_TXN_OPS" {
			return "7", true
		}
		return "", false
	}
	if err := o.parse(args, env); err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "n1" || cfg.AdvertiseClient[0] != "https://10.0.0.1:2379" || cfg.Metrics[0] != "http://127.0.0.1:2381" || cfg.Peer[0] != "https://10.0.0.1:2380" || cfg.PeerTLS == nil || cfg.MaxTxnOps != 7 {
		t.Errorf("%+v", cfg)
	}
}

func TestConfigFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "etcd.yaml")
	os.WriteFile(name, []byte("name: filed\nquota-backend-bytes: 4294967296\nclient-transport-security:\n  auto-tls: true\npeer-transport-security:\n  cert-file: x\n"), 0o600)
	o := newOptions()
	if err := o.parse([]string{"--config-file", name}, noEnv); err != nil {
		t.Fatal(err)
	}
	if o.name != "filed" || o.quota != 4<<30 || !o.client.auto {
		t.Errorf("%+v", o)
	}
	os.WriteFile(name, []byte("nosuch: 1\n"), 0o600)
	if err := newOptions().parse([]string{"--config-file", name}, noEnv); err == nil || !strings.Contains(err.Error(), `"nosuch"`) {
		t.Errorf("unknown field: %v", err)
	}
}

// The IDs are those stock etcd gives a default member.
func TestIDs(t *testing.T) {
	cluster, member := standalone.IDs([]string{"http://localhost:2380"}, "etcd-cluster")
	if cluster != 0xcdf818194e3a8c32 || member != 0x8e9e05c52164694d {
		t.Errorf("cluster %x member %x", cluster, member)
	}
}

func TestServesAndStops(t *testing.T) {
	o := newOptions()
	if err := o.parse(strings.Fields("--listen-peer-urls= --listen-client-urls http://127.0.0.1:0 --listen-metrics-urls http://127.0.0.1:0 --log-level error --data-dir "+t.TempDir()), noEnv); err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, done := make(chan []net.Addr, 1), make(chan error, 1)
	go func() { done <- standalone.Run(ctx, cfg, func(a []net.Addr) { ready <- a }) }()
	var addrs []net.Addr
	select {
	case addrs = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{addrs[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		listener  int
		path, has string
	}{
		{0, "/v2/keys", `"dir":true`}, {1, "/health", `"true"`},
		{1, "/metrics", `etcd_disk_wal_fsync_duration_seconds_count [1-9]`}, {1, "/metrics", "etcd_disk_wal_write_bytes_total [1-9]"},
	} {
		resp, err := http.Get("http://" + addrs[tt.listener].String() + tt.path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !regexp.MustCompile(tt.has).Match(body) {
			t.Errorf("%s: %s %v, want %s", tt.path, resp.Status, err, tt.has)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
}

// etcdctl's v2 commands against the server; the output is the stock client's.
func TestV2Commands(t *testing.T) {
	addrs, stop := serve(t, t.TempDir(), "--listen-peer-urls=")
	defer stop()
	env := func(addr string) func(string) string {
		return func(name string) string {
			if name == "ETCDCTL_ENDPOINTS" {
				return addr
			}
			return ""
		}
	}(addrs[0].String())
	for _, tt := range []struct {
		line, want string
		code       int
	}{
		{"set key1 value1", "value1\n", 0},
		{"get key1", "value1\n", 0},
		{"get nokey", "Error:  100: Key not found (/nokey) [2]\n", 4},
		{"-o extended get key1", "Key: /key1\nCreated-Index: 2\nModified-Index: 2\nTTL: 0\nIndex: 2\n\nvalue1\n", 0},
		{"-o json get key1", `{"action":"get","node":{"key":"/key1","value":"value1","nodes":null,"createdIndex":2,"modifiedIndex":2},"prevNode":null}` + "\n", 0},
		{"mk key1 x", "Error:  105: Key already exists (/key1) [2]\n", 4},
		{"mkdir d", "", 0},
		{"mk --in-order d/q x", "x\n", 0},
		{"update key1 v2", "v2\n", 0},
		{"set key1", "v3\n", 0},
		{"set --swap-with-value x key1 v4", "Error:  101: Compare failed ([x != v3]) [6]\n", 4},
		{"ls", "/d\n/key1\n", 0},
		{"ls -p --recursive d", "/d/q/\n/d/q/00000000000000000004\n", 0},
		{"get d", "Error:  /d: is a directory\n", 1},
		{"watch --after-index 1 key1", "value1\n", 0},
		{"rmdir d", "Error:  108: Directory not empty (/d) [6]\n", 4},
		{"rm -r d", "", 0},
		{"rm key1", "PrevNode.Value: v3\n", 0},
		{"member list", "8e9e05c52164694d: name=default peerURLs=http://localhost:2380 clientURLs=http://127.0.0.1:0 isLeader=true\n", 0},
		{"member add x http://x:1", "Error:  this server is a cluster of one: members can neither be added, changed nor removed\n", 4},
		{"get", "Error:  key required\n", 1},
	} {
		var out strings.Builder
		code := etcdctl.RunV2(strings.Fields(tt.line), env, strings.NewReader("v3"), &out, &out)
		if out.String() != tt.want || code != tt.code {
			t.Errorf("%s: %q, status %d; want %q, %d", tt.line, out.String(), code, tt.want, tt.code)
		}
	}
}

func TestFeatureGates(t *testing.T) {
	for args, want := range map[string]any{
		"--feature-gates=LeaseCheckpoint=true,FastLeaseKeepAlive=false": 5 * time.Minute,
		"--experimental-enable-lease-checkpoint":                        5 * time.Minute,
		"--feature-gates=LeaseCheckpoint=false":                         time.Duration(0),
		"":                                                              time.Duration(0),
		"--feature-gates=Nonsense=true":                                 "unrecognized feature gate: Nonsense",
		"--feature-gates=LeaseCheckpoint":                               "missing bool value for LeaseCheckpoint",
		"--feature-gates=LeaseCheckpoint=maybe":                         "invalid value of LeaseCheckpoint=maybe",
	} {
		o := newOptions()
		err := o.parse(strings.Fields(args), noEnv)
		var cfg standalone.Config
		if err == nil {
			cfg, err = o.config()
		}
		if text, bad := want.(string); bad {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %s", args, err, text)
			}
		} else if err != nil || cfg.LeaseCheckpoint != want {
			t.Errorf("%s: %v, %v, want %v", args, cfg.LeaseCheckpoint, err, want)
		}
	}
}
