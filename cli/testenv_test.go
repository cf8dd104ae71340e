package cli

import (
	"bufio"
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/alloc"
	"github.com/skiff-project/skiff/cluster"
)

// The path is printed once the API answers; file and server end together.
func TestTestenvPrintsAKubeconfigThatWorks(t *testing.T) {
	r, w := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- testenv(ctx, cluster.TestOptions{}, "", w) }()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(line)
	cfg, err := connection(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := kubernetes.NewForConfigOrDie(cfg).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) < 4 {
		t.Errorf("namespaces: %v, %v", list, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("%s is still there", path)
	}
}

func TestAssetsAreLinks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "assets")
	for range 2 { // also over its own links
		if _, err := linkAssets("/bin/true", dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range assetNames {
		if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != "/bin/true" {
			t.Errorf("%s leads to %q, %v", name, to, err)
		}
	}
	os.Remove(filepath.Join(dir, "etcd"))
	if err := os.WriteFile(filepath.Join(dir, "etcd"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := linkAssets("/bin/true", dir); err == nil || !strings.Contains(err.Error(), "no link") {
		t.Errorf("a real etcd was replaced: %v", err)
	}
}

// The flags are those controller-runtime's envtest passes, and what else an operator sets.
func TestAPIServerFlags(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"apiserver.crt", "apiserver.key"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, f := apiServerProgram()
	err := p.parse([]string{
		"--advertise-address=127.0.0.1", "--allow-privileged=true", "--authorization-mode=RBAC", "--bind-address=127.0.0.1",
		"--cert-dir=" + dir, "--client-ca-file=ca.crt", "--disable-admission-plugins=ServiceAccount",
		"--etcd-servers=http://127.0.0.1:2379", "--secure-port=1234", "--service-account-issuer=https://127.0.0.1:1234/",
		"--service-account-key-file=sa.crt", "--service-account-signing-key-file=sa.key", "--service-cluster-ip-range=10.0.0.0/24",
		"--service-node-port-range=30000+10", "--event-ttl=30m", "--request-timeout=2m", "--min-request-timeout=600", "--profiling",
		"--etcd-compaction-interval=0", "--endpoint-reconciler-type=none", "--external-hostname=api.example.com", "--kubelet-preferred-address-types=Hostname",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.settle(p); err != nil {
		t.Fatal(err)
	}
	o := f.opts
	if o.Address != "127.0.0.1:1234" || o.CertFile != filepath.Join(dir, "apiserver.crt") || o.ClientCAFile != "ca.crt" ||
		o.Issuer != "https://127.0.0.1:1234/" || o.AdvertiseAddress != netip.MustParseAddr("127.0.0.1") || o.SigningKeyFile != "sa.key" {
		t.Errorf("options %+v", o)
	}
	if want := (apiserver.Tuning{
		Limits: apiserver.Limits{ReadOnly: 400, Mutating: 200}, NodePorts: alloc.PortRange{First: 30000, Last: 30010},
		EventTTL: 30 * time.Minute, RequestTimeout: 2 * time.Minute, MinWatchTimeout: 10 * time.Minute, MaxStreams: 1000, Profiling: true,
		CompactionInterval: -1, NoEndpoints: true, ExternalHost: "api.example.com", KubeletAddresses: []corev1.NodeAddressType{corev1.NodeHostName},
	}); !reflect.DeepEqual(o.Tuning, want) {
		t.Errorf("%+v, want %+v", o.Tuning, want)
	}
}

// What a cluster's API server is told beyond what the cluster knows.
func TestAPISettings(t *testing.T) {
	policy := write(t, "policy.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
	s, err := apiSettings([]string{"audit-policy-file=" + policy, "--audit-log-path=/var/log/audit.log", "enable-admission-plugins=AlwaysPullImages", "event-ttl=2h"})
	if err != nil || s.Audit.Policy == nil || s.Audit.Log.Path != "/var/log/audit.log" || s.EventTTL != 2*time.Hour || len(s.Access.Authorizers) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := apiSettings(nil); err != nil || !reflect.DeepEqual(s, cluster.APISettings{}) {
		t.Errorf("nothing: %+v, %v", s, err)
	}
	if s, err := apiSettings([]string{"event-ttl=2h"}); err != nil || s.NoPrivileged || s.Access.NoBootstrapTokens || s.NoTokenExtension {
		t.Errorf("a cluster's own defaults: %+v, %v", s, err)
	}
	s, err = apiSettings([]string{"allow-privileged=false", "enable-bootstrap-token-auth=false", "service-account-extend-token-expiration=false",
		"service-account-jwks-uri=https://x/keys", "token-auth-file=f", "feature-gates=WatchList=true"})
	if err != nil || !s.NoPrivileged || !s.Access.NoBootstrapTokens || !s.NoTokenExtension || s.JWKSURI != "https://x/keys" || s.Access.TokenFile != "f" {
		t.Errorf("%+v, %v", s, err)
	}
	for arg, want := range map[string]string{
		"etcd-servers=http://127.0.0.1:2379": "etcd-servers is the cluster's own business",
		"secure-port=1":                      "secure-port is the cluster's own business",
		"nonsense=1":                         "--nonsense is not a flag this kube-apiserver has",
		"event-ttl=soon":                     `invalid argument "soon"`,
		"authorization-mode=ABAC":            "ABAC is not supported",
		"audit-policy-file=/none":            "open /none",
		"enable-admission-plugins=Nonsense":  "Nonsense",
	} {
		if _, err := apiSettings([]string{arg}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", arg, err, want)
		}
	}
}
