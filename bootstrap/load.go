package bootstrap

import (
	"crypto"
	"crypto/tls"
	"fmt"

	"k8s.io/client-go/util/cert"
)

// LoadPair reads a certificate and its key; errors say what it is for.
func LoadPair(what, certFile, keyFile string) (Pair, error) {
	p, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return Pair{}, fmt.Errorf("%s: %w", what, err)
	}
	key, ok := p.PrivateKey.(crypto.Signer)
	if !ok {
		return Pair{}, fmt.Errorf("%s: %s holds a key that cannot sign", what, keyFile)
	}
	return Pair{Cert: p.Leaf, Key: key}, nil
}

// LoadAuthority reads the one certificate of a CA.
func LoadAuthority(what, file string) (Pair, error) {
	list, err := cert.CertsFromFile(file)
	if err != nil {
		return Pair{}, fmt.Errorf("%s: %w", what, err)
	}
	if len(list) != 1 {
		return Pair{}, fmt.Errorf("%s: %s holds %d certificates; one is supported", what, file, len(list))
	}
	return Pair{Cert: list[0]}, nil
}
