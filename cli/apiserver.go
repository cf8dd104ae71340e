package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/cluster"
)

// apiServerFlags are upstream kube-apiserver's flags, as far as they have a
// meaning here; any other one is an error.
type apiServerFlags struct {
	opts        cluster.APIServerOptions
	etcd        []string
	certDir     string
	bind        string
	port        int
	advertise   string
	serviceCIDR string
	issuers     []string
	modes       []string
	verbosity   int
	privileged  bool
}

// APIServerMain is the binary called kube-apiserver: upstream's flags, one
// API server, nothing around it. It returns the exit status.
func APIServerMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := (&apiServerFlags{}).command()
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		return 1
	}
	return 0
}

func (f *apiServerFlags) command() *cobra.Command {
	cmd := &cobra.Command{
		Use: "kube-apiserver", Short: "An API server by itself, on upstream's flags", Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.etcd, "etcd-servers", nil, "etcd servers (scheme://host:port), which must hold no objects: they are kept in memory")
	fs.StringVar(&f.certDir, "cert-dir", "", "folder with apiserver.crt and apiserver.key")
	fs.StringVar(&f.opts.CertFile, "tls-cert-file", "", "serving certificate; overrides --cert-dir")
	fs.StringVar(&f.opts.KeyFile, "tls-private-key-file", "", "its key")
	fs.StringVar(&f.bind, "bind-address", "0.0.0.0", "address to serve on")
	fs.IntVar(&f.port, "secure-port", 6443, "port to serve on")
	fs.StringVar(&f.advertise, "advertise-address", "", "address members of the cluster reach the server at (default: the bind address)")
	fs.StringVar(&f.opts.ClientCAFile, "client-ca-file", "", "authority of client certificates")
	fs.StringVar(&f.serviceCIDR, "service-cluster-ip-range", "10.0.0.0/24", "range of Services' cluster IPs")
	fs.StringSliceVar(&f.issuers, "service-account-issuer", nil, "issuer of service account tokens")
	fs.StringSliceVar(&f.opts.KeyFiles, "service-account-key-file", nil, "keys that verify service account tokens")
	fs.StringVar(&f.opts.SigningKeyFile, "service-account-signing-key-file", "", "key that signs service account tokens")
	fs.StringSliceVar(&f.opts.DisableAdmission, "disable-admission-plugins", nil, "admission plugins to leave out")
	fs.StringSliceVar(&f.modes, "authorization-mode", []string{"Node", "RBAC"}, "Node and RBAC are supported, and both are always on")
	fs.BoolVar(&f.privileged, "allow-privileged", true, "privileged containers are always allowed")
	fs.IntVarP(&f.verbosity, "v", "v", 0, "4 and above: debug messages")
	return cmd
}

func (f *apiServerFlags) run(ctx context.Context) error {
	level := slog.LevelInfo
	if f.verbosity >= 4 {
		level = slog.LevelDebug
	}
	f.opts.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := f.settle(); err != nil {
		return err
	}
	if err := emptyEtcd(ctx, f.etcd); err != nil {
		return err
	}
	f.opts.Log.Info("objects are kept in memory, not in etcd, and end with this process", "etcd-servers", f.etcd)
	return cluster.RunAPIServer(ctx, f.opts)
}

// settle turns flags into options.
func (f *apiServerFlags) settle() error {
	o := &f.opts
	o.Address = net.JoinHostPort(f.bind, strconv.Itoa(f.port))
	if o.CertFile == "" && f.certDir != "" {
		crt := filepath.Join(f.certDir, "apiserver.crt")
		if _, err := os.Stat(crt); err == nil { // else made anew, as upstream
			o.CertFile, o.KeyFile = crt, filepath.Join(f.certDir, "apiserver.key")
		}
	}
	if len(f.issuers) > 1 {
		return fmt.Errorf("--service-account-issuer: one issuer is supported, not %d", len(f.issuers))
	}
	if len(f.issuers) == 1 {
		o.Issuer = f.issuers[0]
	}
	for _, m := range f.modes {
		if !slices.Contains([]string{"Node", "RBAC"}, m) {
			return fmt.Errorf("--authorization-mode: %q is not supported; Node and RBAC are", m)
		}
	}
	if !f.privileged {
		return errors.New("--allow-privileged=false is not supported; use Pod Security admission")
	}
	var err error
	if o.ServiceCIDR, err = netip.ParsePrefix(f.serviceCIDR); err != nil {
		return fmt.Errorf("--service-cluster-ip-range: %q is not an address range such as 10.0.0.0/24", f.serviceCIDR)
	}
	if f.advertise == "" {
		return nil
	}
	if o.AdvertiseAddress, err = netip.ParseAddr(f.advertise); err != nil {
		return fmt.Errorf("--advertise-address: %q is not an IP address", f.advertise)
	}
	return nil
}

// etcdTimeout bounds the look into etcd before the start.
const etcdTimeout = 10 * time.Second

// emptyEtcd refuses an etcd that holds a cluster: its objects would not be
// served. Nothing to refuse without any.
func emptyEtcd(ctx context.Context, servers []string) error {
	if len(servers) == 0 {
		return nil
	}
	for _, s := range servers {
		if u, err := url.Parse(s); err != nil || u.Scheme != "http" {
			return fmt.Errorf("--etcd-servers: %q: only http:// is supported", s)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: servers, Context: ctx})
	if err != nil {
		return fmt.Errorf("--etcd-servers: %w", err)
	}
	defer client.Close()
	found, err := client.Get(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("--etcd-servers: %v does not answer: %w", servers, err)
	}
	if found.Count > 0 {
		return fmt.Errorf("etcd %v holds %d objects of a cluster: this server keeps objects in memory and would not show them; give it an empty etcd", servers, found.Count)
	}
	return nil
}
