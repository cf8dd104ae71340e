package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/admission/config"
	"github.com/skiff-project/skiff/apiserver/alloc"
	"github.com/skiff-project/skiff/apiserver/front"
	"github.com/skiff-project/skiff/apiserver/plugins"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/cli/gates"
	"github.com/skiff-project/skiff/cluster"
)

var apiServerHarmless = []harmless{
	{"default-watch-cache-size watch-cache? watch-cache-sizes etcd-count-metric-poll-period etcd-db-metric-poll-interval " +
		"etcd-healthcheck-timeout etcd-readycheck-timeout lease-reuse-duration-seconds delete-collection-workers enable-garbage-collector? " +
		"storage-initialization-timeout concurrent-watch-object-decode?", "the store works otherwise inside"},
	{"permit-address-sharing? permit-port-sharing? apiserver-count", "the server's bounds are its own"},
	{"kubelet-timeout kubelet-port", "kubelets say their port"},
	{"audit-log-batch-max-size audit-log-batch-max-wait audit-log-batch-throttle-enable? audit-log-batch-throttle-qps audit-log-batch-throttle-burst " +
		"audit-webhook-batch-throttle-enable? audit-webhook-batch-throttle-qps audit-webhook-batch-throttle-burst", "files are written as events come; a webhook is sent at most ten batches a second"},
	{"service-account-lookup?", "tokens are always looked up"},
}

// apiServerFlags are upstream kube-apiserver's flags, as far as they have a
// meaning here; any other one is an error.
type apiServerFlags struct {
	opts         cluster.APIServerOptions
	certDir      string
	bind         string
	port         int
	advertise    string
	serviceCIDRs []string
	issuers      []string
	auth         authFlags
	enable       []string
	disable      []string
	admission    string
	tls          tlsFlags
	audit        auditFlags
	fairness     bool
	watchSeconds int
	addresses    []string
	reconciler   string
	privileged   bool
	origins      []string
	overrides    []string
	extend       bool
	notReady     int64
	unreachable  int64
	user, uid    []string
	group, extra []string
}

func newAPIServer() *program {
	p, _ := apiServerProgram()
	return p
}

