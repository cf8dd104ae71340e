package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"k8s.io/client-go/util/cert"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/etcdstore"
)

// EtcdOptions say which etcd an API server keeps its objects in.
type EtcdOptions struct {
	// Servers are the client URLs, http or https, of one cluster's members.
	Servers []string
	// CAFile holds the authorities (PEM) of the servers' certificates. Default: the system's.
	CAFile string
	// CertFile and KeyFile are shown to the servers. Default: none.
	CertFile, KeyFile string
	// Overrides are about objects that other clusters keep. They need Servers.
	Overrides []registry.Override
	// Prefix of all keys. Default /registry.
	Prefix string
}

// openStore opens the store of an API server that runs by itself.
func openStore(ctx context.Context, o EtcdOptions, log *slog.Logger) (store.Store, error) {
	if len(o.Servers) == 0 {
		return embedded.Open(embedded.Options{Decorate: registry.Decorate, Index: registry.Index(all.Resources()), Log: log})
	}
	first, err := o.open(ctx, o.Servers, log)
	if err != nil || len(o.Overrides) == 0 {
		return first, err
	}
	s, err := registry.Split(first, o.Overrides, all.Resources(), func(servers []string) (store.Store, error) { return o.open(ctx, servers, log) }, log)
	if err != nil {
		first.Close()
	}
	return s, err
}

func (o EtcdOptions) open(ctx context.Context, servers []string, log *slog.Logger) (store.Store, error) {
	for _, s := range servers {
		if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("etcd server %q is not of the form http://host:port or https://host:port", s)
		}
	}
	conf, err := o.tls()
	if err != nil {
		return nil, err
	}
	s, err := etcdstore.Open(ctx, etcdstore.Options{
		Endpoints: servers, TLS: conf, Root: registry.Root, Prefix: o.prefix(),
		Decorate: registry.Decorate, Index: registry.Index(all.Resources()), Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open etcd %v: %w", servers, err)
	}
	return s, nil
}

// prefix is how keys begin there.
func (o EtcdOptions) prefix() string {
	if len(o.Servers) == 0 || o.Prefix == "" {
		return registry.Root
	}
	return "/" + strings.Trim(o.Prefix, "/") + "/"
}

func (o EtcdOptions) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if o.CAFile != "" {
		if conf.RootCAs, err = cert.NewPool(o.CAFile); err != nil {
			return nil, fmt.Errorf("--etcd-cafile: %w", err)
		}
	}
	if o.CertFile == "" && o.KeyFile == "" {
		return conf, nil
	}
	pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-certfile, --etcd-keyfile: %w", err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}
