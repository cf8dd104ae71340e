// Package etcd is `skiff etcd`: a server of etcd's API with one member, on
// upstream's flags, ETCD_* variables and configuration file.
package etcd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/internal/gcpace"
	"github.com/skiff-project/skiff/store/etcdapi"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
)

// Main runs the server with args (without the program name) until a signal
// ends it, and returns its exit status.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	go gcpace.Pace{Rest: 15, Slack: 64 << 20}.Keep(ctx) // a heap of gigabytes is keys and values
	err := run(ctx, args, os.LookupEnv, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, args []string, env func(string) (string, bool), out io.Writer) error {
	o := newOptions()
	err := o.parse(args, env)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(out, "Usage: skiff etcd [flags]\n\nA server of etcd's API with one member. Flags, each also ETCD_<NAME> and in --config-file:")
		o.set.SetOutput(out)
		o.set.PrintDefaults()
	}
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintf(out, "etcd Version: %s\nGit SHA: Skiff\n", etcdapi.Version)
		return nil
	}
	cfg, err := o.config()
	if err != nil {
		return err
	}
	return standalone.Run(ctx, cfg, func(addrs []net.Addr) {
		cfg.Log.Info("ready to serve client requests", "version", etcdapi.Version, "data-dir", cfg.DataDir, "addresses", fmt.Sprint(addrs))
	})
}

// options are the flags as given.
type options struct {
	set *flag.FlagSet

	name, dataDir, configFile                                   string
	listen, httpListen, metricsListen                           string
	advertise, advertisePeer                                    string
	initialCluster, clusterState, token                         string
	listenPeer, walDir                                          string
	client, peer                                                security
	selfSignedYears                                             uint
	cipherSuites, tlsMin, tlsMax                                string
	origins, hosts                                              string
	quota                                                       int64
	maxRequest, maxOps, bcryptCost, tokenTTL                    uint
	maxStreams                                                  uint64
	compactionMode, compactionRetention                         string
	authToken                                                   string
	progress, oldProgress, keepMin, keepInterval, keepTimeout   time.Duration
	logLevel, logFormat, logOutputs                             string
	gates                                                       gates
	noFsync, version, enableV2, gateway, pprof, forceNewCluster bool
	noV2                                                        bool
	metricsDetail                                               string
}

// Ignored are upstream's flags that are accepted and change nothing here, with
// why. They have no effect on what clients see of a server of one member.
var Ignored = []struct{ Names, Why string }{
	{"peer-client-cert-file peer-client-key-file client-cert-file client-key-file", "this server connects to nobody"},
	{"heartbeat-interval election-timeout initial-election-tick-advance raft-read-timeout raft-write-timeout pre-vote strict-reconfig-check max-learners snapshot-catchup-entries", "there is no raft"},
	{"snapshot-count max-snapshots max-wals backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bootstrap-defrag-threshold-megabytes experimental-bootstrap-defrag-threshold-megabytes memory-mlock experimental-memory-mlock", "the store has its own files"},
	{"compaction-batch-limit compaction-sleep-interval experimental-compaction-batch-limit experimental-compaction-sleep-interval compact-hash-check-time experimental-compact-hash-check-time", "compaction never stops writers"},
	{"corrupt-check-time experimental-corrupt-check-time experimental-initial-corrupt-check experimental-compact-hash-check-enabled", "every start checks every byte"},
	{"downgrade-check-time warning-apply-duration warning-unary-request-duration experimental-warning-apply-duration experimental-warning-unary-request-duration", "they only time warnings"},
	{"logger enable-log-rotation log-rotation-config-json experimental-enable-lease-checkpoint-persist socket-reuse-port socket-reuse-address", "nothing here depends on them"},
	{"discovery-fallback discovery-dial-timeout discovery-request-timeout discovery-keepalive-time discovery-keepalive-timeout discovery-insecure-transport discovery-insecure-skip-tls-verify", "without --discovery they have no effect"},
}

// booleans among the ignored: they may stand without a value.
const ignoredBooleans = " initial-election-tick-advance pre-vote strict-reconfig-check memory-mlock experimental-memory-mlock experimental-initial-corrupt-check experimental-compact-hash-check-enabled experimental-enable-lease-checkpoint-persist enable-log-rotation socket-reuse-port socket-reuse-address discovery-insecure-transport discovery-insecure-skip-tls-verify "

// ignored is a flag that takes any value.
type ignored struct{ boolean bool }

func (ignored) String() string     { return "" }
func (ignored) Set(string) error   { return nil }
func (i ignored) IsBoolFlag() bool { return i.boolean }