func apiServerProgram() (*program, *apiServerFlags) {
	p := newProgram("kube-apiserver", "The API server by itself", apiServerHarmless...)
	f := &apiServerFlags{}
	fs, o := p.fs, &f.opts
	fs.StringSliceVar(&o.Etcd.Servers, "etcd-servers", nil, "etcd servers (scheme://host:port) that keep the objects (default: they are kept in memory)")
	fs.StringSliceVar(&f.overrides, "etcd-servers-overrides", nil, "group/resource#server[;server...], comma-separated: that resource's objects are in another etcd; group/*: all of its")
	fs.StringVar(&o.Etcd.CAFile, "etcd-cafile", "", "authority of the etcd servers' certificates")
	fs.StringVar(&o.Etcd.CertFile, "etcd-certfile", "", "certificate shown to etcd")
	fs.StringVar(&o.Etcd.KeyFile, "etcd-keyfile", "", "its key")
	fs.StringVar(&o.Etcd.Prefix, "etcd-prefix", "/registry", "prefix of all keys in etcd")
	fs.DurationVar(&o.CompactionInterval, "etcd-compaction-interval", 5*time.Minute, "how often etcd's history is compacted; 0: never, others do it")
	fs.StringVar(&f.reconciler, "endpoint-reconciler-type", "lease", "none: the endpoints of the kubernetes Service are left to others; else (lease, master-count) every server is one")
	fs.StringVar(&o.EncryptionFile, "encryption-provider-config", "", "EncryptionConfiguration of what is stored (default: nothing is encrypted)")
	fs.BoolVar(&o.ReloadEncryption, "encryption-provider-config-automatic-reload", false, "look each minute whether that file changed")
	fs.IntVar(&o.Limits.ReadOnly, "max-requests-inflight", 400, "reading requests worked on at once")
	fs.IntVar(&o.Limits.Mutating, "max-mutating-requests-inflight", 200, "changing requests worked on at once; with priority and fairness the sum of both counts")
	fs.DurationVar(&o.RequestTimeout, "request-timeout", time.Minute, "how long a request may take that is no watch and no stream")
	fs.IntVar(&f.watchSeconds, "min-request-timeout", 1800, "seconds a watch lasts at least, and at most twice, whose client does not say")
	fs.DurationVar(&o.EventTTL, "event-ttl", time.Hour, "how long events are kept")
	fs.BoolVar(&o.Profiling, "profiling", false, "serve Go's profiles of this process at /debug/pprof/, to whom RBAC lets")
	fs.BoolVar(&f.fairness, "enable-priority-and-fairness", true, "divide them fairly, by FlowSchemas and PriorityLevelConfigurations")
	fs.StringVar(&f.certDir, "cert-dir", "", "folder with apiserver.crt and apiserver.key")
	fs.StringVar(&o.CertFile, "tls-cert-file", "", "serving certificate; overrides --cert-dir")
	fs.StringVar(&o.KeyFile, "tls-private-key-file", "", "its key")
	f.tls.add(fs)
	f.addFront(fs)
	f.audit.add(p)
	fs.StringVar(&f.bind, "bind-address", "0.0.0.0", "address to serve on")
	fs.IntVar(&f.port, "secure-port", 6443, "port to serve on")
	fs.StringVar(&o.ExternalHost, "external-hostname", "", "name others know the server by, as in the documents about its tokens (default: the advertised address)")
	fs.StringVar(&f.advertise, "advertise-address", "", "address members of the cluster reach the server at (default: the bind address; if that is a loopback one, the host's)")
	fs.StringVar(&o.ClientCAFile, "client-ca-file", "", "authority of client certificates")
	requestHeaderFlags(fs, &o.RequestHeaderCAFile, &o.RequestHeaderNames, &f.user, &f.uid, &f.group, &f.extra)
	fs.StringVar(&o.ProxyCertFile, "proxy-client-cert-file", "", "certificate shown to aggregated API servers (default: none)")
	fs.StringVar(&o.ProxyKeyFile, "proxy-client-key-file", "", "its key")
	fs.BoolVar(&o.EndpointRouting, "enable-aggregator-routing", false, "reach aggregated servers and webhooks at an endpoint of their Service, not at its cluster IP")
	fs.StringVar(&o.KubeletCertFile, "kubelet-client-certificate", "", "certificate shown to kubelets (default: logs and exec do not work)")
	fs.StringVar(&o.KubeletKeyFile, "kubelet-client-key", "", "its key")
	fs.StringSliceVar(&f.addresses, "kubelet-preferred-address-types", []string{"InternalIP", "ExternalIP", "Hostname"}, "kinds of addresses that kubelets are reached at, the preferred first")
	fs.StringVar(&o.KubeletCAFile, "kubelet-certificate-authority", "", "authority of kubelets' certificates (default: any is accepted)")
	fs.StringSliceVar(&f.serviceCIDRs, "service-cluster-ip-range", []string{"10.0.0.0/24"}, "range of Services' cluster IPs")
	fs.Var((*portRange)(&o.NodePorts), "service-node-port-range", "ports for NodePort Services: first-last or first+more (default 30000-32767)")
	f.addTokens(fs)
	f.addAdmission(fs)
	f.auth.add(p)
	fs.BoolVar(&f.privileged, "allow-privileged", false, "let containers be privileged, where Pod Security admission lets them")
	p.limited("storage-media-type", "application/vnd.kubernetes.protobuf", "objects are stored so", "application/vnd.kubernetes.protobuf")
	p.limited("storage-backend", "etcd3", "there is no other", "", "etcd3")
	fs.Var(&gates.APIs{Served: servedAPIs}, "runtime-config", "API versions, =true or false, comma-separated: taken where what is asked for is so already")
	p.limited("aggregator-reject-forwarding-redirect", "true", "a redirect would take the client's credentials along", "true")
	p.limited("cloud-provider", "", "there is no cloud provider here", "")
	p.run = func(ctx context.Context, log *slog.Logger) error {
		o.Log, o.Flags = log, p.flags()
		if err := f.settle(p); err != nil {
			return err
		}
		var err error
		if o.Audit, err = f.audit.settle(log); err != nil {
			return err
		}
		if len(o.Etcd.Servers) == 0 {
			log.Info("objects are kept in memory and end with this process; --etcd-servers keeps them")
		}
		return cluster.RunAPIServer(ctx, *o)
	}
	return p, f
}

