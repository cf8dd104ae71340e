package cli

import (
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/skiff-project/skiff/cluster"
)

// servingHarmless are flags of the secure port that change nothing here.
var servingHarmless = harmless{"authentication-token-webhook-cache-ttl authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl " +
	"authentication-tolerate-lookup-failure? http2-max-streams-per-connection disable-http2-serving? permit-address-sharing? permit-port-sharing?",
	"the API server is asked each time; the port serves HTTP/1.1"}

// profilingHarmless is for those but the API server, whose --profiling serves profiles.
var profilingHarmless = harmless{"profiling?", "only the API server serves profiles"}

// tlsFlags are --tls-min-version and --tls-cipher-suites.
type tlsFlags struct {
	min     string
	ciphers []string
}

func (t *tlsFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&t.min, "tls-min-version", "", "VersionTLS12 (the default) or VersionTLS13")
	fs.StringSliceVar(&t.ciphers, "tls-cipher-suites", nil, "TLS 1.2 cipher suites (default: Go's)")
}

func (t *tlsFlags) settle(version *uint16, suites *[]uint16) error {
	versions := map[string]uint16{"": 0, "VersionTLS10": 0, "VersionTLS11": 0, "VersionTLS12": tls.VersionTLS12, "VersionTLS13": tls.VersionTLS13}
	v, ok := versions[t.min]
	if !ok {
		return fmt.Errorf("--tls-min-version: unknown tls version %q; VersionTLS12 and VersionTLS13 are known", t.min)
	}
	*version = v
	known := map[string]uint16{}
	for _, s := range tls.CipherSuites() {
		known[s.Name] = s.ID
	}
	for _, name := range t.ciphers {
		id, ok := known[name]
		if !ok {
			return fmt.Errorf("--tls-cipher-suites: %q is not a cipher suite, or not a secure one", name)
		}
		*suites = append(*suites, id)
	}
	return nil
}

// componentFlags are those that kube-controller-manager and kube-scheduler share.
type componentFlags struct {
	name    string
	opts    *cluster.Component
	tls     tlsFlags
	bind    string
	port    int
	certDir string
	elect   bool
}

func (f *componentFlags) add(p *program, port int, qps float32, burst int) {
	fs, c, s, e := p.fs, &f.opts.Connection, &f.opts.Serving, &f.opts.Election
	f.name = p.name
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the API server (default: this pod's service account)")
	fs.StringVar(&c.Server, "master", "", "the API server's URL; overrides the kubeconfig's")
	fs.Float32Var(&c.QPS, "kube-api-qps", qps, "requests a second to the API server")
	fs.IntVar(&c.Burst, "kube-api-burst", burst, "requests at once")
	fs.StringVar(&c.ContentType, "kube-api-content-type", "application/vnd.kubernetes.protobuf", "encoding of requests")
	fs.StringVar(&f.bind, "bind-address", "0.0.0.0", "address to serve health and metrics on")
	fs.IntVar(&f.port, "secure-port", port, "port to serve them on; 0: none")
	fs.StringVar(&f.certDir, "cert-dir", "", "folder with "+p.name+".crt and .key")
	fs.StringVar(&s.CertFile, "tls-cert-file", "", "serving certificate (default: made at the start)")
	fs.StringVar(&s.KeyFile, "tls-private-key-file", "", "its key")
	f.tls.add(fs)
	fs.StringVar(&s.ClientCAFile, "client-ca-file", "", "authority of client certificates (default: the one the API server publishes)")
	fs.StringVar(&s.Authentication, "authentication-kubeconfig", "", "as whom tokens are reviewed (default: tokens are not accepted)")
	fs.StringVar(&s.Authorization, "authorization-kubeconfig", "", "as whom access is reviewed (default: only system:masters has any)")
	fs.BoolVar(&s.SkipLookup, "authentication-skip-lookup", false, "do not take the client CA from the API server")
	fs.StringSliceVar(&s.AlwaysAllow, "authorization-always-allow-paths", []string{"/healthz", "/readyz", "/livez"}, "paths everybody may get")
	requestHeaderFlags(fs, &s.RequestHeaderCAFile, &s.RequestHeader.AllowedNames, &s.RequestHeader.UserHeaders, &s.RequestHeader.UIDHeaders,
		&s.RequestHeader.GroupHeaders, &s.RequestHeader.ExtraPrefixes)
	fs.BoolVar(&f.elect, "leader-elect", true, "work only while holding the Lease")
	fs.DurationVar(&e.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long others wait for a leader that is silent")
	fs.DurationVar(&e.RenewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long a leader tries to renew before it ends")
	fs.DurationVar(&e.RetryPeriod, "leader-elect-retry-period", 2*time.Second, "between tries")
	fs.StringVar(&e.Name, "leader-elect-resource-name", p.name, "name of the Lease")
	fs.StringVar(&e.Namespace, "leader-elect-resource-namespace", "kube-system", "its namespace")
	p.limited("leader-elect-resource-lock", "leases", "leaders hold a Lease", "leases")
}

// requestHeaderFlags are those of a front proxy.
func requestHeaderFlags(fs *pflag.FlagSet, ca *string, names, user, uid, group, extra *[]string) {
	fs.StringVar(ca, "requestheader-client-ca-file", "", "authority of front proxies' client certificates (default: none is trusted)")
	fs.StringSliceVar(names, "requestheader-allowed-names", nil, "common names a front proxy may have (default: any)")
	fs.StringSliceVar(user, "requestheader-username-headers", []string{"X-Remote-User"}, "headers with the user")
	fs.StringSliceVar(uid, "requestheader-uid-headers", []string{"X-Remote-Uid"}, "headers with the user's UID")
	fs.StringSliceVar(group, "requestheader-group-headers", []string{"X-Remote-Group"}, "headers with groups")
	fs.StringSliceVar(extra, "requestheader-extra-headers-prefix", []string{"X-Remote-Extra-"}, "prefixes of headers with more")
}

func (f *componentFlags) settle() error {
	s := &f.opts.Serving
	f.opts.Election.Off = !f.elect
	if f.port != 0 {
		s.Address = net.JoinHostPort(f.bind, strconv.Itoa(f.port))
	}
	if err := certificate(f.certDir, f.name, &s.CertFile, &s.KeyFile); err != nil {
		return err
	}
	return f.tls.settle(&s.MinTLS, &s.CipherSuites)
}
