package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/cli/etcdutl"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
)

// serve runs a server with flags and returns its addresses: those of clients, then of peers.
func serve(t *testing.T, dir string, flags ...string) ([]net.Addr, func()) {
	t.Helper()
	o := newOptions()
	if err := o.parse(append([]string{"--data-dir", dir, "--listen-client-urls", "http://127.0.0.1:0", "--log-level", "fatal"}, flags...), noEnv); err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan []net.Addr, 1), make(chan error, 1)
	go func() { done <- standalone.Run(ctx, cfg, func(a []net.Addr) { ready <- a }) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	select {
	case addrs := <-ready:
		return addrs, stop
	case err := <-done:
		t.Fatal(err)
		return nil, nil
	}
}

func TestPeerPortEndsWithTheServer(t *testing.T) {
	addrs, stop := serve(t, t.TempDir(), "--listen-peer-urls", "http://127.0.0.1:0")
	resp, err := http.Get("http://" + addrs[1].String() + "/version")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	// Another server is told why it cannot have the port, and gives back what it took.
	dir := t.TempDir()
	err = run(t.Context(), []string{"--data-dir", dir, "--listen-client-urls", "http://127.0.0.1:0", "--listen-peer-urls", "http://" + addrs[1].String(), "--log-level", "fatal"}, noEnv, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "peer URL http://"+addrs[1].String()) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("taken port: %v", err)
	}
	stop()
	if conn, err := net.Dial("tcp", addrs[1].String()); err == nil {
		conn.Close()
		t.Error("the peer port is open after the end")
	}
	_, stop = serve(t, dir, "--listen-peer-urls", "http://"+addrs[1].String())
	stop()
}

// issued is a certificate signed by another, or by itself.
type issued struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	name string // of the files, without .crt and .key
}

func issue(t *testing.T, by *issued, serial int64, cn string, ips ...net.IP) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issued{key: key, name: filepath.Join(t.TempDir(), "it")}
	made := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: ips, IsCA: by == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent, signer := made, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, made, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	i.cert, _ = x509.ParseCertificate(der)
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(i.name+file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// version asks a server with TLS for /version, showing a certificate if there is one.
func version(addr net.Addr, ca *x509.Certificate, who *issued) error {
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AddCert(ca)
	if who != nil {
		conf.Certificates = []tls.Certificate{{Certificate: [][]byte{who.cert.Raw}, PrivateKey: who.key}}
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Get("https://" + addr.String() + "/version")
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func TestWhomTLSLetsIn(t *testing.T) {
	local := net.IPv4(127, 0, 0, 1)
	ca := issue(t, nil, 1, "ca")
	server := issue(t, ca, 2, "server", local)
	good, other, elsewhere, bad := issue(t, ca, 3, "good", local), issue(t, ca, 4, "other"), issue(t, ca, 5, "good", net.IPv4(10, 1, 2, 3)), issue(t, ca, 6, "good", local)
	stranger := issue(t, issue(t, nil, 1, "ca"), 3, "good", local)
	crl := filepath.Join(t.TempDir(), "crl")
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.cert.SerialNumber, RevocationTime: time.Now()}}}, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(crl, der, 0o600); err != nil {
		t.Fatal(err)
	}
	peer := []string{"--listen-peer-urls=https://127.0.0.1:0", "--peer-cert-file=" + server.name + ".crt", "--peer-key-file=" + server.name + ".key",
		"--peer-trusted-ca-file=" + ca.name + ".crt", "--peer-client-cert-auth"}
	client := []string{"--listen-peer-urls=", "--listen-client-http-urls=https://127.0.0.1:0", "--cert-file=" + server.name + ".crt", "--key-file=" + server.name + ".key",
		"--trusted-ca-file=" + ca.name + ".crt"}
	for _, tt := range []struct {
		name  string
		flags []string
		in    []*issued
		out   []*issued
	}{
		{"peers", peer, []*issued{good, other, bad}, []*issued{elsewhere, stranger, nil}},
		{"peers from anywhere", append(peer, "--peer-skip-client-san-verification"), []*issued{good, elsewhere}, []*issued{stranger, nil}},
		{"peers of a name", append(peer, "--peer-cert-allowed-cn=good,better"), []*issued{good, bad}, []*issued{other, elsewhere, nil}},
		{"peers of a host", append(peer, "--peer-cert-allowed-hostname=127.0.0.1"), []*issued{good, bad}, []*issued{other, elsewhere, nil}},
		{"peers not revoked", append(peer, "--peer-crl-file="+crl), []*issued{good, other}, []*issued{bad, nil}},
		{"peers without certificates", peer[:3], []*issued{good, elsewhere, stranger, nil}, nil},
		{"clients", client, []*issued{good, other, elsewhere, bad}, []*issued{stranger, nil}},
		{"clients not revoked", append(client, "--client-crl-file="+crl), []*issued{good, elsewhere}, []*issued{bad, stranger, nil}},
	} {
		addrs, stop := serve(t, t.TempDir(), tt.flags...)
		for _, who := range tt.in {
			if err := version(addrs[1], ca.cert, who); err != nil {
				t.Errorf("%s: %v is kept out: %v", tt.name, who, err)
			}
		}
		for _, who := range tt.out {
			if err := version(addrs[1], ca.cert, who); err == nil {
				t.Errorf("%s: %v is let in", tt.name, who)
			}
		}
		stop()
	}
}

