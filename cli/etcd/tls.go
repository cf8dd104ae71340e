package etcd

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/store/etcdapi"
)

// api is what the flags say about the API itself.
func (o *options) api() (etcdapi.Config, error) {
	cfg := etcdapi.Config{ProgressInterval: o.progress, NoGateway: !o.gateway,
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

// tls is the listeners' configuration, nil without a certificate. Certificates
// are read at each handshake, so that renewed ones need no restart.
func (o *options) tls() (*tls.Config, error) {
	if o.crlFile != "" {
		return nil, errors.New("--client-crl-file is not supported: issue short-lived certificates instead")
	}
	conf := &tls.Config{}
	switch {
	case o.certFile != "" && o.keyFile != "":
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
			return &cert, err
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() }
	case o.certFile != "" || o.keyFile != "":
		return nil, errors.New("--cert-file and --key-file must be given together")
	case o.autoTLS:
		cert, err := bootstrap.SelfSigned("etcd")
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{cert.TLS()}
	default:
		return nil, nil
	}
	if err := o.clients(conf); err != nil {
		return nil, err
	}
	return conf, o.protocols(conf)
}

// clients sets whom the listeners let in.
func (o *options) clients(conf *tls.Config) error {
	if o.caFile == "" {
		if o.clientCertAuth {
			return errors.New("--client-cert-auth needs --trusted-ca-file")
		}
		return nil
	}
	data, err := os.ReadFile(o.caFile)
	if err != nil {
		return err
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(data) {
		return fmt.Errorf("--trusted-ca-file %s holds no certificate", o.caFile)
	}
	// As upstream: a CA alone demands certificates as well.
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	if names := urls(o.allowedHostnames); len(names) > 0 {
		conf.VerifyConnection = func(cs tls.ConnectionState) error {
			if slices.ContainsFunc(names, func(n string) bool { return cs.PeerCertificates[0].VerifyHostname(n) == nil }) {
				return nil
			}
			return errors.New("the client certificate has none of the allowed hostnames")
		}
	}
	return nil
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