// addFront is about connections and browsers.
func (f *apiServerFlags) addFront(fs *pflag.FlagSet) {
	o := &f.opts
	fs.Var((*namedCertificates)(&o.NamedCertificates), "tls-sni-cert-key", "certificate,key[:name,...] shown to who asks for one of the names, or for those it says; may be there more than once")
	fs.IntVar(&o.MaxStreams, "http2-max-streams-per-connection", 1000, "requests of one HTTP/2 connection at a time")
	fs.BoolVar(&o.NoHTTP2, "disable-http2-serving", false, "serve HTTP/1.1 only")
	fs.Float64Var(&o.Front.GoAway, "goaway-chance", 0, "chance, up to 0.02, of an HTTP/2 request to end its connection, so that clients spread over servers behind a balancer")
	fs.DurationVar(&o.Shutdown.Delay, "shutdown-delay-duration", 0, "how long to serve on after the signal to end, while /readyz says so")
	fs.BoolVar(&o.Shutdown.Refuse, "shutdown-send-retry-after", false, "answer new requests with 429 while those before come to their end")
	fs.DurationVar(&o.Shutdown.Watches, "shutdown-watch-termination-grace-period", 0, "over how long at most the ends of watches are spread then, at 200 a second or more; 0: they end at once")
	fs.DurationVar(&o.LivezGrace, "livez-grace-period", 0, "how long /livez passes although the start is not finished")
	fs.StringSliceVar(&f.origins, "cors-allowed-origins", nil, "regular expressions of the origins whose pages may send requests (default: none)")
	fs.StringSliceVar(&o.Front.Transport, "strict-transport-security-directives", nil, "what browsers are told: max-age=seconds, includeSubDomains, preload (default: nothing)")
}

// namedCertificates is a flag that is given once for each.
type namedCertificates []cluster.CertificateFiles

func (n *namedCertificates) String() string { return "" }
func (n *namedCertificates) Type() string   { return "namedCertKey" }

func (n *namedCertificates) Set(text string) error {
	cert, rest, ok := strings.Cut(text, ",")
	key, names, _ := strings.Cut(rest, ":")
	if !ok || cert == "" || key == "" {
		return errors.New("expected comma separated certificate and key file paths")
	}
	one := cluster.CertificateFiles{CertFile: cert, KeyFile: key}
	if names != "" {
		one.Names = strings.Split(names, ",")
	}
	*n = append(*n, one)
	return nil
}

// addTokens is about service accounts'.
func (f *apiServerFlags) addTokens(fs *pflag.FlagSet) {
	o := &f.opts
	fs.StringSliceVar(&f.issuers, "service-account-issuer", nil, "issuer of service account tokens")
	fs.StringSliceVar(&o.KeyFiles, "service-account-key-file", nil, "keys that verify service account tokens")
	fs.StringVar(&o.SigningKeyFile, "service-account-signing-key-file", "", "key that signs service account tokens")
	fs.DurationVar(&o.MaxTokenLife, "service-account-max-token-expiration", 0, "longest life of a service account token (default: no limit)")
	fs.BoolVar(&f.extend, "service-account-extend-token-expiration", true, "tokens that kubelets ask for an hour for pods are good for a year; uses after the hour are audited")
	fs.StringVar(&o.JWKSURI, "service-account-jwks-uri", "", "https URL where others find the keys of service account tokens (default: at this server)")
	fs.StringSliceVar(&o.Audiences, "api-audiences", nil, "audiences of tokens that are for this server (default: the issuer)")
}

func (f *apiServerFlags) addAdmission(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.enable, "enable-admission-plugins", nil, "admission plugins to add to those that are on: "+strings.Join(admission.Optional(), ", "))
	fs.StringVar(&f.admission, "admission-control-config-file", "", "AdmissionConfiguration: what "+strings.Join(config.Names(), ", ")+" are told (default: nothing)")
	fs.StringSliceVar(&f.disable, "disable-admission-plugins", nil, "admission plugins to leave out")
	fs.Int64Var(&f.notReady, "default-not-ready-toleration-seconds", 300, "how long pods that do not say stay on a node that is not ready")
	fs.Int64Var(&f.unreachable, "default-unreachable-toleration-seconds", 300, "the same for a node that is not reachable")
}

// anyCluster are the flags of kube-apiserver, by their beginnings, that apply to
// every cluster's API server; certificates, addresses, ranges and the store are the cluster's own.
var anyCluster = []string{"audit-", "oidc-", "authentication-", "authorization-", "anonymous-auth", "enable-admission-plugins",
	"disable-admission-plugins", "admission-control-config-file", "max-requests-inflight", "max-mutating-requests-inflight",
	"enable-priority-and-fairness", "request-timeout", "min-request-timeout", "event-ttl", "service-node-port-range",
	"etcd-compaction-interval", "kubelet-preferred-address-types", "profiling", "external-hostname", "token-auth-file",
	"default-not-ready-toleration-seconds", "default-unreachable-toleration-seconds", "service-account-jwks-uri",
	"service-account-extend-token-expiration", "allow-privileged", "enable-bootstrap-token-auth", "feature-gates", "runtime-config",
	"http2-max-streams-per-connection", "disable-http2-serving", "cors-allowed-origins", "strict-transport-security-directives",
	"goaway-chance", "shutdown-delay-duration", "shutdown-send-retry-after", "livez-grace-period",
	"shutdown-watch-termination-grace-period"}

