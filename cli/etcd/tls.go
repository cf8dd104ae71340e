package etcd

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skiff-project/skiff/internal/atomicfile"
	"github.com/skiff-project/skiff/store/etcdapi"
)

// api is what the flags say about the API itself.
func (o *options) api() (etcdapi.Config, error) {
	cfg := etcdapi.Config{Origins: urls(o.origins), Hosts: urls(o.hosts), Pprof: o.pprof || o.logLevel == "debug", ProgressInterval: o.progress, NoGateway: !o.gateway,
		TokenTTL: time.Duration(o.tokenTTL) * time.Second, BcryptCost: int(o.bcryptCost),
		Workers:      512,
		MaxStreams:   uint32(min(o.maxStreams, math.MaxUint32)),
		KeepaliveMin: cmp.Or(o.keepMin, -1), KeepaliveInterval: o.keepInterval, KeepaliveTimeout: o.keepTimeout}
	kind, options, _ := strings.Cut(o.authToken, ",")
	switch kind {
	case "simple":
	case "jwt":
		var err error
		if cfg.JWT, err = etcdapi.NewJWT(options); err != nil {
			return cfg, fmt.Errorf("--auth-token: %w", err)
		}
	default:
		return cfg, fmt.Errorf("--auth-token %q: simple and jwt exist", o.authToken)
	}
	return cfg, nil
}

// security is what flags say about the TLS of one kind of listeners.
type security struct {
	prefix                       string // of the flags
	cert, key, ca, crl           string
	clientCertAuth, auto, anySAN bool
	allowedCNs, allowedHostnames string
}

func (s *security) register(f *flag.FlagSet, prefix, who string) {
	s.prefix = prefix
	f.StringVar(&s.cert, prefix+"cert-file", "", "certificate of the "+who+" URLs")
	f.StringVar(&s.key, prefix+"key-file", "", "its key")
	f.StringVar(&s.ca, prefix+"trusted-ca-file", "", "CA of "+who+"s' certificates")
	f.StringVar(&s.crl, who+"-crl-file", "", "list (DER) of revoked certificates of "+who+"s, read for each connection")
	f.BoolVar(&s.clientCertAuth, prefix+"client-cert-auth", false, "demand certificates of "+who+"s")
	f.BoolVar(&s.auto, prefix+"auto-tls", false, "without a certificate: make one, in fixtures/"+who+" of the data folder")
	f.StringVar(&s.allowedHostnames, who+"-cert-allowed-hostname", "", "names one of which the certificate of a "+who+" must have")
	if who == "peer" {
		f.StringVar(&s.allowedCNs, "peer-cert-allowed-cn", "", "common names one of which the certificate of a peer must have")
		f.BoolVar(&s.anySAN, "peer-skip-client-san-verification", false, "let peers in whose certificates are for other addresses than they come from")
	}
}

// tls is the configuration of the listeners of some URLs, nil without a
// certificate. Certificates are read at each handshake, so that renewed ones
// need no restart.
func (o *options) tls(s *security, listen []string) (*tls.Config, error) {
	switch {
	case (s.cert == "") != (s.key == ""):
		return nil, fmt.Errorf("--%[1]scert-file and --%[1]skey-file must be given together", s.prefix)
	case s.cert == "" && !s.auto:
		return nil, nil
	case s.cert == "":
		dir := filepath.Join(o.dataDir, "fixtures", cmp.Or(strings.TrimSuffix(s.prefix, "-"), "client"))
		s.cert, s.key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		if err := selfSigned(s.cert, s.key, listen, o.selfSignedYears); err != nil {
			return nil, fmt.Errorf("--%sauto-tls: %w", s.prefix, err)
		}
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(s.cert, s.key)
		return &cert, err
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	conf := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() }}
	if err := s.clients(conf); err != nil {
		return nil, err
	}
	return conf, o.protocols(conf)
}

// clients sets whom the listeners let in.
func (s *security) clients(conf *tls.Config) error {
	switch {
	case s.allowedCNs != "" && s.allowedHostnames != "":
		return errors.New("--peer-cert-allowed-cn and --peer-cert-allowed-hostname exclude each other")
	case s.ca == "" && s.clientCertAuth:
		return fmt.Errorf("--%[1]sclient-cert-auth needs --%[1]strusted-ca-file", s.prefix)
	case s.ca == "":
		return nil
	}
	data, err := os.ReadFile(s.ca)
	if err != nil {
		return err
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(data) {
		return fmt.Errorf("--%strusted-ca-file %s holds no certificate", s.prefix, s.ca)
	}
	if s.crl != "" {
		if _, err := revoked(s.crl); err != nil {
			return err
		}
	}
	// As upstream: a CA alone demands certificates as well.
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.VerifyConnection = s.verify
	if s.prefix != "" && !s.anySAN {
		conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			own := conf.Clone()
			own.GetConfigForClient = nil
			own.VerifyConnection = func(cs tls.ConnectionState) error {
				if err := s.verify(cs); err != nil {
					return err
				}
				return comesFrom(hello.Context(), cs.PeerCertificates[0], hello.Conn.RemoteAddr())
			}
			return own, nil
		}
	}
	return nil
}

