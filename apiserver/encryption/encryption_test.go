package encryption

import (
	"bytes"
	"context"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func config(rules string) []byte {
	return []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + rules)
}

func secret(b byte, n int) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, n))
}

func keyed(provider, name string, b byte) string {
	return provider + ": {keys: [{name: " + name + ", secret: " + secret(b, 32) + "}]}"
}

func rule(resources string, providers ...string) string {
	return "- resources: [" + resources + "]\n  providers:\n  - " + strings.Join(providers, "\n  - ") + "\n"
}

func set(t *testing.T, rules ...string) *Set {
	t.Helper()
	s, err := New(config(strings.Join(rules, "")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

const key = "/registry/secrets/default/a"

func secrets(s *Set) Now { return s.For(schema.GroupResource{Resource: "secrets"}).Now() }

func TestWhatIsSealedOpensAgain(t *testing.T) {
	for _, provider := range []string{"aesgcm", "aescbc", "secretbox"} {
		t.Run(provider, func(t *testing.T) {
			n := secrets(set(t, rule("secrets", keyed(provider, "k", 1), "identity: {}")))
			for _, plain := range []string{"", "x", strings.Repeat("0123456789abcdef", 100)} {
				sealed, err := n.Seal(key, []byte(plain))
				if err != nil {
					t.Fatal(err)
				}
				if want := "k8s:enc:" + provider + ":v1:k:"; !bytes.HasPrefix(sealed, []byte(want)) {
					t.Fatalf("sealed as %.40q, want the prefix %q", sealed, want)
				}
				if len(plain) > 1 && bytes.Contains(sealed, []byte(plain)) {
					t.Fatal("the value is there in the clear")
				}
				got, stale, err := n.Open(key, sealed)
				if err != nil || stale || string(got) != plain {
					t.Fatalf("opened as %.20q, stale %v, %v", got, stale, err)
				}
				for i := len(Prefix); i < len(sealed); i++ { // no broken value may crash or, where it is authenticated, open
					broken := bytes.Clone(sealed)
					broken[i] ^= 1
					if _, _, err := n.Open(key, broken); err == nil && provider != "aescbc" {
						t.Fatalf("byte %d changed, and it opens", i)
					}
					n.Open(key, sealed[:i]) //nolint:errcheck // it must not panic
				}
			}
		})
	}
}

// testdata/upstream.txt was written by the transformers of kube-apiserver
// v1.37.2: aesgcm, aescbc, secretbox with key 0x01…, and KMS v2 with the
// plug-in below, each under the key /registry/secrets/default/a.
func TestUpstreamsBytesOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	p, id := &plugin{}, "one"
	p.id.Store(&id)
	p.serve(t, path)
	n := secrets(set(t, rule("secrets", keyed("aesgcm", "k", 1), keyed("aescbc", "k", 1), keyed("secretbox", "k", 1),
		"kms: {apiVersion: v2, name: vault, endpoint: 'unix://"+path+"'}")))
	data, err := os.ReadFile("testdata/upstream.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(data))
	if len(lines) != 4 {
		t.Fatalf("%d values, want 4", len(lines))
	}
	for _, line := range lines {
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			t.Fatal(err)
		}
		if plain, _, err := n.Open(key, raw); err != nil || string(plain) != "k8s\x00from upstream" {
			t.Errorf("%.24q: %q, %v", raw, plain, err)
		}
	}
}

func TestAValueIsBoundToItsKey(t *testing.T) {
	n := secrets(set(t, rule("secrets", keyed("aesgcm", "k", 1))))
	sealed, _ := n.Seal(key, []byte("x"))
	if _, _, err := n.Open("/registry/secrets/other/a", sealed); err == nil {
		t.Error("a value moved to another key opens")
	}
}

func TestThePrefixInEtcdIsWhatValuesAreBoundTo(t *testing.T) {
	data := config(rule("secrets", keyed("aesgcm", "k", 1)))
	s, err := New(data, Options{Root: "/registry/", Stored: "/mine/"})
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := secrets(s).Seal("/registry/secrets/default/a", []byte("x"))
	plainly := secrets(set(t, rule("secrets", keyed("aesgcm", "k", 1))))
	if _, _, err := plainly.Open("/mine/secrets/default/a", sealed); err != nil {
		t.Error(err)
	}
}

func TestErrorsAreUpstreams(t *testing.T) {
	one := rule("secrets", keyed("aesgcm", "k", 1))
	sealed, _ := secrets(set(t, one)).Seal(key, []byte("x"))
	for _, c := range []struct{ name, rules, value, want string }{
		{"key not there", rule("secrets", keyed("aesgcm", "other", 1), "identity: {}"), string(sealed), "no matching key was found for the provided AES transformer"},
		{"another provider", rule("secrets", keyed("secretbox", "k", 1)), string(sealed), "no matching prefix found"},
		{"identity only", rule("secrets", "identity: {}"), string(sealed), "no matching prefix found"},
		{"no rule", rule("configmaps", "identity: {}"), string(sealed), "identity transformer tried to read encrypted data"},
		{"in the clear, no identity", one, "k8s\x00", "no matching prefix found"},
		{"wrong key", rule("secrets", keyed("aesgcm", "k", 2)), string(sealed), "cipher: message authentication failed"},
	} {
		if _, _, err := secrets(set(t, c.rules)).Open(key, []byte(c.value)); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestAnOldKeyReadsAndIsStale(t *testing.T) {
	old := rule("secrets", keyed("aescbc", "old", 1))
	sealed, _ := secrets(set(t, old)).Seal(key, []byte("x"))
	both := set(t, rule("secrets", "aescbc: {keys: [{name: new, secret: "+secret(2, 32)+"}, {name: old, secret: "+secret(1, 32)+"}]}", "identity: {}"))
	for _, v := range [][]byte{sealed, []byte("x")} {
		if plain, stale, err := secrets(both).Open(key, v); err != nil || !stale || string(plain) != "x" {
			t.Errorf("%.20q: %q, stale %v, %v", v, plain, stale, err)
		}
	}
	// Two providers of one kind: the first cannot open it, the second can.
	split := set(t, rule("secrets", keyed("aescbc", "new", 2), keyed("aescbc", "old", 1)))
	if plain, stale, err := secrets(split).Open(key, sealed); err != nil || !stale || string(plain) != "x" {
		t.Errorf("%q, stale %v, %v", plain, stale, err)
	}
}

func TestWhichRuleHoldsForAResource(t *testing.T) {
	s := set(t, rule("events", "identity: {}"), rule("secrets, pandas.bears.example", keyed("aesgcm", "a", 1)),
		rule("'*.apps'", keyed("aesgcm", "b", 1)), rule("'*.*'", keyed("aesgcm", "c", 1)))
	for _, c := range []struct{ group, resource, want string }{
		{"", "events", "x"}, {"", "secrets", "k8s:enc:aesgcm:v1:a:"}, {"bears.example", "pandas", "k8s:enc:aesgcm:v1:a:"},
		{"apps", "deployments", "k8s:enc:aesgcm:v1:b:"}, {"", "pods", "k8s:enc:aesgcm:v1:c:"}, {"new.example", "things", "k8s:enc:aesgcm:v1:c:"},
	} {
		v, err := s.For(schema.GroupResource{Group: c.group, Resource: c.resource}).Now().Seal("/k", []byte("x"))
		if err != nil || !strings.HasPrefix(string(v), c.want) {
			t.Errorf("%s.%s: %.30q, %v, want %s", c.resource, c.group, v, err, c.want)
		}
	}
	var none *Set
	if v, _ := none.For(schema.GroupResource{Resource: "secrets"}).Now().Seal("/k", []byte("x")); string(v) != "x" {
		t.Errorf("without a configuration: %q", v)
	}
}

func TestBadConfigurations(t *testing.T) {
	for want, text := range map[string]string{
		"it is a v1 Pod":             "apiVersion: v1\nkind: Pod\n",
		"unknown field":              string(config(rule("secrets", "identity: {}"))) + "more: 1\n",
		"at least one resources":     "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n",
		"more than one provider":     string(config("- resources: [secrets]\n  providers: [{identity: {}, " + keyed("aesgcm", "k", 1) + "}]\n")),
		"does not contain any":       string(config("- resources: [secrets]\n  providers: [{}]\n")),
		"got 5, expected one of":     string(config(rule("secrets", "aesgcm: {keys: [{name: k, secret: "+secret(1, 5)+"}]}"))),
		"must be base64":             string(config(rule("secrets", "aesgcm: {keys: [{name: k, secret: '%'}]}"))),
		"overlapping":                string(config(rule("secrets, '*.'", "identity: {}"))),
		"multiple times":             string(config(rule("secrets, secrets", "identity: {}"))),
		"capital letters":            string(config(rule("Secrets", "identity: {}"))),
		"use '*.' to encrypt":        string(config(rule("'*'", "identity: {}"))),
		"Use 'events' instead":       string(config(rule("events.events.k8s.io", "identity: {}"))),
		"across groups":              string(config(rule("'pods.*'", "identity: {}"))),
		`masked by earlier rule "*.`: string(config(rule("'*.*'", "identity: {}") + rule("secrets", "identity: {}"))),
		"only unix is supported":     string(config(rule("secrets", "kms: {apiVersion: v2, name: k, endpoint: 'tcp://1'}"))),
		"KMSv1 is deprecated":        string(config(rule("secrets", "kms: {name: k, endpoint: 'unix:///k'}"))),
		"names must be unique":       string(config(rule("secrets", "kms: {apiVersion: v2, name: k, endpoint: 'unix:///k'}", "kms: {apiVersion: v2, name: k, endpoint: 'unix:///k'}"))),
	} {
		_, err := New([]byte(text), Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret(1, 5)) {
			t.Errorf("a secret is in the error: %v", err)
		}
	}
}

func TestAKeyIsAddedAndTheOldDropped(t *testing.T) {
	c, err := Parse(Generate("key1"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := secrets(mustNew(t, c.YAML())).Seal(key, []byte("x"))
	rule, name, err := c.AddKey(schema.GroupResource{Resource: "secrets"})
	if err != nil || rule != 0 || name != "key2" {
		t.Fatal(rule, name, err)
	}
	n := secrets(mustNew(t, c.YAML()))
	if _, stale, err := n.Open(key, sealed); err != nil || !stale {
		t.Fatal("with both keys:", stale, err)
	}
	again, _ := n.Seal(key, []byte("x"))
	c.DropOldKeys(rule)
	n = secrets(mustNew(t, c.YAML()))
	if _, _, err := n.Open(key, sealed); err == nil {
		t.Error("the old key still reads")
	}
	if _, stale, err := n.Open(key, again); err != nil || stale {
		t.Error("the new key:", stale, err)
	}
	if _, _, err := c.AddKey(schema.GroupResource{Resource: "pods"}); err == nil {
		t.Error("a key for what is not encrypted")
	}
}

func mustNew(t *testing.T, data []byte) *Set {
	t.Helper()
	s, err := New(data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// plugin is a KMS v2 plug-in whose key is one byte.
type plugin struct {
	id    atomic.Pointer[string]
	calls atomic.Int32
	sick  atomic.Bool
}

func (p *plugin) serve(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	method := func(name string, notesAt int, answer func(req *message) *message) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			req := &message{notesAt: notesAt}
			if err := dec(req); err != nil {
				return nil, err
			}
			return answer(req), nil
		}}
	}
	flip := func(data []byte) []byte {
		out := bytes.Clone(data)
		for i := range out {
			out[i] ^= 0x55
		}
		return out
	}
	srv := grpc.NewServer(grpc.ForceServerCodec(messages{}))
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "v2.KeyManagementService", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
		method("Status", 0, func(*message) *message {
			health := "ok"
			if p.sick.Load() {
				health = "sick"
			}
			return &message{strings: [4][]byte{[]byte("v2"), []byte(health), []byte(*p.id.Load())}}
		}),
		method("Encrypt", 0, func(req *message) *message {
			return &message{notesAt: 3, strings: [4][]byte{flip(req.field(1)), []byte(*p.id.Load())}, notes: map[string][]byte{"version.example.com": []byte("1")}}
		}),
		method("Decrypt", 4, func(req *message) *message {
			p.calls.Add(1)
			if string(req.notes["version.example.com"]) != "1" || req.text(3) == "" {
				return &message{}
			}
			return &message{strings: [4][]byte{flip(req.field(1))}}
		}),
	}}, p)
	go srv.Serve(ln) //nolint:errcheck // it ends with the test
	t.Cleanup(srv.Stop)
}

func TestKMSv2(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	p := &plugin{}
	first, second := "one", "two"
	p.id.Store(&first)
	p.serve(t, path)
	text := rule("secrets", "kms: {apiVersion: v2, name: vault, endpoint: 'unix://"+path+"'}", "identity: {}")
	s := set(t, text)
	if err := s.Health(); err != nil {
		t.Fatal(err)
	}
	sealed, err := secrets(s).Seal(key, []byte("x"))
	if err != nil || !bytes.HasPrefix(sealed, []byte("k8s:enc:kms:v2:vault:")) {
		t.Fatalf("%.30q, %v", sealed, err)
	}
	if plain, stale, err := secrets(s).Open(key, sealed); err != nil || stale || string(plain) != "x" || p.calls.Load() != 0 {
		t.Fatalf("%q, stale %v, %v, %d calls", plain, stale, err, p.calls.Load())
	}
	// Another server knows none of the seeds: it asks once.
	other := set(t, text)
	for range 3 {
		if plain, _, err := secrets(other).Open(key, sealed); err != nil || string(plain) != "x" {
			t.Fatalf("%q, %v", plain, err)
		}
	}
	if n := p.calls.Load(); n != 1 {
		t.Errorf("the plug-in was asked %d times, want 1", n)
	}
	// The plug-in's key changes: new values have it, old ones are stale.
	p.id.Store(&second)
	s.current.Load().kms[0].prime(t.Context())
	if _, stale, err := secrets(s).Open(key, sealed); err != nil || !stale {
		t.Errorf("after the key changed: stale %v, %v", stale, err)
	}
	p.sick.Store(true)
	s.current.Load().kms[0].prime(t.Context())
	if err := s.Health(); err == nil || !strings.Contains(err.Error(), "got unexpected healthz status: sick") {
		t.Error(err)
	}
	if _, err := secrets(s).Seal(key, []byte("x")); err != nil {
		t.Error("for three minutes the last seed goes on:", err)
	}
}

func TestAPluginThatIsNotThere(t *testing.T) {
	s := set(t, rule("secrets", "kms: {apiVersion: v2, name: vault, timeout: 10ms, endpoint: 'unix://"+t.TempDir()+"/none'}", "identity: {}"))
	if s.Health() == nil {
		t.Error("healthy without a plug-in")
	}
	if _, err := secrets(s).Seal(key, []byte("x")); err == nil {
		t.Error("sealed without a key")
	}
	if plain, _, err := secrets(s).Open(key, []byte("x")); err != nil || string(plain) != "x" {
		t.Error(string(plain), err)
	}
}

func FuzzOpen(f *testing.F) {
	s, err := New(config(rule("secrets", keyed("aesgcm", "k", 1), keyed("aescbc", "k", 1), keyed("secretbox", "k", 1),
		"kms: {apiVersion: v2, name: v, timeout: 1ms, endpoint: 'unix:///nonexistent'}")), Options{})
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{"aesgcm:v1:k:", "aescbc:v1:k:", "secretbox:v1:k:", "kms:v2:v:\x0a\x01x"} {
		f.Add([]byte(Prefix + p + "0123456789abcdef0123456789abcdef"))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		secrets(s).Open(key, data) //nolint:errcheck // it must not panic
	})
}
