package bootstrap

import (
	"crypto/x509"
	"net/netip"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// A node without a control plane gets its identity, its server's certificate
// and the authority's certificate, but no authority's key.
func TestNodeOfItsOwn(t *testing.T) {
	a := ensure(t, options(t.TempDir(), start))
	o := options(t.TempDir(), start)
	o.NodeName, o.NodeIPs, o.Server = "n2", []netip.Addr{netip.MustParseAddr("10.95.0.2")}, "https://10.95.0.1:6443"
	if err := EnsureNode(o, a.CA); err != nil {
		t.Fatal(err)
	}
	before := content(t, o.DataDir)
	if err := EnsureNode(o, a.CA); err != nil {
		t.Fatal(err)
	}
	if diff := changed(before, content(t, o.DataDir)); diff != nil {
		t.Errorf("the second time changed %v", diff)
	}
	if _, there := before["pki/ca.key"]; there {
		t.Error("the node holds the authority's key")
	}
	n, err := LoadNode(o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"n2", "10.95.0.2", "127.0.0.1"} {
		if _, err := n.Kubelet.Cert.Verify(x509.VerifyOptions{Roots: n.CA.Pool(), CurrentTime: start, DNSName: host}); err != nil {
			t.Errorf("the node API's certificate for %s: %v", host, err)
		}
	}
	cfg, err := clientcmd.LoadFromFile(n.KubeletConf)
	if err != nil || cfg.Clusters["kubernetes"].Server != o.Server || cfg.AuthInfos["system:node:n2"] == nil {
		t.Fatalf("%+v %v", cfg, err)
	}
	if c := embedded(cfg); c.Cert.Subject.CommonName != "system:node:n2" || !matches(c.Cert, c.Key) || c.Cert.CheckSignatureFrom(a.CA.Cert) != nil {
		t.Errorf("the node's own certificate: %v", c.Cert.Subject)
	}
}