// gates are those that --feature-gates names.
type gates map[string]bool

// knownGates are etcd 3.7's.
const knownGates = " AllAlpha AllBeta CompactHashCheck FastLeaseKeepAlive InitialCorruptCheck LeaseCheckpoint LeaseCheckpointPersist PriorityRequest " +
	"SetMemberLocalAddr StopGRPCServiceOnDefrag TxnModeWriteWithSharedBuffer "

func (g *gates) String() string { return "" }

func (g *gates) Set(text string) error {
	if *g == nil {
		*g = gates{}
	}
	for _, pair := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if name == "" && !ok {
			continue
		}
		if !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		if !strings.Contains(knownGates, " "+name+" ") {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
		(*g)[name] = on
	}
	return nil
}

func newOptions() *options {
	o := &options{set: flag.NewFlagSet("etcd", flag.ContinueOnError)}
	f := o.set
	f.SetOutput(io.Discard)
	f.Usage = func() {} // what is wrong with a flag is said in one line
	f.Var(&o.gates, "feature-gates", "name=true or false, comma-separated; LeaseCheckpoint: a lease has no more time after a restart than it had left, to five minutes. "+
		"The others of etcd 3.7 are taken and change nothing here")
	f.BoolFunc("experimental-enable-lease-checkpoint", "LeaseCheckpoint of --feature-gates", func(v string) error { return o.gates.Set("LeaseCheckpoint=" + v) })
	f.StringVar(&o.name, "name", "default", "name of this member")
	f.StringVar(&o.dataDir, "data-dir", "", "data folder (default <name>.etcd)")
	f.StringVar(&o.walDir, "wal-dir", "", "folder of the log, on a faster disk perhaps (default: in the data folder); a data folder stays with what it was begun with")
	f.StringVar(&o.configFile, "config-file", "", "YAML file of flags; other flags and variables are then ignored")
	f.StringVar(&o.listen, "listen-client-urls", "http://localhost:2379", "comma-separated URLs to serve clients on")
	f.StringVar(&o.listenPeer, "listen-peer-urls", "http://localhost:2380", "URLs to answer other members on: there are none, but probes and tools ask there too; empty: none")
	f.StringVar(&o.httpListen, "listen-client-http-urls", "", "more URLs to serve clients on")
	f.StringVar(&o.metricsListen, "listen-metrics-urls", "", "URLs to serve only health and metrics on")
	f.StringVar(&o.advertise, "advertise-client-urls", "", "client URLs to tell (default those listened on)")
	f.StringVar(&o.advertisePeer, "initial-advertise-peer-urls", "http://localhost:2380", "peer URLs to tell")
	f.StringVar(&o.initialCluster, "initial-cluster", "", "this member, name=URL; more members need real etcd")
	f.StringVar(&o.clusterState, "initial-cluster-state", "new", "new, or existing")
	f.StringVar(&o.token, "initial-cluster-token", "etcd-cluster", "goes into the cluster ID")
	o.client.register(f, "", "client")
	o.peer.register(f, "peer-", "peer")
	f.UintVar(&o.selfSignedYears, "self-signed-cert-validity", 1, "years that certificates of --auto-tls and --peer-auto-tls are valid")
	f.StringVar(&o.cipherSuites, "cipher-suites", "", "TLS 1.2 cipher suites")
	f.StringVar(&o.tlsMin, "tls-min-version", "TLS1.2", "TLS1.2 or TLS1.3")
	f.StringVar(&o.tlsMax, "tls-max-version", "", "TLS1.2 or TLS1.3")
	f.Int64Var(&o.quota, "quota-backend-bytes", 0, "limit of live data and history (0: 2 GiB; negative: none)")
	f.UintVar(&o.maxRequest, "max-request-bytes", 3<<19, "limit of a request")
	f.UintVar(&o.maxOps, "max-txn-ops", 128, "limit of operations of a transaction")
	f.Uint64Var(&o.maxStreams, "max-concurrent-streams", 1<<32-1, "limit of streams of a connection")
	f.UintVar(&o.bcryptCost, "bcrypt-cost", 10, "cost of hashing passwords")
	f.UintVar(&o.tokenTTL, "auth-token-ttl", 300, "seconds a simple token lives unused")
	f.StringVar(&o.authToken, "auth-token", "simple", "simple, or jwt,sign-method=M,pub-key=F,priv-key=F,ttl=D")
	f.StringVar(&o.compactionMode, "auto-compaction-mode", "periodic", "periodic or revision")
	f.StringVar(&o.compactionRetention, "auto-compaction-retention", "0", "how much history to keep; 0: all")
	f.DurationVar(&o.progress, "watch-progress-notify-interval", 10*time.Minute, "how often idle watches are told the revision")
	f.DurationVar(&o.oldProgress, "experimental-watch-progress-notify-interval", 0, "old name of the above")
	f.DurationVar(&o.keepMin, "grpc-keepalive-min-time", 5*time.Second, "least time between pings of a client")
	f.DurationVar(&o.keepInterval, "grpc-keepalive-interval", 2*time.Hour, "time between pings to a client")
	f.DurationVar(&o.keepTimeout, "grpc-keepalive-timeout", 20*time.Second, "time a client has to answer")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn, error, panic or fatal")
	f.StringVar(&o.logFormat, "log-format", "json", "json or console")
	f.StringVar(&o.logOutputs, "log-outputs", "default", "stdout, stderr, default or files")
	f.BoolVar(&o.noFsync, "unsafe-no-fsync", false, "never sync: acknowledged writes may be lost")
	f.BoolVar(&o.version, "version", false, "print the version")
	f.BoolVar(&o.enableV2, "enable-v2", true, "serve the v2 keys")
	f.BoolVar(&o.gateway, "enable-grpc-gateway", true, "serve JSON over HTTP")
	f.BoolVar(&o.pprof, "enable-pprof", false, "serve Go's profiles at /debug/pprof/ of the client URLs; so does --log-level=debug")
	f.BoolVar(&o.forceNewCluster, "force-new-cluster", false, "there are no other members to forget")
	f.StringVar(&o.origins, "cors", "*", "origins that scripts in browsers may ask from; empty or *: all")
	f.StringVar(&o.hosts, "host-whitelist", "*", "host names that HTTP without TLS may ask for; empty or *: all")
	f.Func("v2-deprecation", "gone: serve no v2 keys; write-only, write-only-skip-check and write-only-drop-data change nothing, as in etcd 3.7", o.deprecateV2)
	f.StringVar(&o.metricsDetail, "metrics", "basic", "basic or extensive")
	for _, group := range Ignored {
		for name := range strings.FieldsSeq(group.Names) {
			f.Var(ignored{strings.Contains(ignoredBooleans, " "+name+" ")}, name, "accepted, without effect: "+group.Why)
		}
	}
	return o
}