// apiSettings are what such flags, without their dashes, say of a cluster's API server.
func apiSettings(args []string) (cluster.APISettings, error) {
	var none cluster.APISettings
	if len(args) == 0 {
		return none, nil
	}
	p, f := apiServerProgram()
	f.privileged, f.auth.bootstrap = true, true // a cluster's defaults, kubeadm's too
	dashed := make([]string, len(args))
	for i, arg := range args {
		dashed[i] = "--" + strings.TrimLeft(arg, "-")
	}
	if err := p.parse(dashed); err != nil {
		return none, err
	}
	var foreign error
	p.fs.Visit(func(flag *pflag.Flag) {
		if !slices.ContainsFunc(anyCluster, func(name string) bool { return strings.HasPrefix(flag.Name, name) }) {
			foreign = fmt.Errorf("%s is the cluster's own business: leave it out", flag.Name)
		}
	})
	if foreign != nil {
		return none, foreign
	}
	if err := f.settle(p); err != nil {
		return none, err
	}
	var err error
	f.opts.Audit, err = f.audit.settle(slog.Default())
	f.opts.Flags = map[string]string{}
	p.fs.Visit(func(flag *pflag.Flag) { f.opts.Flags[flag.Name] = flag.Value.String() })
	return f.opts.APISettings, err
}

// servedAPIs are those of every server.
func servedAPIs() (list []schema.GroupVersionResource) {
	for _, r := range all.Resources() {
		for _, v := range r.Versions {
			list = append(list, schema.GroupVersionResource{Group: r.Group, Version: v.Name, Resource: r.Name})
		}
	}
	return list
}

// settle turns flags into options.
func (f *apiServerFlags) settle(p *program) error {
	o := &f.opts
	if err := f.settleLimits(&o.Limits); err != nil {
		return err
	}
	if err := errors.Join(f.settleTuning(&o.Tuning), f.settleEtcd(&o.Etcd)); err != nil {
		return err
	}
	o.Address = net.JoinHostPort(f.bind, strconv.Itoa(f.port))
	if err := certificate(f.certDir, "apiserver", &o.CertFile, &o.KeyFile); err != nil {
		return err
	}
	if err := f.tls.settle(&o.MinTLS, &o.CipherSuites); err != nil {
		return err
	}
	if (o.KubeletCertFile == "") != (o.KubeletKeyFile == "") {
		return errors.New("--kubelet-client-certificate and --kubelet-client-key must be given together")
	}
	if (o.ProxyCertFile == "") != (o.ProxyKeyFile == "") {
		return errors.New("--proxy-client-cert-file and --proxy-client-key-file must be given together")
	}
	if len(f.issuers) > 1 {
		return fmt.Errorf("--service-account-issuer: one issuer is supported, not %d", len(f.issuers))
	}
	if len(f.issuers) == 1 {
		o.Issuer = f.issuers[0]
	}
	var err error
	if o.Access, err = f.auth.settle(p); err != nil {
		return err
	}
	if o.Admission, err = plugins.Choose(f.enable, f.disable, f.admission); err != nil {
		return err
	}
	o.Admission.TolerationSeconds(f.notReady, f.unreachable)
	o.NoPrivileged, o.NoTokenExtension = !f.privileged, !f.extend
	if u, err := url.Parse(o.JWKSURI); o.JWKSURI != "" && err != nil {
		return fmt.Errorf("service-account-jwks-uri must be a valid URL: %w", err)
	} else if o.JWKSURI != "" && u.Scheme != "https" {
		return fmt.Errorf("service-account-jwks-uri requires https scheme, parsed as: %v", u)
	}
	for _, h := range []struct {
		flag, want string
		got        []string
	}{{"username-headers", "X-Remote-User", f.user}, {"uid-headers", "X-Remote-Uid", f.uid}, {"group-headers", "X-Remote-Group", f.group},
		{"extra-headers-prefix", "X-Remote-Extra-", f.extra}} {
		if len(h.got) != 1 || !strings.EqualFold(h.got[0], h.want) {
			return fmt.Errorf("--requestheader-%s: %v is not supported; %s is", h.flag, h.got, h.want)
		}
	}
	ranges, err := prefixes("service-cluster-ip-range", f.serviceCIDRs)
	if err != nil {
		return err
	}
	if len(ranges) != 1 {
		return fmt.Errorf("--service-cluster-ip-range: one range is supported, not %d", len(ranges))
	}
	o.ServiceCIDR = ranges[0]
	if f.advertise == "" {
		return nil
	}
	if o.AdvertiseAddress, err = netip.ParseAddr(f.advertise); err != nil {
		return fmt.Errorf("--advertise-address: %q is not an IP address", f.advertise)
	}
	return nil
}

