package bootstrap

import (
	"crypto/x509"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clocktesting "k8s.io/utils/clock/testing"
)

var start = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func options(dir string, at time.Time) Options {
	return Options{DataDir: dir, NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, Clock: clocktesting.NewFakePassiveClock(at)}
}

func ensure(t *testing.T, o Options) *Assets {
	t.Helper()
	a, err := Ensure(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// content reads every file below dir.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// changed lists the files that differ.
func changed(a, b map[string]string) (out []string) {
	for name, data := range b {
		if a[name] != data {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func TestLayoutIsKubeadms(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	begin := time.Now()
	a := ensure(t, options(dir, start))
	t.Logf("fresh in %v", time.Since(begin))
	want := []string{
		"admin.conf", "controller-manager.conf", "kube-proxy.conf", "kubelet.conf",
		"pki/apiserver-etcd-client.crt", "pki/apiserver-etcd-client.key",
		"pki/apiserver-kubelet-client.crt", "pki/apiserver-kubelet-client.key", "pki/apiserver.crt", "pki/apiserver.key",
		"pki/ca.crt", "pki/ca.key",
		"pki/etcd/ca.crt", "pki/etcd/ca.key", "pki/etcd/healthcheck-client.crt", "pki/etcd/healthcheck-client.key",
		"pki/etcd/peer.crt", "pki/etcd/peer.key", "pki/etcd/server.crt", "pki/etcd/server.key",
		"pki/front-proxy-ca.crt", "pki/front-proxy-ca.key", "pki/front-proxy-client.crt", "pki/front-proxy-client.key",
		"pki/kubelet-client.crt", "pki/kubelet-client.key", "pki/kubelet.crt", "pki/kubelet.key",
		"pki/sa.key", "pki/sa.pub", "scheduler.conf",
	}
	got := changed(nil, content(t, dir))
	if !slices.Equal(got, want) {
		t.Errorf("files\n got %v\nwant %v", got, want)
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, _ error) error {
		fi, _ := d.Info()
		perm := fs.FileMode(0o600)
		if d.IsDir() {
			perm = 0o700
		} else if strings.HasSuffix(p, ".crt") {
			perm = 0o644
		}
		if fi.Mode().Perm() != perm {
			t.Errorf("%s has permissions %v, want %v", p, fi.Mode().Perm(), perm)
		}
		return nil
	})
	if !a.Expiry().Equal(start.Add(leafLife)) {
		t.Errorf("expiry %v", a.Expiry())
	}
}

func TestCertificatesServeTheirPurpose(t *testing.T) {
	a := ensure(t, options(t.TempDir(), start))
	for _, c := range []struct {
		name  string
		pair  Pair
		ca    Pair
		usage x509.ExtKeyUsage
		hosts []string
		cn    string
		orgs  string
	}{
		{"API server", a.APIServer, a.CA, x509.ExtKeyUsageServerAuth, []string{"n1", "localhost", "127.0.0.1", "::1", "192.0.2.7", "10.96.0.1", "kubernetes", "kubernetes.default.svc.cluster.local"}, "kube-apiserver", ""},
		{"kubelet", a.Kubelet, a.CA, x509.ExtKeyUsageServerAuth, []string{"n1", "192.0.2.7", "127.0.0.1"}, "system:node:n1", "system:nodes"},
		{"kubelet client", a.KubeletClient, a.CA, x509.ExtKeyUsageClientAuth, nil, "system:node:n1", "system:nodes"},
		{"API server to kubelet", a.APIServerKubeletClient, a.CA, x509.ExtKeyUsageClientAuth, nil, "kube-apiserver-kubelet-client", "kubeadm:cluster-admins system:masters"},
		{"API server to etcd", a.APIServerEtcd, a.EtcdCA, x509.ExtKeyUsageClientAuth, nil, "kube-apiserver-etcd-client", ""},
		{"etcd", a.EtcdServer, a.EtcdCA, x509.ExtKeyUsageServerAuth, []string{"n1", "localhost", "127.0.0.1"}, "n1", ""},
		{"etcd peer", a.EtcdPeer, a.EtcdCA, x509.ExtKeyUsageClientAuth, nil, "n1", ""},
		{"etcd health check", a.EtcdHealthcheck, a.EtcdCA, x509.ExtKeyUsageClientAuth, nil, "kube-etcd-healthcheck-client", ""},
		{"front proxy", a.FrontProxyClient, a.FrontProxyCA, x509.ExtKeyUsageClientAuth, nil, "front-proxy-client", ""},
		{"admin", a.Admin, a.CA, x509.ExtKeyUsageClientAuth, nil, "kubernetes-admin", "kubeadm:cluster-admins system:masters"},
		{"scheduler", a.Scheduler, a.CA, x509.ExtKeyUsageClientAuth, nil, "system:kube-scheduler", ""},
	} {
		if c.pair.Cert.Subject.CommonName != c.cn || strings.Join(slices.Sorted(slices.Values(c.pair.Cert.Subject.Organization)), " ") != c.orgs {
			t.Errorf("%s: subject %v", c.name, c.pair.Cert.Subject)
		}
		opts := x509.VerifyOptions{Roots: c.ca.Pool(), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{c.usage}}
		for _, host := range append(c.hosts, "") {
			opts.DNSName = host
			if _, err := c.pair.Cert.Verify(opts); err != nil {
				t.Errorf("%s for %q: %v", c.name, host, err)
			}
		}
	}
	if _, err := a.APIServer.Cert.Verify(x509.VerifyOptions{Roots: a.EtcdCA.Pool(), CurrentTime: start}); err == nil {
		t.Error("the etcd authority vouches for the API server")
	}
	config, err := clientcmd.LoadFromFile(a.AdminConf)
	if err != nil || config.Clusters["kubernetes"].Server != "https://127.0.0.1:6443" || config.CurrentContext != "kubernetes-admin@kubernetes" {
		t.Errorf("%+v %v", config, err)
	}
}

func TestKeepsRenewsAndRefits(t *testing.T) {
	dir := t.TempDir()
	ensure(t, options(dir, start))
	before := content(t, dir)
	leaves := func(confs ...string) []string {
		var out []string
		for name := range before {
			if strings.HasSuffix(name, ".crt") && !strings.HasSuffix(name, "ca.crt") {
				out = append(out, name)
			}
		}
		out = append(out, confs...)
		slices.Sort(out)
		return out
	}
	all := leaves("admin.conf", "controller-manager.conf", "kube-proxy.conf", "kubelet.conf", "scheduler.conf")
	otherName := options(dir, start)
	otherName.NodeIPs = append(otherName.NodeIPs, netip.MustParseAddr("192.0.2.8"))
	otherPort := options(dir, start)
	otherPort.Server = "https://127.0.0.1:7443"
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"nothing to do", options(dir, start.Add(time.Hour)), nil},
		{"two thirds of the way", options(dir, start.Add(leafLife*2/3-time.Hour)), nil},
		{"another address", otherName, []string{"pki/apiserver.crt", "pki/etcd/peer.crt", "pki/etcd/server.crt", "pki/kubelet.crt"}},
		{"another port", otherPort, []string{"admin.conf", "controller-manager.conf", "kube-proxy.conf", "kubelet.conf", "scheduler.conf"}},
		{"due", options(dir, start.Add(leafLife*2/3+time.Hour)), all},
	} {
		t.Run(c.name, func(t *testing.T) {
			ensure(t, c.o)
			if got := changed(before, content(t, dir)); !slices.Equal(got, c.want) {
				t.Errorf("changed\n got %v\nwant %v", got, c.want)
			}
			before = content(t, dir)
			ensure(t, c.o)
			if got := changed(before, content(t, dir)); got != nil {
				t.Errorf("the second time changed %v", got)
			}
			restoreDefaults(t, dir, c.o)
			before = content(t, dir)
		})
	}
}

// restoreDefaults brings the assets back to what options() asks for.
func restoreDefaults(t *testing.T, dir string, o Options) {
	t.Helper()
	d := options(dir, start)
	d.Clock = o.Clock
	ensure(t, d)
}

func TestMissingAndDamaged(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(dir string) error
		want string // part of the error; empty: repaired
	}{
		{"certificate missing", rm("pki/apiserver.crt"), ""},
		{"leaf key missing", rm("pki/apiserver.key"), ""},
		{"kubeconfig missing", rm("admin.conf"), ""},
		{"public key missing", rm("pki/sa.pub"), ""},
		{"CA certificate missing", rm("pki/ca.crt"), ""},
		{"CA and key missing", rm("pki/ca.crt", "pki/ca.key"), ""},
		{"CA key missing", rm("pki/ca.key"), "pki/ca.key is missing"},
		{"token key missing", rm("pki/sa.key"), "pki/sa.key is missing"},
		{"certificate empty", write("pki/apiserver.crt", ""), "pki/apiserver.crt is damaged: it holds no PEM certificate"},
		{"certificate garbled", write("pki/etcd/peer.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "pki/etcd/peer.crt is damaged"},
		{"key garbled", write("pki/apiserver.key", "x"), "pki/apiserver.key is damaged: it holds no PEM private key"},
		{"kubeconfig garbled", write("admin.conf", "{"), "admin.conf is damaged"},
		{"kubeconfig of nothing", write("scheduler.conf", "kind: Config\napiVersion: v1\n"), "scheduler.conf is damaged"},
		{"another pair's key", swap("pki/apiserver.key", "pki/kubelet.key"), "pki/apiserver.crt does not belong to the key"},
		{"another CA's key", swap("pki/ca.key", "pki/front-proxy-ca.key"), "pki/ca.crt does not belong to the key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ensure(t, options(dir, start))
			if err := c.do(dir); err != nil {
				t.Fatal(err)
			}
			before := content(t, dir)
			a, err := Ensure(options(dir, start.Add(time.Minute)))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v", err)
				}
				if got := changed(before, content(t, dir)); got != nil {
					t.Errorf("changed %v all the same", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range a.leaves()[:4] {
				if !matches(p.Cert, p.Key) {
					t.Errorf("%s does not belong to its key", p.CertFile)
				}
			}
			if _, err := a.APIServer.Cert.Verify(x509.VerifyOptions{Roots: a.CA.Pool(), CurrentTime: start.Add(time.Minute)}); err != nil {
				t.Error(err)
			}
		})
	}
	dir := t.TempDir()
	ensure(t, options(dir, start))
	if _, err := Ensure(options(dir, start.Add(caLife+time.Hour))); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("an expired authority: %v", err)
	}
}

func rm(names ...string) func(string) error {
	return func(dir string) error {
		for _, n := range names {
			if err := os.Remove(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
		return nil
	}
}

func write(name, data string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600) }
}

func swap(to, from string) func(string) error {
	return func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, to), data, 0o600)
	}
}

func TestKeysAreClosed(t *testing.T) {
	dir := t.TempDir()
	ensure(t, options(dir, start))
	key := filepath.Join(dir, "pki/sa.key")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	ensure(t, options(dir, start))
	if fi, _ := os.Stat(key); fi.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v", fi.Mode().Perm())
	}
}