func (o *options) deprecateV2(stage string) error {
	switch stage {
	case "gone":
		o.noV2 = true
	case "write-only", "write-only-skip-check", "write-only-drop-data":
	default:
		return errors.New("gone, write-only, write-only-skip-check and write-only-drop-data exist")
	}
	return nil
}

// parse reads flags, then variables for flags not given; or the configuration
// file alone.
func (o *options) parse(args []string, env func(string) (string, bool)) error {
	if err := o.set.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w (skiff etcd --help lists the flags)", err)
	}
	if o.set.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: everything is given by flags", o.set.Arg(0))
	}
	if o.configFile == "" {
		o.configFile, _ = env("ETCD_CONFIG_FILE")
	}
	if o.configFile != "" {
		return o.readFile(o.configFile)
	}
	given := map[string]bool{}
	o.set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var err error
	o.set.VisitAll(func(f *flag.Flag) {
		name := "ETCD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := env(name); ok && v != "" && !given[f.Name] && err == nil {
			if err = o.set.Set(f.Name, v); err != nil {
				err = fmt.Errorf("variable %s=%q: %w", name, v, err)
			}
		}
	})
	return err
}

// readFile sets flags from a configuration file. Sections for the client's and
// peers' TLS hold the flags of the same names without their prefix.
func (o *options) readFile(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := yaml.Unmarshal(data, &fields); err != nil {
		return fmt.Errorf("configuration file %s: %w", name, err)
	}
	for section, prefix := range map[string]string{"client-transport-security": "", "peer-transport-security": "peer-"} {
		in, _ := fields[section].(map[string]any)
		delete(fields, section)
		for key, v := range in {
			if strings.HasPrefix(key, "allowed-") {
				key = strings.Replace(section, "transport-security", "cert-"+key, 1)
			} else {
				key = prefix + key
			}
			fields[key] = v
		}
	}
	for key, v := range fields {
		var text string
		switch v := v.(type) {
		case []any:
			parts := make([]string, len(v))
			for i := range v {
				parts[i] = fmt.Sprint(v[i])
			}
			text = strings.Join(parts, ",")
		case float64:
			text = strconv.FormatFloat(v, 'f', -1, 64)
		case nil:
			continue
		default:
			text = fmt.Sprint(v)
		}
		if o.set.Lookup(key) == nil {
			return fmt.Errorf("configuration file %s: unknown field %q", name, key)
		}
		if err := o.set.Set(key, text); err != nil {
			return fmt.Errorf("configuration file %s: %s: %w", name, key, err)
		}
	}
	return nil
}

