package front

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
)

// Named is a certificate for clients that ask for one of Names, which may begin with "*."; without Names, for those
// it is for.
type Named struct {
	Certificate tls.Certificate
	Names       []string
}

// Choose is the GetCertificate of a tls.Config, which has no Certificates besides: the first whose exact name is asked for, or else the first whose wildcard
// covers it; names that are given count before those in certificates. Who asks for no name is given the
// one for the address they came to; whoever there is none for is shown otherwise.
func Choose(list []Named, otherwise tls.Certificate) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	given, found := map[string]*tls.Certificate{}, map[string]*tls.Certificate{}
	add := func(to map[string]*tls.Certificate, name string, c *tls.Certificate) {
		if name = strings.ToLower(strings.TrimSuffix(name, ".")); name != "" && to[name] == nil {
			to[name] = c
		}
	}
	for i := range list {
		c := &list[i].Certificate
		for _, name := range list[i].Names {
			add(given, name, c)
		}
		if len(list[i].Names) > 0 {
			continue
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			return nil, err
		}
		if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
			add(found, leaf.Subject.CommonName, c)
		}
		for _, name := range leaf.DNSNames {
			add(found, name, c)
		}
		for _, ip := range leaf.IPAddresses {
			add(found, ip.String(), c)
		}
	}
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
		if name == "" && hello.Conn != nil {
			name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
		}
		wildcard := "*"
		if _, rest, ok := strings.Cut(name, "."); ok && net.ParseIP(name) == nil {
			wildcard = "*." + rest
		}
		for _, names := range []map[string]*tls.Certificate{given, found} {
			for _, n := range []string{name, wildcard} {
				if c := names[n]; c != nil {
					return c, nil
				}
			}
		}
		return &otherwise, nil
	}, nil
}