// portRange is a range of ports in upstream's two notations.
type portRange alloc.PortRange

func (r *portRange) Type() string { return "portRange" }

func (r *portRange) String() string {
	if *r == (portRange{}) {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Set takes "30000-32767" or "30000+2767"; "" and one port are a range, too.
func (r *portRange) Set(text string) error {
	text = strings.TrimSpace(text)
	first, last, width := text, text, "0"
	if a, b, ok := strings.Cut(text, "+"); ok {
		first, last, width = a, a, b
	} else if a, b, ok := strings.Cut(text, "-"); ok {
		first, last = a, b
	}
	low, err := strconv.Atoi(first)
	high, err2 := strconv.Atoi(last)
	more, err3 := strconv.Atoi(width)
	if err = errors.Join(err, err2, err3); err != nil {
		return fmt.Errorf("unable to parse port range %q: %w", text, err)
	}
	if high += more; low < 1 || more < 0 || high < low || high > math.MaxUint16 {
		return fmt.Errorf("port range %q must be of ports from 1 to 65535, the first not above the last", text)
	}
	r.First, r.Last = low, high
	return nil
}

// settleTuning is about what a flag gives in other terms.
func (f *apiServerFlags) settleTuning(o *apiserver.Tuning) error {
	if o.RequestTimeout <= 0 || f.watchSeconds <= 0 || o.EventTTL < time.Second {
		return errors.New("--request-timeout and --min-request-timeout must be above 0, --event-ttl at least 1s")
	}
	if o.Front.GoAway < 0 || o.Front.GoAway > 0.02 {
		return fmt.Errorf("--goaway-chance %v can not be less than 0 or greater than 0.02", o.Front.GoAway)
	}
	if o.Shutdown.Delay < 0 || o.LivezGrace < 0 {
		return errors.New("--shutdown-delay-duration and --livez-grace-period can not be negative")
	}
	if o.Shutdown.Watches < 0 {
		return errors.New("shutdown-watch-termination-grace-period, if provided, can not be a negative value")
	}
	if o.MaxStreams <= 0 {
		return fmt.Errorf("--http2-max-streams-per-connection: %d is not above 0", o.MaxStreams)
	}
	var err error
	if o.Front.Origins, err = front.ParseOrigins(f.origins); err != nil {
		return fmt.Errorf("--cors-allowed-origins has invalid value: %w", err)
	}
	if err := front.CheckTransport(o.Front.Transport); err != nil {
		return err
	}
	o.MinWatchTimeout = time.Duration(f.watchSeconds) * time.Second
	if o.CompactionInterval < 0 {
		return fmt.Errorf("--etcd-compaction-interval: %v is below 0", o.CompactionInterval)
	}
	if o.CompactionInterval == 0 {
		o.CompactionInterval = -1
	}
	for _, kind := range f.addresses {
		o.KubeletAddresses = append(o.KubeletAddresses, corev1.NodeAddressType(kind))
	}
	switch f.reconciler {
	case "none":
		o.NoEndpoints = true
	case "lease", "master-count":
	default:
		return fmt.Errorf("--endpoint-reconciler-type: %q is none of lease, master-count, none", f.reconciler)
	}
	return nil
}

func (f *apiServerFlags) settleEtcd(o *cluster.EtcdOptions) (err error) {
	if len(f.overrides) > 0 && len(o.Servers) == 0 {
		return errors.New("--etcd-servers must be specified")
	}
	o.Overrides, err = registry.ParseOverrides(f.overrides)
	return err
}

// settleLimits: a flag's 0 is no limit.
func (f *apiServerFlags) settleLimits(l *apiserver.Limits) error {
	l.NoFairness = !f.fairness
	if min(l.ReadOnly, l.Mutating) < 0 || f.fairness && l.ReadOnly+l.Mutating == 0 {
		return errors.New("--max-requests-inflight and --max-mutating-requests-inflight cannot be negative, nor both be 0 with priority and fairness")
	}
	for _, n := range []*int{&l.ReadOnly, &l.Mutating} {
		if *n == 0 {
			*n = -1
		}
	}
	return nil
}