func urls(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// config checks the flags and makes the server's configuration of them.
func (o *options) config() (standalone.Config, error) {
	var none standalone.Config
	if o.bcryptCost < 4 || o.bcryptCost > 31 {
		return none, fmt.Errorf("--bcrypt-cost %d must be between 4 and 31", o.bcryptCost)
	}
	if members := urls(o.initialCluster); len(members) > 1 {
		return none, fmt.Errorf("--initial-cluster names %d members: Skiff's server is a cluster of one; use real etcd for more", len(members))
	} else if len(members) == 1 && !strings.HasPrefix(members[0], o.name+"=") {
		return none, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", o.name)
	}
	if o.dataDir == "" {
		o.dataDir = o.name + ".etcd"
	}
	log, err := o.logger()
	if err != nil {
		return none, err
	}
	conf, err := o.tls(&o.client, append(urls(o.listen), urls(o.httpListen)...))
	if err != nil {
		return none, err
	}
	peer, err := o.tls(&o.peer, urls(o.listenPeer))
	if err != nil {
		return none, err
	}
	api, err := o.api()
	if err != nil {
		return none, err
	}
	compaction, err := o.compaction()
	if err != nil {
		return none, err
	}
	if o.oldProgress > 0 {
		o.progress = o.oldProgress
	}
	quota := o.quota
	switch {
	case quota == 0:
		quota = 2 << 30
	case quota < 0:
		quota = 1<<63 - 1
	}
	var leaseCheckpoint time.Duration
	if o.gates["LeaseCheckpoint"] {
		leaseCheckpoint = 5 * time.Minute
	}
	return standalone.Config{
		LeaseCheckpoint: leaseCheckpoint,
		DataDir:         o.dataDir, Name: o.name, Token: o.token, TLS: conf, NoV2: !o.enableV2 || o.noV2, NoSync: o.noFsync,
		Listen: append(urls(o.listen), urls(o.httpListen)...), Metrics: urls(o.metricsListen),
		Peer: urls(o.listenPeer), PeerTLS: peer, WALDir: o.walDir,
		AdvertiseClient: urls(o.advertise), AdvertisePeer: urls(o.advertisePeer),
		QuotaBytes: quota, MaxTxnOps: int(o.maxOps), MaxRequestBytes: int(o.maxRequest),
		Compaction: compaction, Log: log,
		API: api,
	}, nil
}

func (o *options) compaction() (standalone.Compaction, error) {
	bad := fmt.Errorf("--auto-compaction-retention %q does not fit --auto-compaction-mode %q", o.compactionRetention, o.compactionMode)
	n, err := strconv.ParseInt(o.compactionRetention, 10, 64)
	switch o.compactionMode {
	case "revision":
		if err != nil || n < 0 {
			return standalone.Compaction{}, bad
		}
		return standalone.Compaction{Revisions: n}, nil
	case "periodic":
		period := time.Duration(n) * time.Hour
		if err != nil {
			period, err = time.ParseDuration(o.compactionRetention)
		}
		if err != nil || period < 0 {
			return standalone.Compaction{}, bad
		}
		return standalone.Compaction{Period: period}, nil
	}
	return standalone.Compaction{}, fmt.Errorf("--auto-compaction-mode must be periodic or revision, not %q", o.compactionMode)
}

func (o *options) logger() (*slog.Logger, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"error": slog.LevelError, "dpanic": slog.LevelError, "panic": slog.LevelError, "fatal": slog.LevelError}
	level, ok := levels[o.logLevel]
	if !ok {
		return nil, fmt.Errorf("--log-level: unknown level %q", o.logLevel)
	}
	var outs []io.Writer
	for _, name := range urls(o.logOutputs) {
		switch name {
		case "stdout":
			outs = append(outs, os.Stdout)
		case "stderr", "default", "systemd/journal":
			outs = append(outs, os.Stderr)
		default:
			f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				return nil, err
			}
			outs = append(outs, f) // open until the process ends
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	if o.logFormat == "console" {
		return slog.New(slog.NewTextHandler(io.MultiWriter(outs...), opts)), nil
	}
	return slog.New(slog.NewJSONHandler(io.MultiWriter(outs...), opts)), nil
}
