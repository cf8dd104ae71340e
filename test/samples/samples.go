// Package samples has one valid object of each built-in kind.
package samples

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed kinds.yaml
var kinds string

// Objects returns the objects of kinds.yaml as decoded JSON, with fresh
// certificates. They are the caller's.
func Objects() (list []map[string]any, err error) {
	certificates, err := testCertificates()
	if err != nil {
		return nil, err
	}
	for doc := range strings.SplitSeq(certificates.Replace(kinds), "\n---\n") {
		data, err := yaml.YAMLToJSON([]byte(doc))
		var o map[string]any
		if err == nil {
			err = json.Unmarshal(data, &o)
		}
		if err != nil {
			return nil, fmt.Errorf("kinds.yaml: %w in\n%s", err, doc)
		}
		if o != nil {
			list = append(list, o)
		}
	}
	return list, nil
}

// testCertificates puts real ones in the place of the words in kinds.yaml.
func testCertificates() (*strings.Replacer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	ca, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "u"}}, key)
	if err != nil {
		return nil, err
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	text := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return strings.NewReplacer(
		"CERTIFICATE TEXT", strings.ReplaceAll(string(text("CERTIFICATE", ca)), "\n", `\n`),
		"CERTIFICATE", base64.StdEncoding.EncodeToString(text("CERTIFICATE", ca)),
		"REQUEST DER", base64.StdEncoding.EncodeToString(stub),
		"REQUEST", base64.StdEncoding.EncodeToString(text("CERTIFICATE REQUEST", csr)),
	), nil
}