func TestAutoTLS(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"--listen-peer-urls=https://127.0.0.1:0", "--peer-auto-tls", "--listen-client-urls=https://127.0.0.1:0", "--auto-tls", "--self-signed-cert-validity=2"}
	made := map[string][]byte{}
	for range 2 { // the second start finds the files
		addrs, stop := serve(t, dir, flags...)
		for i, who := range []string{"client", "peer"} {
			data, err := os.ReadFile(filepath.Join(dir, "fixtures", who, "cert.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if before := made[who]; before != nil && string(before) != string(data) {
				t.Errorf("the certificate for %ss is another after a restart", who)
			}
			made[who] = data
			block, _ := pem.Decode(data)
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if years := time.Until(cert.NotAfter).Hours() / 24 / 365; years < 1.9 || years > 2.1 {
				t.Errorf("valid for %.1f years", years)
			}
			if err := version(addrs[i], cert, nil); err != nil {
				t.Errorf("%s: %v", who, err)
			}
		}
		stop()
	}
}

// The log of a data folder is where --wal-dir says, from a first start or a
// restored snapshot on, and a start that says otherwise is refused.
func TestWALDir(t *testing.T) {
	dir, wal := t.TempDir(), filepath.Join(t.TempDir(), "wal")
	flags := []string{"--listen-peer-urls=", "--wal-dir=" + wal}
	value := func(addrs []net.Addr) string {
		t.Helper()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{addrs[0].String()}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, err := c.Get(t.Context(), "a")
		if err != nil || len(got.Kvs) == 0 {
			t.Fatal(got, err)
		}
		return string(got.Kvs[0].Value)
	}
	addrs, stop := serve(t, dir, flags...)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{addrs[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "a", "1"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	p := &player{t: t, url: "http://" + addrs[0].String()}
	file := filepath.Join(t.TempDir(), "snapshot")
	p.save(file)
	stop()
	if logs, _ := filepath.Glob(wal + "/*/*.log"); len(logs) != 2 {
		t.Errorf("logs in %s: %v", wal, logs)
	}
	if logs, _ := filepath.Glob(dir + "/*/*.log"); len(logs) != 0 {
		t.Errorf("logs in the data folder: %v", logs)
	}
	err = run(t.Context(), []string{"--data-dir", dir, "--listen-peer-urls=", "--listen-client-urls=http://127.0.0.1:0"}, noEnv, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "has its log in "+wal) {
		t.Errorf("without --wal-dir: %v", err)
	}
	addrs, stop = serve(t, dir, flags...)
	if value(addrs) != "1" {
		t.Error("the value is lost")
	}
	stop()

	restored, wal2 := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "wal")
	if code := etcdutl.Main([]string{"snapshot", "restore", file, "--data-dir", restored, "--wal-dir", wal}); code == 0 {
		t.Error("a snapshot is restored over a log that is there")
	}
	if code := etcdutl.Main([]string{"snapshot", "restore", file, "--data-dir", restored, "--wal-dir", wal2}); code != 0 {
		t.Fatal("restore ends with", code)
	}
	addrs, stop = serve(t, restored, "--listen-peer-urls=", "--wal-dir="+wal2)
	if value(addrs) != "1" {
		t.Error("the restored value is lost")
	}
	stop()
}

// What a user sees who mistypes a flag, and who asks for help.
func TestHelpIsForWhoAsks(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--wal-dri=x"}, noEnv, &out); err == nil || out.Len() > 0 {
		t.Errorf("%v %q", err, out.String())
	}
	if err := run(t.Context(), []string{"--help"}, noEnv, &out); err == nil || !strings.Contains(out.String(), "-wal-dir") {
		t.Errorf("%v %q", err, out.String())
	}
}

func TestV2IsGone(t *testing.T) {
	addrs, stop := serve(t, t.TempDir(), "--listen-peer-urls=", "--v2-deprecation=gone")
	defer stop()
	resp, err := http.Get("http://" + addrs[0].String() + "/v2/keys")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Error(resp.Status)
	}
}
