package bootstrap

import (
	"crypto/x509"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// Even in a folder that holds a cluster nothing is read and nothing changes.
func TestInMemoryTouchesNoFile(t *testing.T) {
	dir := t.TempDir()
	kept := ensure(t, options(dir, start))
	before := content(t, dir)
	a, err := InMemory(options(dir, start))
	if err != nil {
		t.Fatal(err)
	}
	if diff := changed(before, content(t, dir)); len(diff) > 0 {
		t.Errorf("changed %v", diff)
	}
	if a.CA.Cert.Equal(kept.CA.Cert) {
		t.Error("it took the authority of the folder")
	}
	if _, err := a.APIServer.Cert.Verify(x509.VerifyOptions{Roots: a.CA.Pool(), DNSName: "127.0.0.1", CurrentTime: start}); err != nil {
		t.Error(err)
	}
	text, err := Kubeconfig("https://127.0.0.1:1", a.CA, "kubernetes-admin", a.Admin)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil || cfg.Host != "https://127.0.0.1:1" || len(cfg.CertData) == 0 || len(cfg.KeyData) == 0 || len(cfg.CAData) == 0 {
		t.Errorf("kubeconfig leads to %+v, %v", cfg, err)
	}
}