// verify checks what a client's certificate, signed by a known CA, must be.
func (s *security) verify(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	if names := urls(s.allowedCNs); len(names) > 0 && !slices.Contains(names, leaf.Subject.CommonName) {
		return errors.New("the client certificate has none of the allowed common names")
	}
	if names := urls(s.allowedHostnames); len(names) > 0 &&
		!slices.ContainsFunc(names, func(n string) bool { return leaf.VerifyHostname(n) == nil }) {
		return errors.New("the client certificate has none of the allowed hostnames")
	}
	if s.crl == "" {
		return nil
	}
	list, err := revoked(s.crl)
	if err != nil {
		return err
	}
	for _, cert := range cs.PeerCertificates {
		for _, entry := range list.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return fmt.Errorf("the client certificate with serial number %x is revoked", cert.SerialNumber)
			}
		}
	}
	return nil
}

func revoked(name string) (*x509.RevocationList, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("revocation list %s: %w", name, err)
	}
	return list, nil
}

// comesFrom checks, as etcd does of peers, that a certificate that names hosts
// names the one it comes from: its address, or a name that is known to be its.
func comesFrom(ctx context.Context, cert *x509.Certificate, from net.Addr) error {
	if len(cert.IPAddresses) == 0 && len(cert.DNSNames) == 0 {
		return nil
	}
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return err
	}
	if len(cert.IPAddresses) > 0 && cert.VerifyHostname(host) == nil {
		return nil
	}
	var r net.Resolver
	if len(cert.DNSNames) > 0 {
		names, _ := r.LookupAddr(ctx, host)
		for _, name := range names {
			name = strings.TrimSuffix(name, ".")
			for _, allowed := range cert.DNSNames {
				if suffix, ok := strings.CutPrefix(allowed, "*"); name == allowed || ok && strings.HasSuffix(name, suffix) {
					return nil
				}
			}
		}
	}
	for _, name := range cert.DNSNames {
		if addrs, _ := r.LookupHost(ctx, name); slices.Contains(addrs, host) {
			return nil
		}
	}
	return fmt.Errorf("the peer at %s has a certificate for %v and %q only", host, cert.IPAddresses, cert.DNSNames)
}

// selfSigned makes a certificate for the hosts of some URLs, unless the files are there.
func selfSigned(certFile, keyFile string, listen []string, years uint) error {
	_, noCert := os.Stat(certFile)
	_, noKey := os.Stat(keyFile)
	if noCert == nil && noKey == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return err
	}
	now := time.Now()
	made := x509.Certificate{SerialNumber: serial, Subject: pkix.Name{Organization: []string{"etcd"}},
		NotBefore: now, NotAfter: now.AddDate(int(years), 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, text := range listen {
		u, err := url.Parse(text)
		if err != nil {
			return err
		}
		if ip := net.ParseIP(u.Hostname()); ip != nil {
			made.IPAddresses = append(made.IPAddresses, ip)
		} else {
			made.DNSNames = append(made.DNSNames, u.Hostname())
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, &made, &made, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(certFile), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return atomicfile.Write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644)
}

func (o *options) protocols(conf *tls.Config) error {
	versions := map[string]uint16{"": 0, "TLS1.2": tls.VersionTLS12, "TLS1.3": tls.VersionTLS13}
	var ok1, ok2 bool
	conf.MinVersion, ok1 = versions[o.tlsMin]
	conf.MaxVersion, ok2 = versions[o.tlsMax]
	if !ok1 || !ok2 || conf.MaxVersion != 0 && conf.MaxVersion < conf.MinVersion {
		return fmt.Errorf("--tls-min-version %q and --tls-max-version %q: TLS1.2 and TLS1.3 exist, the least first", o.tlsMin, o.tlsMax)
	}
	for _, name := range urls(o.cipherSuites) {
		i := slices.IndexFunc(tls.CipherSuites(), func(s *tls.CipherSuite) bool { return s.Name == name })
		if i < 0 {
			return fmt.Errorf("--cipher-suites: unexpected TLS cipher suite %q", name)
		}
		conf.CipherSuites = append(conf.CipherSuites, tls.CipherSuites()[i].ID)
	}
	return nil
}
